"""The sets of long documents that a script makes of the demonstration corpus, and what the page says of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from qwen3_ranker_plugins.bench.quality.reranking import override
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.data.collection import open_collection

ROOT = Path(__file__).parents[2]


def test_the_script_writes_sets_of_long_documents(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "long_document_sets.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True)
    sections = open_collection(str(tmp_path / "sections"), candidates=6, queries=4)
    assert max(map(len, sections.texts.values())) > 10_000
    needles = open_collection(str(tmp_path / "needles.jsonl"), candidates=100)
    assert len(needles.queries) > 40
    for query_id, candidates in needles.candidates.items():
        assert len(candidates) == 8
        assert max(needles.qrels[query_id].values()) == 2
        assert sum(grade > 0 for grade in needles.qrels[query_id].values()) == 1
        assert min(len(needles.texts[each]) for each in candidates) > 5_000


def test_a_second_configuration_may_judge_in_pieces() -> None:
    changed = override(
        RerankerSettings("bundled:tiny"), ["long_documents=pieces", "piece_tokens=100", "piece-overlap=9"]
    )
    assert (changed.long_documents, changed.piece_tokens, changed.piece_overlap) == ("pieces", 100, 9)


def test_the_page_holds_the_measured_figures() -> None:
    page = (ROOT / "docs" / "long-documents.md").read_text(encoding="utf-8")
    for name in ("sections", "needles"):
        result = json.loads((ROOT / f"docs/results/bench-quality-long-{name}.json").read_text(encoding="utf-8"))
        before, after = [system["label"] for system in result["systems"]]
        means = [f"{result['figures']['means'][label]['nDCG@10']:.3f}" for label in (before, after)]
        [found] = [
            each
            for each in result["figures"]["comparisons"]
            if (each["from"], each["to"], each["measure"]) == (before, after, "nDCG@10")
        ]
        cut = sum(result["systems"][0]["truncated_documents"].values())
        pairs = sum(map(len, result["collection"]["candidates"].values()))
        figures = f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
        row = f"| {len(result['collection']['qrels'])} | {cut} of {pairs} | {' | '.join(means)} | {figures} |"
        assert row in page, row
