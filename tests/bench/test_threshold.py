"""Thresholds, intervals, reliability and calibrations against scikit-learn, scipy and arithmetic done again here."""

from __future__ import annotations

import gzip
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_recall_curve, precision_score, recall_score, roc_auc_score
from typer.testing import CliRunner

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.bench.compare import compare_results
from qwen3_ranker_plugins.bench.report_files import read_result, recomputed
from qwen3_ranker_plugins.bench.results import write_result
from qwen3_ranker_plugins.bench.threshold.curves import (
    RESAMPLES,
    Sample,
    area_under_roc,
    choose,
    find_thresholds,
    reliability,
    shortest_decimal,
)
from qwen3_ranker_plugins.bench.threshold.fitting import cross_fitted, fit
from qwen3_ranker_plugins.bench.threshold.measure import (
    ThresholdResult,
    calibration_of,
    measure_thresholds,
)
from qwen3_ranker_plugins.bench.threshold.report import threshold_report
from qwen3_ranker_plugins.calibration import Calibration
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.data.collection import Collection, open_collection
from qwen3_ranker_plugins.ranking import sigmoid

from .conftest import json_lines


def labelled(pairs: int, queries: int, seed: int, digits: int = 2) -> tuple[Any, Any, Any]:
    """Margins with many ties, labels that they say something of, and queries that differ in both."""
    random = np.random.default_rng(seed)
    query = np.sort(random.integers(queries, size=pairs))
    query[:queries] = np.arange(queries)
    margins = random.normal(size=pairs) * 3 + random.normal(size=queries)[query]
    relevant = random.random(pairs) < sigmoid(0.6 * margins - 1)
    relevant[:2] = True, False
    return np.round(margins, digits), relevant, query.astype(np.intp)


@pytest.mark.parametrize("seed", range(5))
def test_precision_and_recall_of_every_threshold(seed: int) -> None:
    margins, relevant, queries = labelled(200, 12, seed, digits=1)
    sample = Sample.of(sigmoid(margins), relevant, queries)
    points = sample.points()
    precision, recall, thresholds = precision_recall_curve(relevant, sigmoid(margins))
    np.testing.assert_array_equal(points.scores, thresholds[::-1])
    np.testing.assert_allclose(points.precision, precision[-2::-1])
    np.testing.assert_allclose(points.recall, recall[-2::-1])
    expected = [f1_score(relevant, sigmoid(margins) >= each) for each in points.scores]
    np.testing.assert_allclose(points.f1, expected)
    assert area_under_roc(sample) == pytest.approx(roc_auc_score(relevant, margins))


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_for_what_is_wanted(seed: int) -> None:
    """By trying all of them."""
    margins, relevant, queries = labelled(120, 9, seed, digits=1)
    points = Sample.of(sigmoid(margins), relevant, queries).points()
    each = list(zip(points.precision.tolist(), points.recall.tolist(), points.scores.tolist(), strict=True))
    for wanted in (0.3, 0.6, 0.8, 1.0):
        place = choose("precision", wanted, points.precision, points.recall, points.f1)
        enough = [(recall, precision, score) for precision, recall, score in each if precision >= wanted - 1e-12]
        if place is None:
            assert not enough
        else:
            assert (points.recall[place], points.precision[place]) == max(enough)[:2]
        place = choose("recall", wanted, points.precision, points.recall, points.f1)
        assert place is not None
        assert points.scores[place] == max(score for _, recall, score in each if recall >= wanted - 1e-12)
    place = choose("F1", 1, points.precision, points.recall, points.f1)
    assert place is not None
    assert points.f1[place] == points.f1.max()


@given(
    st.floats(min_value=0, max_value=1, exclude_min=True),
    st.one_of(st.none(), st.floats(min_value=0, max_value=1, exclude_max=True)),
)
def test_the_printed_threshold_keeps_the_same_pairs(threshold: float, below: float | None) -> None:
    if below is not None and below >= threshold:
        below, threshold = (threshold, below) if threshold < below else (None, threshold)
    found = shortest_decimal(below, threshold)
    assert (0 if below is None else below) <= found <= threshold
    assert below is None or found > below


