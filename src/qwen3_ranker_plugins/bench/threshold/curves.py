"""Precision and recall of every threshold, thresholds for a target, and intervals by resampling queries.

Independent of rerankers: the input is arrays of scores, labels and query numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["precision", "recall", "F1"]

#: Probability outside of an interval, on both sides together.
CONFIDENCE = 0.95
#: Number of resamples of the queries.
RESAMPLES = 2_000
#: Maximum number of thresholds with an interval in the picture: half of them are spread evenly over the distinct
#: scores, the others over the range of the scores.
GRID = 200
_NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class Points:
    """The effect of each distinct score as a threshold, highest first; arrays of one length.

    Attributes:
        scores: thresholds; a pair is kept if its score is at least this.
        ends: number of pairs that are kept.
        hits: number of relevant pairs that are kept.
        relevant: number of relevant pairs in all.
    """

    scores: Floats
    ends: NDArray[np.int64]
    hits: NDArray[np.int64]
    relevant: int

    @property
    def precision(self) -> Floats:
        """Share of the kept pairs that are relevant."""
        return self.hits / self.ends

    @property
    def recall(self) -> Floats:
        """Share of the relevant pairs that are kept."""
        return self.hits / self.relevant

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall, 2 * hits / (kept + relevant)."""
        return 2 * self.hits / (self.ends + self.relevant)


@dataclass(frozen=True)
class Sample:
    """Labelled pairs, by descending score.

    Attributes:
        scores: float64 [n_pairs].
        relevant: bool [n_pairs].
        queries: int [n_pairs], the number of each pair's query, from 0.
    """

    scores: Floats
    relevant: NDArray[np.bool_]
    queries: NDArray[np.intp]

    @classmethod
    def of(cls, scores: Floats, relevant: NDArray[np.bool_], queries: NDArray[np.intp]) -> Sample:
        """Make a sample; sorts the pairs by score."""
        order = np.argsort(-scores, kind="stable")
        return cls(scores[order], relevant[order], queries[order])

    @property
    def n_queries(self) -> int:
        """Number of queries."""
        return int(self.queries.max()) + 1

    def points(self) -> Points:
        """Every distinct score as a threshold: equal scores are kept together."""
        last = np.append(np.flatnonzero(np.diff(self.scores)), len(self.scores) - 1)
        hits = np.cumsum(self.relevant)
        return Points(self.scores[last], last + 1, hits[last], int(hits[-1]))


def choose(kind: Kind, wanted: float, precision: Floats, recall: Floats, f1: Floats) -> int | None:
    """The position of the best threshold for a target; None if no threshold reaches the target.

    Args:
        kind: "precision": among all thresholds with at least this precision, the one with the highest recall, and with
            the highest precision among equals. "recall": the highest threshold with at least this recall. "F1": the
            threshold with the highest F1, whatever `wanted` is.
        wanted: the target, from 0 to 1.
        precision, recall, f1: values of each threshold, highest threshold first; NaN if nothing is kept.
    """
    if kind == "F1":
        return None if np.isnan(f1).all() else int(np.nanargmax(f1))
    if kind == "recall":
        enough = np.flatnonzero(recall >= wanted - 1e-12)
        return int(enough[0]) if len(enough) else None
    enough = np.flatnonzero(precision >= wanted - 1e-12)  # a NaN does not reach the target
    if not len(enough):
        return None
    best = recall[enough[-1]]  # recall never decreases when the threshold does
    return int(enough[np.flatnonzero(recall[enough] >= best - 1e-12)[0]])


