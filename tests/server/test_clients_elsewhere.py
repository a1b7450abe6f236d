"""LiteLLM and LlamaIndex, which pin other versions of shared dependencies: they run in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from qwen3_ranker_plugins import Reranker

from .conftest import DOCUMENTS, QUERY, Running

ROOT = Path(__file__).parents[2]
TEXTS = [text for text in DOCUMENTS if text]
PYTHON = Path(os.environ.get("RANKER_CLIENTS_PYTHON", ROOT / "build" / "clients" / "bin" / "python"))


@pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}: make clients, or set RANKER_CLIENTS_PYTHON")
def test_clients_of_an_environment_of_their_own(server: Running, reranker: Reranker) -> None:
    """The server has its default settings; each client is told its address only."""
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("clients_elsewhere.py"), server.url],
        input=json.dumps({"query": QUERY, "texts": TEXTS}),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout[done.stdout.index('{"') :])
    hits = reranker.rerank(QUERY, TEXTS)
    wrong = {}
    for client, outcome in outcomes.items():
        scores = [hit.margin if "nvidia" in client else hit.score for hit in hits]
        expected = [[hit.index, pytest.approx(score, abs=1e-4)] for hit, score in zip(hits, scores, strict=True)]
        if outcome != (expected if "async" in client else expected[:3]):
            wrong[client] = outcome
    assert not wrong
    assert len(outcomes) == 13
