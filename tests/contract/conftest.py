"""The engines besides packed, each started once in a run of the tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.engines import missing_modules
from qwen3_ranker_plugins.engines.base import Engine
from tests.warm_python import WarmPython

if missing_modules("vllm_score"):
    _WHY_NOT = "vLLM is not installed (make test installs its CPU build where there is no NVIDIA GPU)"
elif torch.cuda.is_available():
    _WHY_NOT = "on a GPU, benchmarks/gpu_vllm.py runs both engines and compares their margins"
else:
    _WHY_NOT = ""

needs_vllm = [
    pytest.mark.slow,
    # One worker's start is the import of vLLM and torch, which a cold disk makes slow.
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT),
]


def _engine(name: str) -> Iterator[Engine]:
    """The engine that every reranker with default settings in this process shares."""
    with Reranker("bundled:tiny", engine=name) as reranker:
        yield reranker._lease.engine


@pytest.fixture(scope="session")
def vllm_score(warm_workers: None) -> Iterator[Engine]:
    yield from _engine("vllm_score")


@pytest.fixture(scope="session")
def vllm_generate(warm_workers: None) -> Iterator[Engine]:
    yield from _engine("vllm_generate")


@pytest.fixture(scope="session")
def vllm_packed(warm_workers: None) -> Iterator[Engine]:
    yield from _engine("vllm_packed")


@pytest.fixture(scope="session")
def vllm_release(warm_python: WarmPython) -> dict[str, Any]:
    """What the installed vLLM raises and returns, see the script."""
    done = warm_python.run([sys.executable, Path(__file__).with_name("vllm_release_script.py")])
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.fixture(scope="session")
def remote(vllm_url: str) -> Iterator[Engine]:
    """Token ids to a service in vLLM's shape."""
    options = {"url": vllm_url, "kind": "vllm"}
    with Reranker("bundled:tiny", engine="remote", engine_options=options) as reranker:
        yield reranker._lease.engine
