"""Measure what an offline job costs in addition to the forward passes, and write docs/results/offline.json.

    python benchmarks/measure_offline.py overhead     10^5 and 10^6 pairs through a null engine, on one core
    python benchmarks/measure_offline.py checkpoint   a real run with the bundled model: time outside of the engine
    python benchmarks/measure_offline.py actors       two Ray actors on two cores compared with one on one core
    python benchmarks/measure_offline.py cores        speedup of two processes that multiply matrices on two cores
    python benchmarks/measure_offline.py profile      which steps cause the overhead

Each run is its own process, pinned to the cores named here. "Overhead" is CPU time outside of the tokenizers library
and the (null) engine: reading, grouping, planning, committing, ordering, writing.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen3_ranker_plugins.engines.base import Margins
    from qwen3_ranker_plugins.prompt import EncodedRequest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "offline.json"
WORDS = "open close file read write list value error module network python string python class return loop".split()


def write_pairs(path: Path, pairs: int, documents: int = 100) -> None:
    """Queries with 100 documents of 10 to 22 words each, titles as retrievers give them."""
    choose = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(pairs):
            query, document = divmod(number, documents)
            record = {
                "query_id": f"q{query}",
                "doc_id": f"d{document}",
                "query": f"how do I {WORDS[query % 16]} a {WORDS[query * 7 % 16]} number {query}",
                "document": " ".join(choose.choices(WORDS, k=choose.randint(10, 22))),
            }
            file.write(json.dumps(record) + "\n")


def time_the_tokenizer() -> list[float]:
    """CPU seconds inside the tokenizers library, which works in the calling thread if it is told to."""
    from qwen3_ranker_plugins import prompt

    seconds = [0.0]

    def encode_batch(self: prompt.ModelTokenizer, texts: Sequence[str]) -> list[list[int]]:
        started = time.thread_time()
        encodings = self.plain.encode_batch_fast(list(texts), add_special_tokens=False)
        seconds[0] += time.thread_time() - started
        return [encoding.ids for encoding in encodings]

    prompt.ModelTokenizer.encode_batch = encode_batch  # type: ignore[method-assign]
    return seconds


def largest_resident_kib() -> int:
    """Of this program; getrusage would count what its parent held when it was started."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def run_null(source: str, output: str) -> None:
    """In a process of its own: one job, its summary, CPU seconds and its largest resident size on standard output."""
    sys.path.insert(0, str(ROOT))
    from qwen3_ranker_plugins.offline import RerankJob
    from tests.offline.engines import NullEngine

    engine_seconds = [0.0]

    class TimedEngine(NullEngine):
        def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
            started = time.thread_time()
            try:
                return super().score(requests)
            finally:
                engine_seconds[0] += time.thread_time() - started

    job = RerankJob(source, output, model="bundled:tiny", engine_factory=TimedEngine, processing_time=False)
    profile = cProfile.Profile() if "PROFILE" in os.environ else None
    if profile:
        profile.enable()
    tokenizers_seconds = time_the_tokenizer()
    started = time.process_time()
    summary = job.run().summary.as_dict()
    cpu_seconds = time.process_time() - started
    if profile:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    own = {
        "cpu_seconds": cpu_seconds,
        "tokenizers_cpu_seconds": tokenizers_seconds[0],
        "null_engine_cpu_seconds": engine_seconds[0],
        "resident_kib": largest_resident_kib(),
    }
    print(json.dumps(summary | own))


def run_real(source: str, output: str) -> None:
    """The same with the bundled model."""
    from qwen3_ranker_plugins.offline import RerankJob

    print(json.dumps(RerankJob(source, output, model="bundled:tiny").run().summary.as_dict()))


def in_process(kind: str, pairs: int, *more: str, cores: str = "0", **environment: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pairs.jsonl"
        write_pairs(source, pairs)
        command = ["taskset", "-c", cores, sys.executable, __file__, kind, str(source), f"{folder}/out.jsonl", *more]
        variables = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"} | environment
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=True)  # noqa: S603
    return dict(json.loads(done.stdout))


def overhead() -> dict[str, object]:
    found: dict[str, dict[str, float]] = {}
    for pairs in (100_000, 1_000_000):
        summary = in_process("run-null", pairs)
        overhead_seconds = (
            summary["cpu_seconds"] - summary["tokenizers_cpu_seconds"] - summary["null_engine_cpu_seconds"]
        )
        found[f"{pairs} pairs"] = summary | {
            "pairs_per_second": pairs / summary["seconds"],
            "pairs_per_cpu_second_of_overhead": pairs / overhead_seconds,
        }
        print(json.dumps(found[f"{pairs} pairs"], indent=2))
    sizes = [row["resident_kib"] for row in found.values()]
    return {**found, "resident_ratio": sizes[1] / sizes[0]}