@dataclass(frozen=True)
class Interval:
    """A 95% interval; a bound is None if too many resamples have no threshold that reaches the target."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class Choice:
    """A threshold for a target.

    Attributes:
        kind, wanted: the target, see `choose`.
        threshold: the shortest decimal that keeps the same pairs; None if no threshold reaches the target.
        place: its position among the points.
        precision, recall, f1, kept: values of this threshold on the pairs; kept is the share of pairs that are kept.
        threshold_interval: interval of the threshold for the same target on other queries of the same kind.
        precision_interval, recall_interval: intervals of this threshold's values on other queries of the same kind.
        attained: share of the resamples in which some threshold reaches the target.
    """

    kind: Kind
    wanted: float | None
    threshold: float | None
    place: int | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    kept: float | None = None
    threshold_interval: Interval | None = None
    precision_interval: Interval | None = None
    recall_interval: Interval | None = None
    attained: float | None = None


@dataclass(frozen=True)
class Band:
    """Precision, recall and F1 of some thresholds with 95% intervals, for a picture; arrays of one length."""

    thresholds: Floats
    precision: Floats
    recall: Floats
    f1: Floats
    precision_band: tuple[Floats, Floats]
    recall_band: tuple[Floats, Floats]


def find_thresholds(sample: Sample, wishes: Sequence[tuple[Kind, float]], *, seed: int) -> tuple[list[Choice], Band]:
    """A threshold for each target, and for the highest F1, with intervals.

    The intervals are percentiles over resamples of whole queries, because pairs of one query are not independent. If
    all pairs are decided correctly, the bootstrap interval has no width; intervals of precision and recall are
    therefore at least as wide as Wilson's, which assumes independent pairs.

    Args:
        sample: a sample with pairs of both kinds.
        wishes: the targets, see `choose`.
        seed: seed of the resamples.
    """
    points = sample.points()
    every: list[tuple[Kind, float]] = [*wishes, ("F1", 1.0)]
    places = [choose(kind, wanted, points.precision, points.recall, points.f1) for kind, wanted in every]
    last = len(points.scores) - 1
    levels = np.linspace(points.scores[0], points.scores[-1], GRID // 2)
    by_score = np.minimum(np.searchsorted(-points.scores, -levels), last)
    wanted_places = [place for place in places if place is not None]
    by_place = np.linspace(0, last, GRID // 2).astype(np.intp)
    shown = np.unique(np.concatenate([by_place, by_score, wanted_places]).astype(np.intp))
    resampled = _Resampled(sample, points, every, shown, seed) if sample.n_queries > 1 else None
    row = {int(place): number for number, place in enumerate(shown)}
    precisions, recalls = points.precision, points.recall
    low_p, high_p = _widened(points.hits[shown], points.ends[shown])
    low_r, high_r = _widened(points.hits[shown], np.full(len(shown), points.relevant))
    if resampled is not None:
        low_p, high_p = _outer((low_p, high_p), resampled.precision)
        low_r, high_r = _outer((low_r, high_r), resampled.recall)
    choices = []
    for number, ((kind, wanted), place) in enumerate(zip(every, places, strict=True)):
        found = None if resampled is None else resampled.thresholds[:, number]
        attained = None if found is None else float(np.isfinite(found).mean())
        goal = None if kind == "F1" else wanted
        if place is None:
            choices.append(Choice(kind, goal, None, attained=attained))
            continue
        at = row[place]
        below = points.scores[place + 1] if place + 1 < len(points.scores) else None
        choices.append(
            Choice(
                kind,
                goal,
                shortest_decimal(below, float(points.scores[place])),
                place,
                float(precisions[place]),
                float(recalls[place]),
                float(points.f1[place]),
                float(points.ends[place] / len(sample.scores)),
                None if found is None else _percentiles(found),
                Interval(float(low_p[at]), float(high_p[at])),
                Interval(float(low_r[at]), float(high_r[at])),
                attained,
            )
        )
    bands = ((low_p, high_p), (low_r, high_r))
    return choices, Band(points.scores[shown], precisions[shown], recalls[shown], points.f1[shown], *bands)


class _Resampled:
    """Thresholds, precision and recall over resamples of whole queries, drawn with replacement.

    Attributes:
        thresholds: float64 [n_resamples, n_wishes]; infinite if no threshold reaches the target.
        precision, recall: (low, high) of each shown point, the 2.5 and 97.5 percentiles.
    """

    def __init__(
        self, sample: Sample, points: Points, wishes: Sequence[tuple[Kind, float]], shown: NDArray[np.intp], seed: int
    ) -> None:
        random = np.random.default_rng(seed)
        ends = points.ends - 1
        self.thresholds = np.full((RESAMPLES, len(wishes)), math.inf)
        precisions = np.full((RESAMPLES, len(shown)), math.nan)
        recalls = np.full((RESAMPLES, len(shown)), math.nan)
        for number in range(RESAMPLES):
            drawn = random.integers(sample.n_queries, size=sample.n_queries)
            weights = np.bincount(drawn, minlength=sample.n_queries)[sample.queries]
            kept = np.cumsum(weights)[ends]
            hits = np.cumsum(weights * sample.relevant)[ends]
            with np.errstate(invalid="ignore"):  # 0 / 0: nothing is kept, or nothing relevant was drawn
                precision, recall = hits / kept, hits / hits[-1]
                f1 = 2 * hits / (kept + hits[-1])
            precisions[number], recalls[number] = precision[shown], recall[shown]
            if not hits[-1]:
                continue
            for place, (kind, wanted) in enumerate(wishes):
                if (found := choose(kind, wanted, precision, recall, f1)) is not None:
                    self.thresholds[number, place] = points.scores[found]
        self.precision, self.recall = _quantiles(precisions), _quantiles(recalls)


def _quantiles(values: Floats) -> tuple[Floats, Floats]:
    """The 2.5 and 97.5 percentiles of each column, ignoring NaN; NaN for a column that has nothing else."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.full(values.shape[1], math.nan), np.full(values.shape[1], math.nan)
    known = ~np.isnan(values).all(axis=0)
    if known.any():
        low[known], high[known] = np.nanpercentile(values[:, known], (tail, 100 - tail), axis=0)
    return low, high