def test_a_printed_threshold_is_short() -> None:
    assert shortest_decimal(0.8641, 0.87312) == 0.87
    assert shortest_decimal(0.2, 0.9) == 0.9
    assert shortest_decimal(None, 0.034) == 0.0
    assert shortest_decimal(0.9999991, 0.99999985) == 0.9999998
    assert shortest_decimal(0.99, 1.0) == 1.0
    close = math.nextafter(0.3, 1)
    assert shortest_decimal(0.3, close) == close


@pytest.mark.parametrize("seed", range(3))
def test_intervals_are_those_of_resampled_queries(seed: int) -> None:
    """The resamples are made again, as lists of pairs, and judged by scikit-learn."""
    margins, relevant, queries = labelled(60, 8, seed)
    scores = sigmoid(margins)
    (choice, _), _ = find_thresholds(Sample.of(scores, relevant, queries), [("recall", 0.8)], seed=seed)
    random = np.random.default_rng(seed)
    thresholds, precisions, recalls = [], [], []
    threshold = choice.threshold
    for _ in range(RESAMPLES):
        drawn = random.integers(8, size=8)
        pairs = np.concatenate([np.flatnonzero(queries == each) for each in drawn])
        truth, kept = relevant[pairs], scores[pairs] >= threshold
        if truth.any():
            found = np.sort(scores[pairs][truth])[::-1]
            thresholds.append(found[math.ceil(0.8 * len(found) - 1e-9) - 1])
            recalls.append(truth[kept].sum() / truth.sum())
        if kept.any():
            precisions.append(truth[kept].mean())
    assert choice.attained == len(thresholds) / RESAMPLES
    if len(thresholds) == RESAMPLES:
        low, high = np.quantile(thresholds, (0.025, 0.975), method="inverted_cdf")
        assert (choice.threshold_interval.low, choice.threshold_interval.high) == pytest.approx((low, high))
    kept = scores >= threshold
    hits = int(relevant[kept].sum())
    for interval, values, count in (
        (choice.precision_interval, precisions, int(kept.sum())),
        (choice.recall_interval, recalls, int(relevant.sum())),
    ):
        wilson = binomtest(hits, count).proportion_ci(method="wilson")
        low, high = np.percentile(values, (2.5, 97.5))
        assert interval.low == pytest.approx(min(low, wilson.low))
        assert interval.high == pytest.approx(max(high, wilson.high))
    assert choice.precision == precision_score(relevant, kept)
    assert choice.recall == recall_score(relevant, kept)


def test_pairs_of_one_query_belong_together() -> None:
    """Each query's pairs are all alike, so its number of pairs adds no certainty."""
    random = np.random.default_rng(0)
    good = random.random(30) < 0.6
    margins = np.repeat(np.where(good, 2.0, 1.0) + random.random(30), 20)
    relevant, queries = np.repeat(good, 20), np.repeat(np.arange(30), 20)
    relevant[::7] = ~relevant[::7]

    def width(numbers: NDArray[np.intp]) -> float:
        (choice, _), _ = find_thresholds(Sample.of(sigmoid(margins), relevant, numbers), [("recall", 0.99)], seed=0)
        assert choice.precision_interval.low is not None
        assert choice.precision_interval.high is not None
        return choice.precision_interval.high - choice.precision_interval.low

    assert width(queries) > 2 * width(np.arange(len(margins)))


def test_a_precision_that_few_resamples_reach_has_an_open_interval() -> None:
    margins = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    relevant = np.array([True, False, False, True, False, False])
    sample = Sample.of(sigmoid(margins), relevant, np.array([0, 1, 2, 3, 4, 5]))
    choices, _ = find_thresholds(sample, [("precision", 1.0)], seed=0)
    assert choices[0].threshold == 0.99
    assert choices[0].threshold_interval.high is None
    assert choices[0].attained < 0.8
    assert choices[0].precision_interval.low < 0.25  # one pair that is right is no proof


@pytest.mark.parametrize("seed", range(3))
def test_expected_calibration_error(seed: int) -> None:
    margins, relevant, _ = labelled(500, 10, seed)
    found = reliability(margins, relevant)
    ece, scores = 0.0, 1 / (1 + np.exp(-margins))
    for low in np.arange(10) / 10:
        inside = [
            (s, r) for s, r in zip(scores, relevant, strict=True) if low <= s < low + 0.1 or (low == 0.9 and s == 1)
        ]
        if inside:
            ece += len(inside) / 500 * abs(np.mean([s for s, _ in inside]) - np.mean([r for _, r in inside]))
    assert found.ece == pytest.approx(ece)
    assert found.brier == pytest.approx(np.mean((scores - relevant) ** 2))
    assert found.log_loss == pytest.approx(-np.mean(np.log(np.where(relevant, scores, 1 - scores))))
    assert sum(each.pairs for each in found.bins) == 500


