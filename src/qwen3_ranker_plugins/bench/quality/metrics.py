"""nDCG, MRR, MAP and recall of each query, by ir-measures; and how often yes/no at 0.5 is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from ...errors import MissingDependencyError
from ...pip_command import pip_install
from ...ranking import best_first

Grades = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Sequence[str]]
"""Query id -> document ids, best first."""
PerQuery = dict[str, dict[str, float]]
"""Measure -> query id -> value."""

MAIN_MEASURE = "nDCG@10"


def per_query(qrels: Grades, run: Run, *, relevant_from: int = 1, depth: int = 100) -> PerQuery:
    """Every measure for every query of `qrels`; a query without documents in the run has the value 0.

    nDCG has gain = grade and discount 1 / log2(rank + 1); for the others, grades from `relevant_from` on are relevant.

    Raises:
        MissingDependencyError: ir-measures is not installed.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise MissingDependencyError(f"measuring needs ir-measures: {pip_install('bench')}") from error
    rel = relevant_from
    wanted: dict[Any, str] = {
        ir_measures.nDCG @ 10: MAIN_MEASURE,
        ir_measures.RR(rel=rel) @ 10: "MRR@10",
        ir_measures.AP(rel=rel): "MAP",
        ir_measures.R(rel=rel) @ 10: "Recall@10",
    }
    if depth > 10:
        wanted[ir_measures.R(rel=rel) @ depth] = f"Recall@{depth}"
    values: PerQuery = {name: dict.fromkeys(qrels, 0.0) for name in wanted.values()}
    # The measures sort by score and break ties in their own ways; scores that count ranks down have no ties.
    scores = {
        query_id: {doc_id: float(-rank) for rank, doc_id in enumerate(doc_ids)}
        for query_id, doc_ids in run.items()
        if doc_ids and query_id in qrels
    }
    grades = {query_id: dict(judged) for query_id, judged in qrels.items()}
    for metric in ir_measures.iter_calc(list(wanted), grades, scores):
        values[wanted[metric.measure]][metric.query_id] = float(metric.value)
    return values


def means(values: PerQuery) -> dict[str, float]:
    """Measure -> mean over queries."""
    return {name: fmean(each.values()) for name, each in values.items()}


def reranked(candidates: Sequence[str], margins: Sequence[float]) -> list[str]:
    """Candidates as `Reranker.rerank` orders them."""
    return [candidates[place] for place in best_first(np.asarray(margins, dtype=np.float64))]


def decisions(relevant: Sequence[bool], margins: Sequence[float]) -> dict[str, float]:
    """How often "P(yes) >= 0.5" is right, with the figures to compare that with.

    Returns:
        accuracy: share of pairs where the decision is right.
        base_rate: accuracy of always giving the more common answer.
        balanced_accuracy: mean of the share of relevant pairs and the share of other pairs that are decided correctly;
            0.5 is chance. If there is only one kind of pair, it is the share of that kind, never NaN.
        relevant: share of pairs that are relevant.
    """
    right = {True: 0, False: 0}
    total = {True: 0, False: 0}
    for truth, margin in zip(relevant, margins, strict=True):
        total[truth] += 1
        right[truth] += (margin >= 0) == truth
    count = len(relevant)
    return {
        "accuracy": sum(right.values()) / count,
        "base_rate": max(total.values()) / count,
        "balanced_accuracy": fmean(right[kind] / total[kind] for kind in (True, False) if total[kind]),
        "relevant": total[True] / count,
    }
