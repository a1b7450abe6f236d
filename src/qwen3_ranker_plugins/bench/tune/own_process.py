"""Measures a configuration in its own process, so that memory is measured separately and can run out without harm.

`python -m qwen3_ranker_plugins.bench.tune.own_process` reads a `Trial` as JSON and answers with an `Outcome` as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import RankerError
from ..errors import BenchError
from ..peak_memory import MemoryPeak, PeakMemory

_ERROR = 3


@dataclass(frozen=True)
class Trial:
    """The configuration and the requests to measure.

    Attributes:
        settings: arguments of `Reranker`.
        documents: the documents of every request.
        queries: queries of the timed requests, one each; an untimed request with `warmup` comes first.
        warmup: a query that is not in `queries`.
    """

    settings: dict[str, Any]
    documents: Sequence[str]
    queries: Sequence[str]
    warmup: str


@dataclass(frozen=True)
class Outcome:
    """What was measured, or why nothing was measured.

    Attributes:
        seconds: duration of each request, tokenization included.
        load_seconds: time to load the model.
        margins: margins of the documents for the first query, in their order.
        truncated_documents: number of documents that were cut.
        computed_tokens: tokens of the first request that went through the model.
        engine: `Reranker.describe().as_dict()`.
        memory: peak memory, loading included.
        error: why the trial failed, in which case the other fields are empty; None if it did not.
    """

    seconds: Sequence[float] = ()
    load_seconds: float = 0.0
    margins: Sequence[float] = ()
    truncated_documents: int = 0
    computed_tokens: int = 0
    engine: dict[str, str] = field(default_factory=dict)
    memory: MemoryPeak = field(default_factory=MemoryPeak)
    error: str | None = None


def run_trial(trial: Trial, *, timeout: float) -> Outcome:
    """Measure in a fresh process.

    Args:
        trial: the configuration and the requests.
        timeout: maximum seconds, loading included.

    Returns:
        An outcome with an `error` if the configuration cannot run here: out of memory, killed, too slow.

    Raises:
        BenchError: the process ended for a reason that has nothing to do with the configuration.
    """
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", f"{__package__}.own_process"],
            input=json.dumps(asdict(trial)),
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")},
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(error=f"not done after {timeout:.0f} s")
    if done.returncode == 0:
        found = json.loads(done.stdout.splitlines()[-1])
        return Outcome(**found | {"memory": MemoryPeak(**found["memory"])})
    if done.returncode == _ERROR:
        return Outcome(error=done.stdout.strip())
    if done.returncode < 0:
        return Outcome(error=f"killed by signal {-done.returncode}, which the system does when memory runs out")
    raise BenchError(f"a trial ended with code {done.returncode}: {done.stderr.strip()[-600:]}")


def measure(trial: Trial, *, on_gpu: bool) -> Outcome:
    """Measure in this process. Raises as `Reranker` and its `rerank`."""
    from ...reranker import Reranker

    with PeakMemory(on_gpu=on_gpu) as memory:
        started = time.perf_counter()
        with Reranker(**trial.settings) as reranker:
            load_seconds = time.perf_counter() - started
            reranker.rerank(trial.warmup, trial.documents)
            results, seconds = [], []
            for query in trial.queries:
                started = time.perf_counter()
                results.append(reranker.rerank(query, trial.documents))
                seconds.append(time.perf_counter() - started)
            engine = reranker.describe().as_dict()
    first = sorted(results[0], key=lambda hit: hit.index)
    return Outcome(
        seconds=seconds,
        load_seconds=load_seconds,
        margins=[hit.margin for hit in first],
        truncated_documents=sum(hit.truncated_tokens > 0 for hit in first),
        computed_tokens=results[0].usage.computed_tokens,
        engine=engine,
        memory=memory.peak,
    )


def main() -> None:
    """Read a trial from standard input, and write its outcome."""
    trial = Trial(**json.loads(sys.stdin.read()))
    device = trial.settings.get("device", "auto")
    if device == "auto":
        from importlib.util import find_spec

        if find_spec("torch") is not None:
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        outcome = measure(trial, on_gpu=str(device).startswith("cuda"))
    except RankerError as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(_ERROR)
    sys.stdout.write(json.dumps(asdict(outcome)) + "\n")


if __name__ == "__main__":
    main()
