"""Measure replicas under load: documents per second, and the cost of a killed and of a stopped worker.

    python benchmarks/replicas.py --devices cpu,cpu --output docs/results/cpu_replicas.json
    python benchmarks/replicas.py --model FOLDER --devices cuda:0,cuda:1,cuda:2,cuda:3 --output ...
    python benchmarks/replicas.py --model FOLDER --devices cuda:0,cuda:0 --signals "" --output ...

For 1, 2, 4, ... of the devices, or the numbers in `--counts`, the script measures the milliseconds of single calls for
lists of several sizes, and compares them with the same engine in this process. Then CLIENTS callers send requests while
one worker gets SIGKILL and later one gets SIGSTOP; no answer may be missing or wrong. The rate is back from the moment
after which each second has at least nine tenths of the answers that a second had before. The results are written as one
JSON file after each number of devices.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.host_time import HostTime
from qwen3_ranker_plugins import Reranker

WORDS = "file python index query vector search engine model token cache rank graph memory kernel batch".split()


def titles(count: int) -> list[str]:
    """Titles of six words; each differs."""
    rng = np.random.default_rng(count)
    return [f"{number} {' '.join(rng.choice(WORDS, 6))}" for number in range(count)]


def milliseconds(reranker: Reranker, size: int, calls: int) -> float:
    """Median of calls that are made one after the other, each with a query of its own."""
    documents, times = titles(size), []
    for number in range(calls + 2):
        started = time.perf_counter()
        reranker.score(f"query {number}", documents)
        times.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(times[2:]), 3)


class Load:
    """Callers that check every answer, until `end`."""

    def __init__(self, reranker: Reranker, expected: Any, documents: list[str], clients: int, tolerance: float) -> None:
        self.scored: list[float] = []  # when each answer came
        self.errors: list[str] = []
        self.wrong = 0
        self._stop = threading.Event()
        arguments = (reranker, expected, documents, tolerance)
        self._threads = [threading.Thread(target=self._call, args=arguments) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _call(self, reranker: Reranker, expected: Any, documents: list[str], tolerance: float) -> None:
        while not self._stop.is_set():
            try:
                scores = reranker.score("query", documents)
            except Exception as error:  # noqa: BLE001 - it is counted
                self.errors.append(f"{type(error).__name__}: {error}")
                continue
            self.wrong += int(np.abs(scores - expected).max() > tolerance)
            self.scored.append(time.monotonic())

    def rate(self, seconds: float) -> float:
        """Answers a second in a time from now on."""
        before = len(self.scored)
        time.sleep(seconds)
        return (len(self.scored) - before) / seconds

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def back_after(answers: list[float], moment: float, until: float, steady: float) -> float | None:
    """Seconds from a moment after which every second has nine tenths of `steady` answers; None if the last has not.

    Args:
        answers: when each came.
        moment, until: on the same clock.
        steady: answers a second before that moment.
    """
    counts = np.histogram(answers, moment + np.arange(int(until - moment) + 1))[0]
    slow = np.flatnonzero(counts < 0.9 * steady)
    if not len(slow):
        return 0.0
    return None if slow[-1] == len(counts) - 1 else float(slow[-1] + 1)


def lose(
    reranker: Reranker, load: Load, number: signal.Signals, steady: float, arguments: argparse.Namespace
) -> dict[str, float | None]:
    """What the loss of the first replica's worker costs, from the signal on."""
    victim = reranker.replicas()[0].process
    if victim is None:
        raise RuntimeError("the first replica has no process of its own")
    os.kill(victim, number)
    sent, before = time.monotonic(), len(load.scored)
    noticed = wait_until(lambda: reranker.replicas()[0].status != "running", arguments.patience) - sent
    running = wait_until(lambda: reranker.replicas()[0].status == "running", arguments.patience) - sent
    meanwhile = (len(load.scored) - before) / running
    again = load.rate(arguments.seconds)
    return {
        "seconds_until_noticed": round(noticed, 2),
        "seconds_until_it_runs_again": round(running, 2),
        "seconds_until_the_rate_is_back": back_after(load.scored, sent, time.monotonic(), steady),
        "documents_per_second_meanwhile": round(meanwhile * arguments.documents, 1),
        "documents_per_second_afterwards": round(again * arguments.documents, 1),
    }


def wait_until(condition: Callable[[], bool], patience: float) -> float:
    """The moment at which a condition was seen to hold.

    Raises:
        TimeoutError: it does not within `patience` seconds.
    """
    ends = time.monotonic() + patience
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"no change of the replica's state in {patience:.0f} s")
        time.sleep(0.02)
    return time.monotonic()


def under_load(model: str, devices: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Rates before, during and after the loss of a worker, for each signal."""
    documents = titles(arguments.documents)
    found: dict[str, Any] = {}
    with Reranker(model, devices=devices) as reranker:
        expected = reranker.score("query", documents)
        load = Load(reranker, expected, documents, arguments.clients, arguments.tolerance)
        try:
            load.rate(arguments.seconds / 2)
            host = HostTime(os.getpid())
            steady = load.rate(arguments.seconds)
            found["documents_per_second"] = round(steady * arguments.documents, 1)
            found["host"] = host.figures()
            for name in arguments.signals if len(devices) > 1 else ():
                found[name] = lose(reranker, load, signal.Signals[name], steady, arguments)
        except TimeoutError as error:
            found["failed"] = str(error)
        finally:
            load.end()
        found |= {"answers": len(load.scored), "wrong": load.wrong, "errors": load.errors[:5], "lost": len(load.errors)}
        found["replicas"] = [[state.documents, state.restarts] for state in reranker.replicas()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:tiny")
    parser.add_argument("--devices", default="cpu,cpu")
    parser.add_argument("--sizes", default="10,100,1000")
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--documents", type=int, default=100, help="of each request under load")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tolerance", type=float, default=0.02, help="of a score; half precision moves it")
    parser.add_argument("--counts", default="", help="numbers of devices; by default 1, 2, 4, ... and all of them")
    parser.add_argument("--signals", default="SIGKILL,SIGSTOP", help="that the first replica's worker gets, in turn")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds until a lost replica has to run again")
    parser.add_argument("--commit", help="what is measured; the GPU host may have no repository")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.signals = [name for name in arguments.signals.split(",") if name]
    devices, sizes = arguments.devices.split(","), [int(size) for size in arguments.sizes.split(",")]
    result: dict[str, Any] = {"model": arguments.model, "devices": devices, "clients": arguments.clients}
    result |= {"commit": arguments.commit, "cores": len(os.sched_getaffinity(0))}
    with Reranker(arguments.model, device=devices[0]) as reranker:
        result["engine"] = reranker.describe().as_dict()
        result["in_this_process_ms"] = {size: milliseconds(reranker, size, arguments.calls) for size in sizes}
    print(f"in this process: {json.dumps(result)}", flush=True)
    counts = [int(count) for count in arguments.counts.split(",") if count]
    counts = counts or [count for count in (1, 2, 4, 8, 16) if count < len(devices)] + [len(devices)]
    for count in counts:
        with Reranker(arguments.model, devices=devices[:count]) as reranker:
            alone = {size: milliseconds(reranker, size, arguments.calls) for size in sizes}
        result[f"{count} replicas"] = {"ms": alone, **under_load(arguments.model, devices[:count], arguments)}
        print(f"{count} replicas: {json.dumps(result[f'{count} replicas'])}", flush=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
