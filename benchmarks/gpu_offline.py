"""Write the table of docs/offline.md for several GPUs: an offline job on one device and on all, with their outputs.

    PYTHONPATH=. python benchmarks/gpu_offline.py OUTPUT.json --commit "$(git rev-parse HEAD)"     two GPUs, 0.6B shape
    PYTHONPATH=. python benchmarks/gpu_offline.py OUTPUT.json --commit ... --devices cpu,cpu --shape tiny --pairs 2000

The model has random weights in the shape of Qwen3-Reranker-0.6B, which is valid for speed but not for quality. Each run
is a whole job whose engines have their own processes. "steady" is the rate between 40 % and 95 % of the pairs: on a
GPU, engines compile during the first passes, and some have no work left during the last ones. Runs on one device and on
all devices take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import torch
import transformers

from benchmarks.measure_offline import write_pairs
from benchmarks.systems import SHAPES, write_model
from qwen3_ranker_plugins.offline import RerankJob
from qwen3_ranker_plugins.offline.runners.base import Runner, Todo
from qwen3_ranker_plugins.offline.scoring import ScoredPass


class TimedRunner(Runner):
    """Notes when each pass arrives."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.arrivals: list[tuple[float, int]] = []

    def facts(self) -> dict[str, str]:
        return self._runner.facts()

    def devices(self) -> str:
        return self._runner.devices()

    def run(self, todo: Todo) -> Generator[ScoredPass]:
        for scored in self._runner.run(todo):
            self.arrivals.append((time.perf_counter(), scored.pairs))
            yield scored

    def close(self) -> None:
        self._runner.close()

    def steady(self) -> float:
        """Pairs per second between 40 % and 95 % of the pairs."""
        total = sum(pairs for _, pairs in self.arrivals)
        done, inside = 0, []
        for moment, pairs in self.arrivals:
            done += pairs
            if 0.4 * total <= done <= 0.95 * total:
                inside.append((moment, pairs))
        return sum(pairs for _, pairs in inside[1:]) / (inside[-1][0] - inside[0][0])


class TimedJob(RerankJob):
    """A job whose runner is timed."""

    timed: TimedRunner

    def _open_runner(self) -> Runner:
        self.timed = TimedRunner(super()._open_runner())
        return self.timed


def run(source: Path, output: Path, model: Path, window_pairs: int, devices: list[str] | None) -> dict[str, float]:
    options = {"device": "cuda" if torch.cuda.is_available() else "cpu"} if devices is None else {"devices": devices}
    job = TimedJob(source, output, model=model, processing_time=False, window_pairs=window_pairs, **options)  # type: ignore[arg-type]
    summary = job.run().summary
    engines = 1 if devices is None else len(devices)
    return {
        "engines": engines,
        "pairs_per_second": summary.pairs / summary.scoring_seconds,
        "steady_pairs_per_second": job.timed.steady(),
        "share_of_time_in_engines": summary.engine_seconds / engines / summary.scoring_seconds,
        "share_of_time_committing": summary.writing_seconds / summary.scoring_seconds,
        "seconds": summary.seconds,
        "tokens": summary.tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True, help="what is measured; the GPU host may have no repository")
    parser.add_argument("--devices", default="cuda:0,cuda:1")
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--pairs", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window-pairs", type=int, default=4096)
    arguments = parser.parse_args()
    devices = arguments.devices.split(",")
    on_gpu = devices[0].startswith("cuda")
    found: dict[str, list[dict[str, float]]] = {"one": [], "all": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", arguments.shape, "cuda" if on_gpu else "cpu", None)
        source = folder / "pairs.jsonl"
        write_pairs(source, arguments.pairs)
        in_process = run(source, folder / "in-process.jsonl", folder / "model", arguments.window_pairs, None)
        print("in this process", json.dumps(in_process), flush=True)
        expected = (folder / "in-process.jsonl").read_bytes()
        equal = True
        for number in range(arguments.repeats):
            for key, used in (("one", devices[:1]), ("all", devices)):
                output = folder / f"{key}-{number}.jsonl"
                found[key].append(run(source, output, folder / "model", arguments.window_pairs, used))
                equal &= output.read_bytes() == expected
                print(key, json.dumps(found[key][-1]), flush=True)

    def speedup(field: str) -> float:
        one, all_ = (statistics.median(row[field] for row in found[key]) for key in ("one", "all"))
        return all_ / one

    report = {
        "about": {
            "devices": devices,
            "device_name": torch.cuda.get_device_name(0) if on_gpu else platform.processor() or "cpu",
            "shape": arguments.shape,
            "pairs": arguments.pairs,
            "window_pairs": arguments.window_pairs,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": arguments.commit,
        },
        "in_process": in_process,
        **found,
        "outputs_are_equal_byte_for_byte": equal,
        "speedup": speedup("pairs_per_second"),
        "steady_speedup": speedup("steady_pairs_per_second"),
    }
    arguments.output.write_text(json.dumps(report) + "\n")
    print(json.dumps({name: report[name] for name in ("outputs_are_equal_byte_for_byte", "speedup", "steady_speedup")}))


if __name__ == "__main__":
    main()
