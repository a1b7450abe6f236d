"""How good an order is: nDCG and MRR of runs against graded judgements, by ir-measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import MissingDependencyError

Run = Mapping[str, Sequence[str]]
"""Query id -> document ids, best first."""


def evaluate(qrels: Mapping[str, Mapping[str, int]], run: Run) -> dict[str, float]:
    """nDCG@10 (gain = grade) and MRR@10 (grade 1 or 2 counts as found), means over all queries of `qrels`.

    A query that the run has no documents for counts as 0.

    Raises:
        MissingDependencyError: ir-measures is not installed.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise MissingDependencyError('ir_measures is missing: pip install "qwen3-ranker-plugins[demo]"') from error

    names = {ir_measures.nDCG @ 10: "nDCG@10", ir_measures.RR @ 10: "MRR@10"}
    totals = dict.fromkeys(names.values(), 0.0)
    # The measures sort by score themselves and break ties in ways of their own; counting ranks down leaves no ties.
    scores = {
        query_id: {document_id: float(-rank) for rank, document_id in enumerate(documents)}
        for query_id, documents in run.items()
    }
    for metric in ir_measures.iter_calc(list(names), {query: dict(grades) for query, grades in qrels.items()}, scores):
        totals[names[metric.measure]] += metric.value
    return {name: total / len(qrels) for name, total in totals.items()}
