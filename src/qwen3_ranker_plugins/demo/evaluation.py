"""Quality of a ranking: nDCG and MRR of runs against graded judgements, computed by ir-measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import MissingDependencyError
from ..pip_command import pip_install

NDCG, MRR = "nDCG@10", "MRR@10"

Run = Mapping[str, Sequence[str]]
"""Query id -> document ids, best first."""

Values = Mapping[str, Mapping[str, float]]
"""Measure -> query id -> value."""


def evaluate_each(qrels: Mapping[str, Mapping[str, int]], run: Run) -> Values:
    """nDCG@10 (gain = grade) and MRR@10 (grade 1 or 2 counts as found) of each query of `qrels`.

    A query without documents in the run counts as 0.

    Raises:
        MissingDependencyError: ir-measures is not installed.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise MissingDependencyError(f"ir_measures is missing: {pip_install('demo')}") from error

    names = {ir_measures.nDCG @ 10: NDCG, ir_measures.RR @ 10: MRR}
    values = {name: dict.fromkeys(qrels, 0.0) for name in names.values()}
    # The measures sort by score and each breaks ties in its own way. Negative ranks as scores leave no ties.
    scores = {
        query_id: {document_id: float(-rank) for rank, document_id in enumerate(documents)}
        for query_id, documents in run.items()
    }
    for metric in ir_measures.iter_calc(list(names), {query: dict(grades) for query, grades in qrels.items()}, scores):
        values[names[metric.measure]][metric.query_id] = metric.value
    return values


def evaluate(qrels: Mapping[str, Mapping[str, int]], run: Run) -> dict[str, float]:
    """The means of `evaluate_each` over all queries."""
    return {name: sum(each.values()) / len(qrels) for name, each in evaluate_each(qrels, run).items()}


@dataclass(frozen=True)
class Gain:
    """The mean difference of a measure between two orders of the same queries.

    Attributes:
        mean: mean of after - before.
        low, high: its 95% confidence interval, by Student's t; `qwen3-ranker bench quality` computes the same.
        better, worse: number of queries whose value rose, and fell.
    """

    mean: float
    low: float
    high: float
    better: int
    worse: int


def gain(before: Mapping[str, float], after: Mapping[str, float]) -> Gain:
    """What changed from `before` to `after`: query id -> value, for at least two queries, the same in both.

    Raises:
        MissingDependencyError: scipy is not installed.
    """
    try:
        from scipy.stats import sem, t
    except ImportError as error:
        raise MissingDependencyError(f"scipy is missing: {pip_install('demo')}") from error
    differences = [after[query_id] - value for query_id, value in before.items()]
    mean = sum(differences) / len(differences)
    half = float(t.ppf(0.975, len(differences) - 1) * sem(differences))
    # Sums of the same values in another order differ by rounding.
    better, worse = (sum(sign * each > 1e-12 for each in differences) for sign in (1, -1))
    return Gain(mean, mean - half, mean + half, better, worse)
