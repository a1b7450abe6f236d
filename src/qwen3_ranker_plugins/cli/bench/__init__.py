"""`qwen3-ranker bench`: a module for each sub-command, or for those that share their options.

Exit code 0: measured; 1: some requests or cells failed, or nothing could be measured; 2: an argument is unusable.
"""

from __future__ import annotations

import typer

from .latency import latency, matrix
from .load import load
from .quality import quality
from .result_files import compare, report
from .threshold import threshold
from .throughput import throughput
from .titles import titles

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure quality, throughput, latency and load, find thresholds, and compare what was measured.",
)
for command in (quality, threshold, throughput, latency, matrix, load, compare, report, titles):
    bench.command()(command)
