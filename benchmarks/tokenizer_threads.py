"""Measure the tokenizer with pools of several sizes: time and processor time of a request's encoding.

    PYTHONPATH=src:. python benchmarks/tokenizer_threads.py OUTPUT.json [--tokenizer FOLDER] [--threads 1,4,16,64]

For each size of the pool, a fresh process encodes 1000 titles, 100 chunks and 10 items, one request after the other,
and 10 items from eight threads. Takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.systems import documents_of, query
from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
from qwen3_ranker_plugins.bench.machine import environment
from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer

REPEAT = 30


def measure(folder: Path) -> dict[str, Any]:
    """The rows of this process."""
    encoder = PromptEncoder(load_tokenizer(folder))
    rows = {}
    for name, case, count, callers in (
        ("1000 titles", "1000 titles", 1000, 1),
        ("100 chunks", "100 chunks", 100, 1),
        ("10 items", "100 chunks", 10, 1),
        ("10 items, 8 at a time", "100 chunks", 10, 8),
    ):
        documents = documents_of(case, 1)[:count]
        repeat = REPEAT * callers

        def encode(number: int, documents: list[str] = documents, case: str = case) -> float:
            started = time.perf_counter()
            encoder.encode(query(case, number), documents, DEFAULT_INSTRUCTION)
            return 1000 * (time.perf_counter() - started)

        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(encode, range(5)))
            processor = time.process_time()
            times = list(pool.map(encode, range(5, 5 + repeat)))
            processor = time.process_time() - processor
        rows[name] = {
            "median_ms": round(statistics.median(times), 2),
            "processor_ms": round(1000 * processor / repeat, 2),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a model's folder; by default Qwen3's, as the tests rebuild it")
    parser.add_argument("--threads", default="1,2,4,8,16,32,64")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        arguments.output.write_text(json.dumps(measure(arguments.tokenizer)), encoding="utf-8")
        return
    cores = os.cpu_count() or 1
    result: dict[str, Any] = {"environment": environment(), "of_threads": {}}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.tokenizer is None:
            from tests.qwen3_tokenizer import write_qwen3_tokenizer

            write_qwen3_tokenizer(Path(folder))
        tokenizer = arguments.tokenizer or Path(folder)
        for threads in [each for each in map(int, arguments.threads.split(",")) if each <= cores]:
            child = Path(folder) / "rows.json"
            command = [sys.executable, __file__, str(child), "--child", "--tokenizer", str(tokenizer)]
            subprocess.run(command, env={**os.environ, "RAYON_NUM_THREADS": str(threads)}, check=True)  # noqa: S603
            rows = result["of_threads"][str(threads)] = json.loads(child.read_text(encoding="utf-8"))
            print(threads, rows, flush=True)
    arguments.output.write_text(json.dumps(result, indent=1, default=vars) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
