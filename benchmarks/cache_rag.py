"""Measure what a cache of scores saves in a RAG pipeline.

    python benchmarks/cache_rag.py -o docs/results/cache_rag.json

A stream of questions about the demo corpus, each with BM25's best passages, is ranked without a cache, with a cache in
memory, and by a second run that uses the cache file of the first one. The frequencies of questions follow a Zipf
distribution, as in query logs; some questions are rephrased. Then a tenth of the passages changes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.bench.machine import environment
from qwen3_ranker_plugins.bench.results import plain
from qwen3_ranker_plugins.data.bm25 import BM25
from qwen3_ranker_plugins.data.demo import load_demo_corpus

#: Ways to ask the same. They are other texts to the model, and so other keys.
_PARAPHRASES = ("{}", "please explain: {}", "{} (in Python)")


def stream(requests: int, paraphrased: float, seed: int) -> list[str]:
    """Questions in the order in which they are asked.

    Args:
        requests: how many.
        paraphrased: share of them that are asked in other words.
        seed: of the choices.
    """
    random = np.random.default_rng(seed)
    questions = list(load_demo_corpus().queries.values())
    weights = 1 / np.arange(1, len(questions) + 1)
    asked = random.choice(random.permutation(len(questions)), size=requests, p=weights / weights.sum())
    words = np.where(random.random(requests) < paraphrased, random.integers(1, len(_PARAPHRASES), requests), 0)
    return [_PARAPHRASES[way].format(questions[number]) for number, way in zip(asked, words, strict=True)]


def answer(questions: list[str], texts: dict[str, str], candidates: int, **settings: Any) -> dict[str, Any]:
    """Retrieve and rerank for each question; returns times and counts."""
    index = BM25(texts.items())
    found = [[texts[each] for each in index.search(question, candidates)] for question in questions]
    with Reranker(**settings) as reranker:
        reranker.score("warm up", ["a text"])
        before = reranker.cache_statistics()
        margins, seconds, computed = [], [], 0
        for question, documents in zip(questions, found, strict=True):
            started = time.perf_counter()
            result = reranker.rerank(question, documents)
            seconds.append(time.perf_counter() - started)
            computed += result.usage.computed_tokens
            margins.append({hit.index: hit.margin for hit in result})
        after = reranker.cache_statistics()
    documents = sum(map(len, found))
    hits = 0 if after is None or before is None else after.hits - before.hits
    return {
        "requests": len(questions),
        "distinct_questions": len(set(questions)),
        "documents": documents,
        "hits": hits,
        "hit_rate": hits / documents,
        "seconds": sum(seconds),
        "median_ms": 1000 * float(np.median(seconds)),
        "computed_tokens": computed,
        "cache_bytes": 0 if after is None else after.bytes,
        "margins": margins,
    }


def largest_difference(a: list[dict[int, float]], b: list[dict[int, float]]) -> float:
    """Between margins of the same request and document."""
    return max(abs(one[index] - other[index]) for one, other in zip(a, b, strict=True) for index in one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="file for the result")
    parser.add_argument("--model", default="bundled:tiny")
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    about = environment()
    corpus = load_demo_corpus()
    texts = {each: document.content for each, document in corpus.documents.items()}
    changed = texts | {each: f"{texts[each]}\n(edited)" for each in list(texts)[::10]}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = {"cache_path": str(Path(folder, "scores.cache"))}
        for share in (0.0, 0.5):
            asked = stream(arguments.requests, share, arguments.seed)
            name = "repeated" if not share else "half paraphrased"
            for kind, cache in (("no cache", {}), ("memory", {"cache": "64MB"})):
                row = answer(asked, texts, arguments.candidates, model=arguments.model, **cache)
                rows[f"{name}, {kind}"] = row
                print(f"{name}, {kind}: {row['seconds']:.1f} s", flush=True)
        asked = stream(arguments.requests, 0.0, arguments.seed)
        for name, corpus_now in (
            ("file, first run", texts),
            ("file, again", texts),
            ("file, a tenth changed", changed),
        ):
            rows[name] = answer(asked, corpus_now, arguments.candidates, model=arguments.model, **file)
            print(f"{name}: {rows[name]['seconds']:.1f} s", flush=True)
    differences = {
        name: largest_difference(rows[name]["margins"], rows["repeated, no cache"]["margins"])
        for name in ("repeated, memory", "file, first run", "file, again")
    }
    for row in rows.values():
        del row["margins"]
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    result = {
        "about": plain(about),
        "settings": settings,
        "rows": rows,
        "largest_difference_of_margins": differences,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
