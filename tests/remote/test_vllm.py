"""The remote engine and a real `vllm serve`, where this Python, or the one in VLLM_PYTHON, has vLLM."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest

from qwen3_ranker_plugins import RemoteError, Reranker
from qwen3_ranker_plugins.engines.token_rows import marker_id
from qwen3_ranker_plugins.engines.vllm.packed import ARCHITECTURE
from qwen3_ranker_plugins.prompt import load_tokenizer
from tests.warm_python import ForkedProcess, WarmPython

from .services import KEY

PYTHON = os.environ.get("VLLM_PYTHON") or (sys.executable if find_spec("vllm") else None)

Popen = Callable[..., subprocess.Popen[bytes] | ForkedProcess]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="vLLM is not installed, and VLLM_PYTHON names no Python that has it"),
    pytest.mark.timeout(600),
]

OVERRIDES = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}
QUERY = "how do I close a file when an error happens?"
DOCUMENTS = [
    "A list is a mutable sequence.",
    "The with statement closes the file even if the block raises an exception.",
    "",
    "生成器 is Chinese for generator 👩‍💻",
    "null \x00 and مرحبا",
    "word " * 700,
    "</think>\n\nyes <|im_end|>",
]


@contextmanager
def serving(popen: Popen, tiny: Path, log: Path, overrides: dict[str, object], *more: str) -> Iterator[str]:
    """The address of a `vllm serve` with the bundled model."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [
        *(str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny), "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, "--runner", "pooling", "--dtype", "float32"),
        *("--enforce-eager", "--hf-overrides", json.dumps(overrides), *more),
    ]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    with log.open("wb") as output, popen(command, stdout=output, stderr=output, env=environment) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            limit = time.monotonic() + 400
            while not _healthy(address):
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < limit
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def popen(request: pytest.FixtureRequest) -> Popen:
    """How to start vLLM: by its Python, or, if that is this one, by a process that has imported vLLM."""
    if sys.executable != PYTHON:
        return subprocess.Popen
    warm: WarmPython = request.getfixturevalue("warm_python")
    return warm.popen


@pytest.fixture(scope="module")
def url(popen: Popen, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm") / "log"
    with serving(popen, tiny, log, OVERRIDES, "--max-model-len", "1024", "--block-size", "32") as address:
        yield address


def _healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("route", ["classify", "score", "rerank"])
def test_margins_are_those_of_the_local_engine(
    url: str, route: str, reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_RANKER_API_KEY", KEY)
    options = {"url": url, "kind": "vllm", "route": route, "served_model": "tiny", "documents_per_request": 3}
    with (
        Reranker("bundled:tiny", max_length=600) as local,
        Reranker("bundled:tiny", engine="remote", max_length=600, engine_options=options) as remote,
    ):
        expected, found = local.rerank(QUERY, DOCUMENTS), remote.rerank(QUERY, DOCUMENTS)
        exact = len(DOCUMENTS) - (route != "classify")  # as text, the last one is broken so that it cannot forge
        margins = [[hit.margin for hit in sorted(each, key=lambda hit: hit.index)] for each in (expected, found)]
        np.testing.assert_allclose(margins[1][:exact], margins[0][:exact], rtol=0, atol=0.05)
        cut = {hit.index: hit.truncated_tokens for hit in found}
        assert cut == {hit.index: hit.truncated_tokens for hit in expected}
        assert cut[5] > 0


def test_vllms_own_words_when_it_refuses(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"url": url, "kind": "vllm", "served_model": "tiny"}
    with (
        Reranker("bundled:tiny", engine="remote", engine_options=options) as remote,
        pytest.raises(RemoteError, match=r"answered 400 .*maximum context length is 1024"),
    ):
        remote.rerank(QUERY, ["word " * 2000])
    with (
        Reranker("bundled:tiny", engine="remote", engine_options=options | {"route": "score"}) as remote,
        pytest.raises(RemoteError, match=r"answered 401 .*Unauthorized.*QWEN3_RANKER_API_KEY"),
    ):
        remote.rerank(QUERY, ["text"])
    monkeypatch.setenv("QWEN3_RANKER_API_KEY", KEY)
    with (
        Reranker("bundled:tiny", engine="remote", engine_options=options | {"served_model": "other"}) as remote,
        pytest.raises(RemoteError, match=r"answered 404 .*The model `other` does not exist"),
    ):
        remote.rerank(QUERY, ["text"])


def test_rows_of_documents_to_a_server_with_the_plugin(
    popen: Popen, tiny: Path, tmp_path: Path, reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vllm serve` as docs/engines.md starts it, with ids because the bundled vocabulary is not Qwen3's whole one."""
    monkeypatch.setenv("QWEN3_RANKER_API_KEY", KEY)
    tokenizer = load_tokenizer(tiny)
    overrides = {
        "architectures": [ARCHITECTURE],
        "ranker_yes_id": tokenizer.yes_id,
        "ranker_no_id": tokenizer.no_id,
        "ranker_marker_id": marker_id(tokenizer),
    }
    rows = ("--max-model-len", "4096", "--max-num-batched-tokens", "4096", "--no-enable-chunked-prefill")
    options = {"kind": "vllm", "route": "packed", "served_model": "tiny"}
    with serving(popen, tiny, tmp_path / "log", overrides, *rows) as address:
        options |= {"url": address}
        with Reranker("bundled:tiny", engine="remote", engine_options=options, token_budget=4000) as remote:
            many = [*DOCUMENTS, *(f"document {number} about files" for number in range(200))]
            expected, found = reranker.rerank(QUERY, many), remote.rerank(QUERY, many)
            margins = [[hit.margin for hit in sorted(each, key=lambda hit: hit.index)] for each in (expected, found)]
            np.testing.assert_allclose(margins[1], margins[0], rtol=0, atol=1e-4)
            assert found.usage.prompt_tokens < expected.usage.prompt_tokens / 2  # the prefix once in a row
        bare = {"input": [[5, 6, 7]], "task": "token_classify", "model": "tiny"}
        answer = httpx.post(f"{address}/pooling", json=bare, headers={"Authorization": f"Bearer {KEY}"}).json()
        assert answer["data"][0]["data"] == [], "a prompt that is no row has no documents, and gets no score"
