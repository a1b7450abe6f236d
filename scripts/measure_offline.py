"""Measure what an offline job costs beside the forward pass, and write docs/results/offline.json.

    python scripts/measure_offline.py overhead     10^5 and 10^6 pairs through a null engine, on one core
    python scripts/measure_offline.py checkpoint   a real run with the bundled model: share of committing
    python scripts/measure_offline.py profile      where the overhead goes

Each run is a process of its own, pinned to one core.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

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


def run_null(source: str, output: str) -> None:
    """In a process of its own: one job, its summary and its largest resident size on standard output."""
    sys.path.insert(0, str(ROOT))
    from qwen3_ranker_plugins.offline import RerankJob
    from tests.offline.engines import NullEngine

    job = RerankJob(source, output, model="bundled:tiny", engine_factory=NullEngine, processing_time=False)
    profile = cProfile.Profile() if "PROFILE" in os.environ else None
    if profile:
        profile.enable()
    summary = job.run().summary.as_dict()
    if profile:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    print(json.dumps(summary | {"resident_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def run_real(source: str, output: str) -> None:
    """The same with the bundled model."""
    from qwen3_ranker_plugins.offline import RerankJob

    print(json.dumps(RerankJob(source, output, model="bundled:tiny").run().summary.as_dict()))


def in_process(kind: str, pairs: int, *, cores: str = "0", **environment: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pairs.jsonl"
        write_pairs(source, pairs)
        command = ["taskset", "-c", cores, sys.executable, __file__, kind, str(source), f"{folder}/out.jsonl"]
        variables = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"} | environment
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=True)  # noqa: S603
    return dict(json.loads(done.stdout))


def overhead() -> dict[str, object]:
    found: dict[str, object] = {}
    for pairs in (100_000, 1_000_000):
        summary = in_process("run-null", pairs)
        rest = summary["seconds"] - summary["tokenization_seconds"] - summary["engine_seconds"]
        found[f"{pairs} pairs"] = summary | {
            "pairs_per_second": pairs / summary["seconds"],
            "pairs_per_second_without_tokenization": pairs / rest,
        }
        print(json.dumps(found[f"{pairs} pairs"], indent=2))
    return found


def checkpoint() -> dict[str, object]:
    summary = in_process("run-real", 2000, cores="0,1")
    return summary | {"share_of_committing": summary["writing_seconds"] / summary["seconds"]}


def main() -> None:
    what = sys.argv[1]
    if what == "run-null":
        return run_null(*sys.argv[2:])
    if what == "run-real":
        return run_real(*sys.argv[2:])
    if what == "profile":
        in_process("run-null", 100_000, PROFILE="1")
        return None
    found = {"overhead": overhead, "checkpoint": checkpoint}[what]()
    print(json.dumps(found, indent=2))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | {what: found}, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
