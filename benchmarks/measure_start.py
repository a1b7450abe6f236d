"""Measure how long `qwen3-ranker rank` takes for five lines in a new process, and how long its imports take.

python benchmarks/measure_start.py [--repeat 7] [--output docs/results/start.json]

The commands take turns in every round, so that other programs on the machine disturb all of them alike. Wall time is
how long a user waits; processor time (user and system, of the process and its children) hardly depends on other
processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from qwen3_ranker_plugins.bench.machine import environment

LINES = (
    "Tigers live in Asia.\nUse the with statement: it closes the file.\nBread needs yeast.\nRain.\nA list is mutable.\n"
)
RANK = ["-m", "qwen3_ranker_plugins.cli", "rank", "--query", "how do I close a file?", "--model", "bundled:tiny"]
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "rank, five lines, bundled:tiny": RANK,
    "import of transformers' Qwen3ForCausalLM": [
        "-c",
        "from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM",
    ],
    "qwen3-ranker --help": ["-m", "qwen3_ranker_plugins.cli", "--help"],
}


def run(arguments: list[str]) -> tuple[float, float]:
    """(wall seconds, processor seconds) of a fresh Python."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(  # noqa: S603
        [sys.executable, *arguments],
        input=LINES,
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    wall, after = time.perf_counter() - started, os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return wall, used


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7, help="number of rounds (default: 7)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/start.json"), help="result file")
    options = parser.parse_args()
    about = environment()
    for arguments in COMMANDS.values():
        run(arguments)  # once for the page cache
    found: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": []} for name in COMMANDS}
    for _ in range(options.repeat):
        for name, arguments in COMMANDS.items():
            wall, processor = run(arguments)
            found[name]["wall"].append(round(wall, 3))
            found[name]["processor"].append(round(processor, 3))
    if about.warning is not None:
        sys.stderr.write(f"{about.warning}\n")
    base = found["import torch"]
    for name, values in found.items():
        wall, processor = (statistics.median(values[kind]) for kind in ("wall", "processor"))
        ratios = [statistics.median(a / b for a, b in zip(values[kind], base[kind], strict=True)) for kind in values]
        sys.stdout.write(
            f"{name}: {wall:.2f} s wall, {processor:.2f} s processor; "
            f"{ratios[0]:.2f} and {ratios[1]:.2f} times import torch\n"
        )
    result = {"about": asdict(about.after({})), "repeat": options.repeat, "seconds": found}
    options.output.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
