"""The measures once more, from their definitions, to compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def ndcg(grades: Mapping[str, int], ranked: Sequence[str], k: int = 10) -> float:
    def dcg(gains: Sequence[int]) -> float:
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:k], start=1))

    return dcg([grades.get(doc_id, 0) for doc_id in ranked]) / dcg(sorted(grades.values(), reverse=True))


def reciprocal_rank(relevant: set[str], ranked: Sequence[str], k: int = 10) -> float:
    return next((1 / rank for rank, doc_id in enumerate(ranked[:k], start=1) if doc_id in relevant), 0.0)


def average_precision(relevant: set[str], ranked: Sequence[str]) -> float:
    hits, total = 0, 0.0
    for rank, doc_id in enumerate(ranked, start=1):
        if doc_id in relevant:
            hits += 1
            total += hits / rank
    return total / len(relevant)


def recall(relevant: set[str], ranked: Sequence[str], k: int) -> float:
    return len(relevant & set(ranked[:k])) / len(relevant)
