from __future__ import annotations

import random
from itertools import product
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import ttest_rel

from qwen3_ranker_plugins.bench.quality.metrics import decisions, per_query, reranked
from qwen3_ranker_plugins.bench.statistics import paired, summary

from . import arithmetic


def random_data() -> tuple[dict[str, dict[str, int]], dict[str, list[str]]]:
    choose = random.Random(5)
    documents = [f"d{n}" for n in range(40)]
    qrels, run = {}, {}
    for number in range(12):
        judged = choose.sample(documents, 9)
        qrels[f"q{number}"] = {doc_id: choose.choice([0, 0, 1, 2, 3]) for doc_id in judged} | {judged[0]: 3}
        run[f"q{number}"] = choose.sample(documents, 20)
    run["q3"] = []
    return qrels, run


@pytest.mark.parametrize("relevant_from", [1, 2])
def test_measures_equal_their_definitions(relevant_from: int) -> None:
    """Graded judgements, unjudged documents, relevant ones that were not found, a query without any document."""
    qrels, run = random_data()
    found = per_query(qrels, run, relevant_from=relevant_from, depth=20)
    assert list(found) == ["nDCG@10", "MRR@10", "MAP", "Recall@10", "Recall@20"]
    for query_id, grades in qrels.items():
        relevant = {doc_id for doc_id, grade in grades.items() if grade >= relevant_from}
        ranked = run[query_id]
        expected = {
            "nDCG@10": arithmetic.ndcg(grades, ranked),
            "MRR@10": arithmetic.reciprocal_rank(relevant, ranked),
            "MAP": arithmetic.average_precision(relevant, ranked),
            "Recall@10": arithmetic.recall(relevant, ranked, 10),
            "Recall@20": arithmetic.recall(relevant, ranked, 20),
        }
        assert {name: values[query_id] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)
    assert found["nDCG@10"]["q3"] == 0
    assert any(0 < value < 1 for value in found["nDCG@10"].values())


def test_equal_margins_keep_the_order_they_came_in() -> None:
    assert reranked(["a", "b", "c", "d"], [0.5, 2.0, 0.5, 2.0]) == ["b", "d", "a", "c"]


def test_decisions_come_with_what_they_must_be_compared_with() -> None:
    """Nine of ten pairs are irrelevant: saying no to all is right in 90%, and worth nothing."""
    relevant = [True] + [False] * 9
    always_no = decisions(relevant, [-1.0] * 10)
    assert always_no == {"accuracy": 0.9, "base_rate": 0.9, "balanced_accuracy": 0.5, "relevant": 0.1}
    at_the_edge = decisions(relevant, [0.0] + [-1.0] * 8 + [3.0])  # P(yes) of exactly 0.5 is a yes
    assert at_the_edge["accuracy"] == pytest.approx(0.9)
    assert at_the_edge["balanced_accuracy"] == pytest.approx((1 + 8 / 9) / 2)


def test_significance_equals_enumeration_and_the_paired_t_test() -> None:
    a = [0.1, 0.5, 0.3, 0.9, 0.2, 0.4, 0.0, 0.6]
    b = [0.4, 0.6, 0.3, 0.8, 0.6, 0.9, 0.1, 0.7]
    found = paired(a, b, seed=0)
    delta = np.subtract(b, a)
    means = [np.mean(delta * signs) for signs in product((1, -1), repeat=len(delta))]
    exact = np.mean([abs(mean) >= abs(delta.mean()) - 1e-12 for mean in means])
    assert found.randomisation == pytest.approx(exact, abs=0.015)
    expected = ttest_rel(b, a)
    assert found.t_test == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.difference == pytest.approx(fmean(delta))
    assert (found.wins, found.losses, found.ties) == (6, 1, 1)


def test_rounding_is_no_loss() -> None:
    found = paired([0.1 + 0.2, 0.5, 0.2], [0.3, 0.6, 0.4], seed=0)
    assert (found.wins, found.losses, found.ties) == (2, 0, 1)


def test_no_difference_is_no_evidence() -> None:
    found = paired([0.5, 0.5, 0.1], [0.5, 0.5, 0.1], seed=0)
    assert (found.difference, found.t_test, found.randomisation, found.ties) == (0, 1, 1, 3)


def test_one_gain_for_every_query_needs_no_warning() -> None:
    """The t statistic is infinite; scipy would warn, and warnings are errors here."""
    found = paired([0.0] * 8, [0.25] * 8, seed=0)
    assert (found.low, found.high, found.t_test) == (0.25, 0.25, 0.0)
    assert found.randomisation == pytest.approx(2 / 2**8, abs=0.005)


def test_percentiles() -> None:
    found = summary([4.0, 1.0, 3.0, 2.0])
    assert found["p50"] == 2.5
    assert found["p90"] == pytest.approx(3.7)
    assert (found["min"], found["max"], found["n"]) == (1.0, 4.0, 4)
    assert found["stdev"] == pytest.approx((5 / 3) ** 0.5)
    assert summary([7.0])["stdev"] == 0
