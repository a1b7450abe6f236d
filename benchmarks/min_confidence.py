"""Show what `min_confidence` and `score_threshold` keep of the demo corpus: `python benchmarks/min_confidence.py`.

Reads the margins and judgements of docs/results/bench-quality-demo.json (49 questions, the 10 best passages of BM25 for
each) and prints, for each limit, how many of the relevant pairs are kept and which share of the kept pairs is relevant.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

RESULT = Path(__file__).parents[1] / "docs" / "results" / "bench-quality-demo.json"


@dataclass(frozen=True)
class Kept:
    """What a limit keeps.

    Attributes:
        limit: in words.
        relevant, all: numbers of pairs.
    """

    limit: str
    relevant: int
    all: int

    @property
    def precision(self) -> float:
        return self.relevant / self.all


def judged_margins() -> list[tuple[float, bool]]:
    """(margin, whether the pair is judged relevant) of every pair that was reranked with the official prompt."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    grades = result["collection"]["qrels"]
    system = result["systems"][0]
    return [
        (margin, grades.get(query, {}).get(document, 0) > 0)
        for query, documents in result["collection"]["candidates"].items()
        for document, margin in zip(documents, system["margins"][query], strict=True)
    ]


def measured() -> list[Kept]:
    pairs = judged_margins()
    rows = [Kept("no limit", sum(relevant for _, relevant in pairs), len(pairs))]
    for threshold in (0.1, 0.2, 0.3, 0.5):
        kept = [relevant for margin, relevant in pairs if 1 / (1 + math.exp(-margin)) >= threshold]
        rows.append(Kept(f"`score_threshold={threshold}`", sum(kept), len(kept)))
    kept = [relevant for margin, relevant in pairs if math.tanh(abs(margin) / 2) >= 0.5]
    return [*rows, Kept("`min_confidence=0.5`", sum(kept), len(kept))]


if __name__ == "__main__":
    for kept in measured():
        print(f"| {kept.limit} | {kept.relevant} | {kept.all} | {kept.precision:.2f} |")
