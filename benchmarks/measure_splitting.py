"""Compare one long document with the same text as passages: `python benchmarks/measure_splitting.py OUTPUT.json`.

The bundled model runs on a CPU. Times are processor time (user and system) of this process, which other load hardly
affects; they are medians of five calls, each with a new query.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from qwen3_ranker_plugins import Reranker, Usage
from qwen3_ranker_plugins.data.demo import load_demo_corpus

TOKENS, PASSAGES, REPEAT = 7000, 30, 5


def measured(reranker: Reranker, documents: list[str]) -> dict[str, float]:
    seconds, usages = [], list[Usage]()
    for number in range(-1, REPEAT):
        started = time.process_time()
        usages.append(reranker.rerank(f"how is a file closed? ({number})", documents).usage)
        if number >= 0:  # the first call warms up
            seconds.append(time.process_time() - started)
    return {
        "documents": len(documents),
        "computed_tokens": usages[-1].computed_tokens,
        "processor_seconds": round(statistics.median(seconds), 3),
    }


def main(output: Path) -> None:
    corpus = load_demo_corpus()
    words = " ".join(document.content for document in corpus.documents.values()).split()
    with Reranker("bundled:tiny", device="cpu") as reranker:
        tokens_per_word = reranker.rerank("q", [" ".join(words[:4000])]).usage.computed_tokens / 4000
        words = words[: round(TOKENS / tokens_per_word)]
        step = -(-len(words) // PASSAGES)
        passages = [" ".join(words[first : first + step]) for first in range(0, len(words), step)]
        rows = {
            "one document": measured(reranker, [" ".join(words)]),
            "the same text in passages": measured(reranker, passages),
        }
    result = {
        "command": "python benchmarks/measure_splitting.py docs/results/splitting.json",
        "date": datetime.now(UTC).date().isoformat(),
        "model": "bundled:tiny, float32",
        "device": f"CPU, {os.cpu_count()} cores, shared with other work",
        "torch": torch.__version__,
        "rows": rows,
    }
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
