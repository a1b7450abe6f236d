"""Run the demo and write its measures to docs/results/demo.json, the source of the figures in the README.

python tools/record_demo.py
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from qwen3_ranker_plugins import Reranker, __version__
from qwen3_ranker_plugins.config import BUNDLED_MODEL
from qwen3_ranker_plugins.data.demo import DEFAULT_CANDIDATES, load_demo_corpus
from qwen3_ranker_plugins.demo.evaluation import NDCG
from qwen3_ranker_plugins.demo.run import SEARCHES, run_demo

OUTPUT = Path(__file__).parents[1] / "docs" / "results" / "demo.json"


def main() -> None:
    load = os.getloadavg()[0]
    runs = [run_demo(Console(), model=BUNDLED_MODEL, adapter=adapter)[0] for adapter in SEARCHES]
    corpus = load_demo_corpus()
    with Reranker(BUNDLED_MODEL) as reranker:
        about = reranker.describe().as_dict()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S607
    rows = [
        {
            "framework": row.framework,
            "ranking": row.ranking,
            **{name: round(value, 4) for name, value in row.values.items()},
            "seconds_per_query": round(row.seconds, 4),
        }
        for run in runs
        for row in run.measured(corpus)
    ]
    gains = [
        {"framework": run.framework, "measure": NDCG}
        | {name: round(value, 4) for name, value in asdict(run.gain(corpus)).items()}
        for run in runs
    ]
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(
        json.dumps(
            {
                "command": "python tools/record_demo.py",
                "date": datetime.now(UTC).date().isoformat(),
                "version": __version__,
                "commit": commit.stdout.strip(),
                "python": platform.python_version(),
                "processor": f"{platform.machine()}, {os.cpu_count()} cores",
                "load_before": round(load, 2),
                "model": BUNDLED_MODEL,
                "candidates": DEFAULT_CANDIDATES,
                **about,
                "rows": rows,
                "gains": gains,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