def by_scikit_learn(margins: Any, relevant: Any, *, intercept: bool) -> tuple[float, float]:
    """Logistic regression without a penalty; Platt's targets are weights of both labels."""
    positive, negative = relevant.sum(), (~relevant).sum()
    targets = np.where(relevant, (positive + 1) / (positive + 2), 1 / (negative + 2))
    model = LogisticRegression(C=np.inf, fit_intercept=intercept, tol=1e-10, max_iter=10_000)
    both = np.concatenate([margins, margins])[:, None]
    labels = np.concatenate([np.ones(len(margins)), np.zeros(len(margins))])
    model.fit(both, labels, sample_weight=np.concatenate([targets, 1 - targets]))
    return float(model.coef_[0, 0]), float(model.intercept_[0]) if intercept else 0.0


@pytest.mark.parametrize("method", ["platt", "temperature"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_calibrations_are_those_of_scikit_learn(method: str, scale: float) -> None:
    margins, relevant, _ = labelled(400, 10, seed=1)
    slope, intercept = fit(method, margins * scale, relevant)
    expected = by_scikit_learn(margins, relevant, intercept=method == "platt")
    assert (slope * scale, intercept) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_margins_without_a_fault_get_a_finite_slope() -> None:
    margins = np.array([-3.0, -2.0, 2.0, 3.0])
    slope, intercept = fit("platt", margins, margins > 0)
    assert 0 < slope < 1
    assert intercept == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_labels_that_contradict_the_margins_are_refused(method: str) -> None:
    margins, relevant, _ = labelled(200, 10, seed=2)
    with pytest.raises(InvalidInputError, match=r"gives the slope .* never changes the order"):
        fit(method, -margins, relevant)
    with pytest.raises(InvalidInputError, match="gives the slope"):
        fit("platt", np.ones(len(margins)), relevant)


def test_held_out_queries_are_judged_by_the_others() -> None:
    margins, relevant, queries = labelled(400, 20, seed=3)
    found = cross_fitted("platt", margins, relevant, queries, seed=5)
    part = (np.random.default_rng(5).permutation(20) % 5)[queries]
    for number in range(5):
        slope, intercept = by_scikit_learn(margins[part != number], relevant[part != number], intercept=True)
        np.testing.assert_allclose(found[part == number], slope * margins[part == number] + intercept, atol=0.01)
    assert cross_fitted("platt", margins, relevant, np.zeros(400, dtype=np.intp), seed=0) is None


@pytest.fixture(scope="module")
def result(collection: Collection) -> ThresholdResult:
    settings = RerankerSettings("bundled:tiny")
    return measure_thresholds(collection, settings, precisions=[0.5, 0.9], recalls=[0.8], calibrate="platt", seed=3)


def test_measured_margins_and_labels(result: ThresholdResult, collection: Collection, reranker: Reranker) -> None:
    for query_id, doc_ids in collection.candidates.items():
        hits = reranker.rerank(collection.queries[query_id], [collection.texts[each] for each in doc_ids])
        by_place = {hit.index: hit.margin for hit in hits}
        assert result.collection.margins[query_id] == pytest.approx(
            [by_place[n] for n in range(len(doc_ids))], abs=1e-4
        )
        grades = collection.qrels[query_id]
        assert result.collection.relevant[query_id] == [grades.get(each, 0) >= 1 for each in doc_ids]


def test_a_calibration_makes_the_threshold_mean_the_same(
    result: ThresholdResult, collection: Collection, tmp_path: Path
) -> None:
    """What is written is applied, and the printed thresholds keep what the report says."""
    fitted = calibration_of(result)
    assert fitted is not None
    assert fitted.fitted_on["queries"] == len(collection.queries)
    assert fitted.fitted_on["pairs"] == len(collection.pairs)
    assert fitted.fitted_on["relevant"] == sum(grade >= 1 for _, _, grade in collection.pairs)
    path = tmp_path / "calibration.json"
    fitted.write(path)
    assert Calibration.read(path) == fitted
    figures = result.figures
    for name, calibration, thresholds in (
        ("calibrated", path, [each["threshold"] for each in figures["choices"]]),
        ("P(yes)", None, figures["uncalibrated"]),
    ):
        with Reranker("bundled:tiny", calibration=calibration) as reranker:
            judged = [
                (hit.score, collection.qrels[query_id].get(doc_ids[hit.index], 0) >= 1)
                for query_id, doc_ids in collection.candidates.items()
                for hit in reranker.rerank(collection.queries[query_id], [collection.texts[each] for each in doc_ids])
            ]
        for choice, threshold in zip(figures["choices"], thresholds, strict=True):
            if threshold is not None:
                kept = [relevant for score, relevant in judged if score >= threshold]
                assert sum(kept) / len(kept) == pytest.approx(choice["precision"]), (name, choice)
                assert len(kept) / len(judged) == pytest.approx(choice["kept"])
    again = measure_thresholds(collection, RerankerSettings("bundled:tiny", calibration=str(path)), seed=3)
    assert again.slope == result.slope
    assert again.figures["calibrated"]["ece"] == pytest.approx(figures["calibrated"]["ece"], abs=1e-4)
    with pytest.raises(InvalidInputError, match="leave one of the two out"):
        measure_thresholds(collection, RerankerSettings("bundled:tiny", calibration=str(path)), calibrate="platt")


def test_a_result_file_is_read_and_computed_again(result: ThresholdResult, tmp_path: Path) -> None:
    path = tmp_path / "threshold.json"
    write_result(path, result)
    read = recomputed(read_result(path))
    assert read == result
    report = threshold_report(result)
    assert report.picture is not None
    assert report.picture[0].startswith(b"\x89PNG")
    text = report.markdown()
    for expected in (
        "precision ≥ 0.5",
        "recall ≥ 0.8",
        "highest F1",
        "calibrated, other queries",
        "WARNING: 6 queries",
    ):
        assert expected in text
    assert "precision of 0.5: threshold" in compare_results(result, read, ("a", "b")).markdown()


def pairs_file(path: Path, labels: list[object], queries: int = 2, **more: object) -> Path:
    texts = ["The with statement closes a file.", "Bread needs yeast.", "file.close()", "Tigers live in Asia."]
    json_lines(
        path,
        [
            {"query": f"how do I close file {n % queries}?", "document": texts[n % 4], "label": label, **more}
            for n, label in enumerate(labels)
        ],
    )
    return path


def test_labelled_pairs(tmp_path: Path) -> None:
    path = pairs_file(tmp_path / "pairs.jsonl", [1, 0, True, False, 2.0, 0, 0, 0])
    found = open_collection(str(path), candidates=2, every_label=True)
    assert found.depth == 4  # every label, whatever `candidates` says
    assert found.queries == {text: text for text in ("how do I close file 0?", "how do I close file 1?")}
    assert found.qrels["how do I close file 0?"] == {"line-1": 1, "line-3": 1, "line-5": 2, "line-7": 0}
    assert found.texts["line-1"] == "The with statement closes a file."
    assert list(open_collection(str(path), candidates=2).queries) == ["how do I close file 0?"]
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert open_collection(str(packed), candidates=2, every_label=True).qrels == found.qrels
    named = pairs_file(tmp_path / "named.jsonl", [1, 0], queries=1, query_id=7)
    assert list(open_collection(str(named), candidates=2, every_label=True).queries) == ["7"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"query": "q", "document": "d", "label": NaN}', "label is nan"),
        ('{"query": "q", "document": "d", "label": Infinity}', "label is inf"),
        ('{"query": "q", "document": "d", "label": 0.5}', "label is 0.5"),
        ('{"query": "q", "document": "d", "label": "1"}', "label is '1'"),
        ('{"query": "q", "document": "d", "label": null}', "label is None"),
        ('{"query": "q", "document": "d"}', "label is None"),
        ('{"query": " ", "document": "d", "label": 1}', "must not be blank"),
        ('{"query": "q", "document": 3, "label": 1}', "must be texts"),
        ('{"query": "other", "query_id": "1", "document": "d", "label": 1}', "is used for two queries"),
        ("[1]", "is not an object"),
        ("{", "not JSON"),
    ],
)
def test_unusable_labels_name_their_line(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"query": "q", "query_id": "1", "document": "d", "label": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(InvalidInputError, match="line 2") as caught:
        open_collection(str(path), candidates=2, every_label=True)
    assert why in str(caught.value)


def measured(path: Path, **options: Any) -> ThresholdResult:
    return measure_thresholds(
        open_collection(str(path), candidates=100, every_label=True), RerankerSettings("bundled:tiny"), **options
    )


@pytest.mark.parametrize(("label", "only"), [(0, "none is relevant"), (1, "all are relevant")])
def test_labels_of_one_kind_are_refused(tmp_path: Path, label: int, only: str) -> None:
    with pytest.raises(InvalidInputError, match=only):
        measured(pairs_file(tmp_path / "pairs.jsonl", [label] * 4))


def test_one_query_has_no_interval_by_queries(tmp_path: Path) -> None:
    result = measured(pairs_file(tmp_path / "pairs.jsonl", [1, 0, 1, 0], queries=1), calibrate="platt")
    assert all(each["threshold_interval"] is None for each in result.figures["choices"])
    assert result.figures["cross_fitted"] is None
    assert "WARNING: one query" in threshold_report(result).markdown()


def test_equal_scores_are_kept_or_dropped_together(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    json_lines(path, [{"query": f"q{n % 2}", "document": "the same text", "label": n // 2 % 2} for n in range(8)])
    result = measured(path)
    points = {
        (each["kind"], each["precision"], each["recall"])
        for each in result.figures["choices"]
        if each["threshold"] is not None
    }
    assert len(set(map(tuple, (result.collection.margins["q0"], [result.collection.margins["q0"][0]] * 4)))) == 1
    assert points
    assert result.figures["area_under_roc"] <= 1


def test_wishes_are_checked(tmp_path: Path) -> None:
    path = pairs_file(tmp_path / "pairs.jsonl", [1, 0, 1, 0])
    for options, why in (
        ({"precisions": [1.5]}, "precision=1.5"),
        ({"recalls": [0.0]}, "above 0"),
        ({"precisions": [math.nan]}, "precision=nan"),
        ({"calibrate": "isotonic"}, "calibrate='isotonic'"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            measured(path, **options)


def test_the_command(tmp_path: Path) -> None:
    path = pairs_file(tmp_path / "pairs.jsonl", [1, 0, 1, 0, 0, 0, 1, 0], queries=4)
    run = CliRunner().invoke
    arguments = ["bench", "threshold", str(path), "--model", "bundled:tiny", "--quiet"]
    folder, file = tmp_path / "out", tmp_path / "calibration.json"
    fitting = ["--calibrate", "temperature", "--calibration-output", str(file), "--output", str(folder)]
    fitted = run(app, [*arguments, "--devices", "cpu", *fitting])
    assert fitted.exit_code == 0, fitted.output
    assert json.loads((folder / "threshold.json").read_text())["settings"]["devices"] == "cpu"
    assert "precision ≥ 0.9" in fitted.output
    assert {each.name for each in folder.iterdir()} == {
        "threshold.json", "threshold.md", "threshold.html", "threshold.png", "threshold-calibration.json"
    }  # fmt: skip
    assert json.loads(file.read_text()) == json.loads((folder / "threshold-calibration.json").read_text())
    ranked = run(
        app,
        ["rank", "--query", "close a file", "--json", "--model", "bundled:tiny", "--calibration", str(file), "-"],
        input="The with statement closes a file.\nBread needs yeast.\n",
    )
    assert ranked.exit_code == 0, ranked.output
    hits = [json.loads(line) for line in ranked.stdout.splitlines() if line.startswith("{")]
    slope = json.loads(file.read_text())["slope"]
    assert [hit["score"] for hit in hits] == pytest.approx([1 / (1 + math.exp(-slope * hit["margin"])) for hit in hits])
    assert all(a["margin"] >= b["margin"] for a, b in pairwise(hits))
    refused = run(app, [*arguments, "--calibration-output", str(file)])
    assert isinstance(refused.exception, InvalidInputError)