def checkpoint() -> dict[str, object]:
    summary = in_process("run-real", 2000, cores="0,1")
    scoring = summary["scoring_seconds"]
    return summary | {
        "share_beside_the_engine": 1 - summary["engine_seconds"] / scoring,
        "share_of_committing": summary["writing_seconds"] / scoring,
    }


def run_ray(source: str, output: str, workers: str) -> None:
    """With a CPU for each engine; the engines are there before the clock runs."""
    import ray

    from qwen3_ranker_plugins.offline import RerankJob

    ray.init(num_cpus=int(workers), include_dashboard=False, log_to_driver=False)
    options = {"model": "bundled:tiny", "runner": "ray", "workers": int(workers), "window_pairs": 200}
    summary = RerankJob(source, output, **options).run().summary.as_dict()
    print(json.dumps(summary))


MULTIPLY = """
import time, torch
torch.set_num_threads(1)
left, right = torch.randn(512, 256), torch.randn(256, 1024)
started, count = time.perf_counter(), 0
while time.perf_counter() - started < 4:
    left @ right
    count += 1
print(count)
"""


SCORE = """
import time, torch
torch.set_num_threads(1)
from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
from qwen3_ranker_plugins.engines.packed.engine import PackedEngine
from qwen3_ranker_plugins.models import resolve_model
from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer
folder = resolve_model("bundled:tiny")
engine = PackedEngine(folder, device="cpu", dtype="float32")
titles = [f"how to open close and read a list of {n} python modules in a string value" for n in range(20)]
request = PromptEncoder(load_tokenizer(folder)).encode("how do I open a file", titles, DEFAULT_INSTRUCTION)
engine.score([request])
started, count = time.perf_counter(), 0
while time.perf_counter() - started < 8:
    engine.score([request])
    count += 1
print(count)
"""


def cores_speedup(program: str) -> float:
    """How much more two processes with nothing in common get done, each on a core of its own, than one alone."""

    def run(*cores: str) -> int:
        commands = [["taskset", "-c", core, sys.executable, "-c", program] for core in cores]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]  # noqa: S603
        return sum(int(process.communicate()[0]) for process in running)

    before, both, after = run("0"), run("0", "1"), run("1")  # so that a machine that slows down disturbs both sides
    return 2 * both / (before + after)


def actors(repeats: int = 5) -> dict[str, object]:
    """Two Ray actors on two cores against one on one: time from the first pass to the last.

    Beside it stands what two cores give to two processes that have nothing to do with one another: to two that multiply
    small matrices, and to two that hold an engine each and score the same passes all the time.
    """
    runs = []
    for _ in range(repeats):
        control = cores_speedup(MULTIPLY)
        engines = cores_speedup(SCORE)
        one = in_process("run-ray", 8000, "1", cores="0")
        two = in_process("run-ray", 8000, "2", cores="0,1")
        runs.append(
            {
                "one_seconds": one["scoring_seconds"],
                "one_seconds_in_the_engine": one["engine_seconds"],
                "two_seconds": two["scoring_seconds"],
                "two_seconds_in_both_engines": two["engine_seconds"],
                "speedup": one["scoring_seconds"] / two["scoring_seconds"],
                "speedup_of_two_processes_that_multiply_matrices": control,
                "speedup_of_two_processes_with_an_engine_each": engines,
                "load": os.getloadavg()[0],
            }
        )
        print(json.dumps(runs[-1]), flush=True)
    return {
        "runs": runs,
        "medians": {name: statistics.median(run[name] for run in runs) for name in runs[0] if "speedup" in name},
    }


def cores() -> dict[str, object]:
    """Only what is measured beside the actors."""
    return {
        "speedups_of_two_processes_that_multiply_matrices": [cores_speedup(MULTIPLY) for _ in range(3)],
        "speedups_of_two_processes_with_an_engine_each": [cores_speedup(SCORE) for _ in range(3)],
    }


def about() -> dict[str, object]:
    """What was measured, and where."""
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout  # noqa: S607
    return {
        "processor": processor.partition(": ")[2],
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("torch", "tokenizers", "ray")},
        "commit": commit.decode().strip(),
    }


def main() -> None:
    what = sys.argv[1]
    if what == "run-null":
        return run_null(*sys.argv[2:])
    if what == "run-real":
        return run_real(*sys.argv[2:])
    if what == "run-ray":
        return run_ray(*sys.argv[2:])
    if what == "profile":
        in_process("run-null", 100_000, PROFILE="1")
        return None
    found: dict[str, object] = {"about": about()}
    found |= {"overhead": overhead, "checkpoint": checkpoint, "actors": actors, "cores": cores}[what]()
    print(json.dumps(found, indent=2))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | {what: found}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
