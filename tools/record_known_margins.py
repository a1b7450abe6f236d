"""Write the margins with which `qwen3-ranker doctor` compares: bundled model, packed engine, CPU, float32.

python tools/record_known_margins.py
"""

from __future__ import annotations

import json
from pathlib import Path

import qwen3_ranker_plugins
from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.config import BUNDLED_MODEL
from qwen3_ranker_plugins.doctor import PROBES

OUTPUT = Path(qwen3_ranker_plugins.__file__).parent / "assets" / "known_margins.json"


def main() -> None:
    margins = {}
    with Reranker(BUNDLED_MODEL, engine="packed", device="cpu", dtype="float32") as reranker:
        for probe in PROBES:
            hits = sorted(reranker.rerank(probe.query, [probe.relevant, probe.irrelevant]), key=lambda hit: hit.index)
            margins[probe.query] = [round(hit.margin, 5) for hit in hits]
        about = reranker.describe().as_dict()
    OUTPUT.write_text(json.dumps({"model": BUNDLED_MODEL, "about": about, "margins": margins}, indent=1) + "\n")


if __name__ == "__main__":
    main()
