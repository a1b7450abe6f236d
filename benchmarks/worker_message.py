"""Measure what a pass costs on its way to a worker process -> docs/results/worker_message.json.

Processor time of this thread, in ms, least of 40: writing the message, reading it, and laying the pass out; with a list
of ids for each document, and with the ids of all documents in one array.

    PYTHONPATH=src:. python benchmarks/worker_message.py
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from qwen3_ranker_plugins.bench.machine import environment
from qwen3_ranker_plugins.engines.attention.layout import pack
from qwen3_ranker_plugins.engines.replica.messages import ScoreRequests
from qwen3_ranker_plugins.prompt import EncodedRequest, FlatSegments

ROOT = Path(__file__).parents[1]
CASES = {"1000 titles": (1000, 28), "100 chunks": (100, 230), "10 items": (10, 200)}


def least(call: Callable[[], object]) -> float:
    """Processor time of a call in ms, least of 40."""
    times = []
    for _ in range(40):
        started = time.thread_time()
        call()
        times.append(time.thread_time() - started)
    return round(1000 * min(times), 3)


def row(request: EncodedRequest, *, flat: bool) -> dict[str, float]:
    def write() -> bytes:
        sent = replace(request, segments=FlatSegments.of(request.segments)) if flat else request
        return pickle.dumps(ScoreRequests([sent]))

    message = write()
    (received,) = pickle.loads(message).requests  # noqa: S301 - written above
    return {
        "write_ms": least(write),
        "read_ms": least(lambda: pickle.loads(message)),  # noqa: S301
        "layout_ms": least(lambda: pack([received])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/worker_message.json")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = {}
    for case, (documents, tokens) in CASES.items():
        lengths = rng.integers(tokens - tokens // 4, tokens + tokens // 4, documents, endpoint=True)
        segments = [rng.integers(0, 150_000, length).tolist() for length in lengths]
        request = EncodedRequest(list(range(80)), segments, [0] * documents)
        rows[case] = {"lists": row(request, flat=False), "one array": row(request, flat=True)}
        print(case, rows[case])
    result = {"environment": environment(), "of_case": rows}
    arguments.output.write_text(json.dumps(result, indent=1, default=vars) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
