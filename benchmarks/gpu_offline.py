"""Write the table of docs/offline.md for several GPUs: an offline job on one device and on all, with their outputs.

    PYTHONPATH=. python benchmarks/gpu_offline.py OUTPUT.json --commit "$(git rev-parse HEAD)"     two GPUs, 0.6B shape
    PYTHONPATH=. python benchmarks/gpu_offline.py OUTPUT.json --commit ... --devices cuda:0,cuda:1,... --counts 1,2,4
    PYTHONPATH=. python benchmarks/gpu_offline.py OUTPUT.json --commit ... --devices cpu,cpu --shape tiny --pairs 2000

The model has random weights in the shape of Qwen3-Reranker-0.6B, which is valid for speed but not for quality. Each run
is a whole job whose engines have their own processes. "steady" is the rate between 40 % and 95 % of the pairs: on a
GPU, engines compile during the first passes, and some have no work left during the last ones. Runs on one device and on
several take turns; figures are medians. The file is written after each run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import torch
import transformers

from benchmarks.measure_offline import write_pairs
from benchmarks.systems import SHAPES, write_model
from qwen3_ranker_plugins.offline import RerankJob
from qwen3_ranker_plugins.offline.checkpoint import Checkpoint
from qwen3_ranker_plugins.offline.run import JobRun
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


class TimedRun(JobRun):
    """A run of a job whose runner is timed."""

    timed: TimedRunner

    def _open_runner(self) -> Runner:
        self.timed = TimedRunner(super()._open_runner())
        return self.timed


def run(source: Path, output: Path, model: Path, window_pairs: int, devices: list[str] | None) -> dict[str, float]:
    options = {"device": "cuda" if torch.cuda.is_available() else "cpu"} if devices is None else {"devices": devices}
    job = RerankJob(source, output, model=model, processing_time=False, window_pairs=window_pairs, **options)  # type: ignore[arg-type]
    with closing(Checkpoint(job.output)) as checkpoint:
        timed = TimedRun(job, checkpoint)
        summary = timed.results().summary
    engines = 1 if devices is None else len(devices)
    return {
        "engines": engines,
        "pairs_per_second": summary.pairs / summary.scoring_seconds,
        "steady_pairs_per_second": timed.timed.steady(),
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
    parser.add_argument(
        "--counts", default="", help="numbers of devices, the first to compare with; by default 1 and all"
    )
    parser.add_argument("--model", type=Path, help="a folder of an earlier run")
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--pairs", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window-pairs", type=int, default=4096)
    arguments = parser.parse_args()
    devices = arguments.devices.split(",")
    on_gpu = devices[0].startswith("cuda")
    counts = [int(count) for count in arguments.counts.split(",") if count] or [1, len(devices)]
    found: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or folder / "model"
        if not (model / "config.json").exists():
            write_model(model, arguments.shape, "cuda" if on_gpu else "cpu", None)
        source = folder / "pairs.jsonl"
        write_pairs(source, arguments.pairs)
        in_process = run(source, folder / "in-process.jsonl", model, arguments.window_pairs, None)
        print("in this process", json.dumps(in_process), flush=True)
        expected = (folder / "in-process.jsonl").read_bytes()
        equal = True
        for number in range(arguments.repeats):
            for count in counts:
                output = folder / f"{count}-{number}.jsonl"
                found[count].append(run(source, output, model, arguments.window_pairs, devices[:count]))
                equal &= output.read_bytes() == expected
                output.unlink()
                print(f"{count} devices", json.dumps(found[count][-1]), flush=True)
                write(arguments, devices, in_process, found, equal=equal)


def write(
    arguments: argparse.Namespace,
    devices: list[str],
    in_process: dict[str, float],
    found: dict[int, list[dict[str, float]]],
    *,
    equal: bool,
) -> None:
    """Write what was measured until now, and print how many times as fast several devices are."""
    first = next(iter(found))

    def speedups(field: str) -> dict[int, float]:
        medians = {count: statistics.median(row[field] for row in rows) for count, rows in found.items() if rows}
        return {count: round(median / medians[first], 3) for count, median in medians.items()}

    report = {
        "about": {
            "devices": devices,
            "device_name": torch.cuda.get_device_name(0)
            if devices[0].startswith("cuda")
            else platform.processor() or "cpu",
            "shape": arguments.shape,
            "pairs": arguments.pairs,
            "window_pairs": arguments.window_pairs,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": arguments.commit,
        },
        "in_process": in_process,
        "runs": found,
        "outputs_are_equal_byte_for_byte": equal,
        "speedup": speedups("pairs_per_second"),
        "steady_speedup": speedups("steady_pairs_per_second"),
    }
    arguments.output.write_text(json.dumps(report) + "\n")
    print(json.dumps({name: report[name] for name in ("outputs_are_equal_byte_for_byte", "speedup", "steady_speedup")}))


if __name__ == "__main__":
    main()