def _percentiles(thresholds: Floats) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    # Without interpolation, which an infinite neighbour would make impossible.
    low, high = np.quantile(thresholds, (tail, 1 - tail), method="inverted_cdf").tolist()
    return Interval(low if math.isfinite(low) else None, high if math.isfinite(high) else None)


def _widened(hits: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Wilson's 95% interval of hits / counts (Wilson 1927, https://doi.org/10.2307/2276774)."""
    z = _NORMAL_QUANTILE
    share = hits / counts
    middle = (share + z**2 / (2 * counts)) / (1 + z**2 / counts)
    half = z / (1 + z**2 / counts) * np.sqrt(share * (1 - share) / counts + z**2 / (4 * counts**2))
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def _outer(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """The wider of two intervals on each side; NaN is ignored."""
    return np.fmin(first[0], second[0]), np.fmax(first[1], second[1])


def shortest_decimal(below: float | None, threshold: float) -> float:
    """The decimal with the fewest digits that keeps the same pairs.

    Args:
        below: the highest score that must not be kept; None if all are kept.
        threshold: the lowest score that must be kept.
    """
    lowest = 0.0 if below is None else below
    for digits in range(1, 17):
        scale = 10**digits
        # Round down from the threshold: the highest such decimal is farthest from the score below.
        rounded: float = math.floor(threshold * scale) / scale
        if lowest < rounded <= threshold or (below is None and 0 <= rounded <= threshold):
            return rounded
    return threshold


@dataclass(frozen=True)
class Bin:
    """Pairs whose score lies in [low, high), or [low, 1] for the last bin.

    Attributes:
        low, high: bounds of the bin.
        pairs: number of pairs.
        score: mean score of the pairs.
        relevant: share of the pairs that are relevant.
    """

    low: float
    high: float
    pairs: int
    score: float
    relevant: float


@dataclass(frozen=True)
class Reliability:
    """How well scores are calibrated.

    Attributes:
        bins: the bins that are not empty.
        ece: expected calibration error: mean of |score - share of relevant pairs| over the bins, weighted by pairs.
        brier: mean of (score - label)^2.
        log_loss: mean of -log P(label), in nats.
    """

    bins: list[Bin]
    ece: float
    brier: float
    log_loss: float


def reliability(log_odds: Floats, relevant: NDArray[np.bool_], bins: int = 10) -> Reliability:
    """Compare scores with labels, in bins of equal width (Naeini et al. 2015, Guo et al. 2017).

    Args:
        log_odds: float64 [n_pairs]; the score is their sigmoid.
        relevant: bool [n_pairs].
        bins: number of bins.
    """
    scores = 0.5 * (1.0 + np.tanh(0.5 * log_odds))
    numbers = np.minimum((scores * bins).astype(np.intp), bins - 1)
    found = []
    for number in range(bins):
        inside = numbers == number
        if count := int(inside.sum()):
            share, mean = float(relevant[inside].mean()), float(scores[inside].mean())
            found.append(Bin(number / bins, (number + 1) / bins, count, mean, share))
    return Reliability(
        found,
        ece=sum(each.pairs * abs(each.score - each.relevant) for each in found) / len(scores),
        brier=float(((scores - relevant) ** 2).mean()),
        # log(1 + exp(-x)) of the log-odds of what is true
        log_loss=float(np.logaddexp(0.0, np.where(relevant, -log_odds, log_odds)).mean()),
    )


def area_under_roc(sample: Sample) -> float:
    """How often a relevant pair has a higher score than a pair that is not, across all queries; ties count half."""
    points = sample.points()
    hits = np.diff(points.hits, prepend=0)
    others = np.diff(points.ends - points.hits, prepend=0)
    below = others[::-1].cumsum()[::-1] - others
    return float((hits * (below + 0.5 * others)).sum() / (hits.sum() * others.sum()))
