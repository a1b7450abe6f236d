"""From margins of labelled pairs to thresholds with intervals, the reliability of the scores, and a calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..._version import __version__
from ...calibration import METHODS, Calibration
from ...checks import check_choice, check_probability
from ...config import RerankerSettings
from ...data.collection import Collection
from ...errors import InvalidInputError
from ...ranking import sigmoid
from ...reranker import Reranker
from ..machine import environment
from ..results import Result, plain
from .curves import (
    Band,
    Choice,
    Kind,
    Reliability,
    Sample,
    area_under_roc,
    find_thresholds,
    reliability,
    shortest_decimal,
)
from .fitting import cross_fitted, fit


@dataclass(frozen=True)
class LabelledMargins:
    """The pairs that were judged; the lists of a query have one length.

    Attributes:
        name, first_stage: see `Collection`.
        relevant_from: lowest grade that counts as relevant.
        judged_only: whether pairs without a label were left out; otherwise they count as not relevant.
        margins: query id -> margin of each pair.
        relevant: query id -> whether each pair is relevant.
        truncated_documents: number of documents that were cut.
    """

    name: str
    first_stage: str
    relevant_from: int
    judged_only: bool
    margins: dict[str, list[float]]
    relevant: dict[str, list[bool]]
    truncated_documents: int


@dataclass(frozen=True, kw_only=True)
class ThresholdResult(Result):
    """Raw margins and labels, with the figures that `evaluate` computes from them.

    Attributes:
        collection: the pairs.
        precisions, recalls: the targets.
        fitted: name of the calibration that was fitted to these labels; None for none.
        facts: `Reranker.judgement_facts` and facts about the engine, for the calibration's file.
        slope, intercept: of the calibration that was fitted or given; None for none.
    """

    kind: ClassVar[str] = "threshold"

    collection: LabelledMargins
    precisions: list[float]
    recalls: list[float]
    fitted: str | None = None
    facts: dict[str, str] = field(default_factory=dict)
    slope: float | None = None
    intercept: float | None = None
    figures: Any = None


@dataclass(frozen=True)
class ThresholdFigures:
    """The figures that are computed from the raw values.

    Attributes:
        choices: thresholds of the calibrated score, if there is a calibration, else of P(yes).
        uncalibrated: the same thresholds of P(yes); equal to those of `choices` without a calibration.
        area_under_roc: how often a relevant pair has a higher score than a pair that is not.
        raw: how reliable P(yes) is.
        calibrated: how reliable the calibrated score is on these labels, to which it may have been fitted.
        cross_fitted: how reliable calibrated scores are for queries that they were not fitted to; None if that cannot
            be measured, or nothing was fitted.
    """

    choices: list[Choice]
    uncalibrated: list[float | None]
    area_under_roc: float
    raw: Reliability
    calibrated: Reliability | None
    cross_fitted: Reliability | None


def measure_thresholds(
    collection: Collection,
    settings: RerankerSettings,
    *,
    precisions: Sequence[float] = (0.9,),
    recalls: Sequence[float] = (0.9,),
    calibrate: str | None = None,
    judged_only: bool = False,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> ThresholdResult:
    """Score the pairs of a collection and find thresholds.

    Args:
        collection: labelled pairs, opened with `every_label`.
        settings: settings of the reranker; a calibration in them is measured, too.
        precisions, recalls: the targets, each above 0 and at most 1.
        calibrate: a name from `calibration.METHODS` to fit; None to fit none.
        judged_only: leave out pairs that have no label.
        seed: seed of the resamples and of the parts of cross-fitting.
        progress: called after every query.

    Raises:
        InvalidInputError: an argument is unusable, or the labels are all of one kind.
    """
    for name, wanted in (("precision", precisions), ("recall", recalls)):
        for value in wanted:
            check_probability(name, value)
            if not value:
                raise InvalidInputError(name, value, "use a number above 0")
    if calibrate is not None:
        check_choice("calibrate", calibrate, METHODS)
        if settings.calibration is not None:
            raise InvalidInputError("calibrate", calibrate, "a calibration is given, too: leave one of the two out")
    about = environment()
    pairs = {
        query_id: [each for each in doc_ids if not judged_only or each in collection.qrels[query_id]]
        for query_id, doc_ids in collection.candidates.items()
    }
    labels = {
        query_id: [collection.qrels[query_id].get(each, 0) >= collection.relevant_from for each in doc_ids]
        for query_id, doc_ids in pairs.items()
        if doc_ids
    }
    _check_both_kinds(labels, collection)
    margins: dict[str, list[float]] = {}
    truncated = 0
    with Reranker(**asdict(settings)) as reranker:
        for query_id in labels:
            found = reranker.rerank(collection.queries[query_id], [collection.texts[each] for each in pairs[query_id]])
            margins[query_id] = [hit.margin for hit in sorted(found, key=lambda hit: hit.index)]
            truncated += sum(hit.truncated_tokens > 0 for hit in found)
            if progress is not None:
                progress()
        engine = reranker.describe().as_dict()
        calibration = reranker.calibration
        facts = reranker.judgement_facts()
    line = (None, None) if calibration is None else (calibration.slope, calibration.intercept)
    if calibrate is not None:
        line = fit(calibrate, *arrays(margins, labels)[:2])
    result = ThresholdResult(
        about=about.after(engine),
        settings=asdict(settings),
        seed=seed,
        collection=LabelledMargins(
            collection.name,
            collection.first_stage,
            collection.relevant_from,
            judged_only,
            margins,
            labels,
            truncated,
        ),
        precisions=list(precisions),
        recalls=list(recalls),
        fitted=calibrate,
        facts={**facts, "engine": engine["engine"], "dtype": engine["dtype"]},
        slope=line[0],
        intercept=line[1],
    )
    return replace(result, figures=plain(evaluate(result)))


def _check_both_kinds(labels: dict[str, list[bool]], collection: Collection) -> None:
    """Refuse labels from which precision or recall cannot be computed.

    Raises:
        InvalidInputError: there are no labels, or all are of one kind.
    """
    count = sum(map(len, labels.values()))
    relevant = sum(map(sum, labels.values()))
    if not count:
        raise InvalidInputError(
            "SOURCE", collection.name, "has no labelled pair: give pairs, or leave out --judged-only"
        )
    if relevant in (0, count):
        only = "none is" if not relevant else "all are"
        raise InvalidInputError(
            "SOURCE",
            collection.name,
            f"of its {count} pairs {only} relevant (label {collection.relevant_from} or more): a threshold needs both "
            "kinds; give the other kind too, or set --relevant-from",
        )


def arrays(
    margins: dict[str, list[float]], labels: dict[str, list[bool]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.intp]]:
    """Returns (margins, labels, number of the query) of all pairs."""
    numbers = [np.full(len(each), number) for number, each in enumerate(margins.values())]
    values = [np.asarray(margins[each], dtype=np.float64) for each in margins]
    relevant = [np.asarray(labels[each], dtype=np.bool_) for each in margins]
    return np.concatenate(values), np.concatenate(relevant), np.concatenate(numbers).astype(np.intp)


def calibration_of(result: ThresholdResult) -> Calibration | None:
    """The calibration that was fitted, with facts about the fit; None if none was fitted."""
    if result.fitted is None or result.slope is None or result.intercept is None:
        return None
    data = result.collection
    counts = {
        "data": data.name,
        "relevant_from": data.relevant_from,
        "queries": len(data.margins),
        "pairs": sum(map(len, data.margins.values())),
        "relevant": sum(map(sum, data.relevant.values())),
        "model_name": result.settings["model"],
        "max_length": result.settings["max_length"],
        "version": __version__,
    }
    return Calibration(result.fitted, result.slope, result.intercept, {**result.facts, **counts})


def evaluate(result: ThresholdResult) -> ThresholdFigures:
    """Compute thresholds and reliability from the raw values of a result."""
    return evaluated(result)[0]


def evaluated(result: ThresholdResult) -> tuple[ThresholdFigures, Band]:
    """The figures of `evaluate`, and the further values that a picture shows."""
    margins, relevant, queries = arrays(result.collection.margins, result.collection.relevant)
    odds = margins
    if result.slope is not None and result.intercept is not None:
        odds = result.slope * margins + result.intercept
    sample = Sample.of(sigmoid(odds), relevant, queries)
    wishes: list[tuple[Kind, float]] = [("precision", each) for each in result.precisions]
    wishes += [("recall", each) for each in result.recalls]
    seed = result.seed or 0
    choices, band = find_thresholds(sample, wishes, seed=seed)
    held_out = None
    if result.fitted is not None:
        held_out = cross_fitted(result.fitted, margins, relevant, queries, seed=seed)
    figures = ThresholdFigures(
        choices,
        _uncalibrated(choices, np.sort(margins)[::-1]),
        area_under_roc(Sample.of(margins, relevant, queries)),
        reliability(margins, relevant),
        None if result.slope is None else reliability(odds, relevant),
        None if held_out is None else reliability(held_out, relevant),
    )
    return figures, band


def _uncalibrated(choices: Sequence[Choice], margins: NDArray[np.float64]) -> list[float | None]:
    """Thresholds of P(yes) that keep as many pairs as the choices do."""
    scores = sigmoid(margins)
    found: list[float | None] = []
    for each in choices:
        if each.kept is None:
            found.append(None)
            continue
        count = round(each.kept * len(scores))
        below = scores[scores < scores[count - 1]]
        found.append(shortest_decimal(float(below[0]) if len(below) else None, float(scores[count - 1])))
    return found
