"""Shared fixtures: the bundled model, the real Qwen3 tokenizer, and an independent scorer to compare with.

What takes seconds to import (torch, transformers) is imported by the fixtures: the controller of pytest-xdist reads
this file too, and runs no test.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.models import resolve_model
from qwen3_ranker_plugins.prompt import EncodedRequest, ModelTokenizer, load_tokenizer

from .qwen3_tokenizer import write_qwen3_tokenizer
from .warm_python import WarmPython
from .warm_python import warm_python as start_warm_python

if TYPE_CHECKING:
    from qwen3_ranker_plugins.engines.packed.engine import PackedEngine

# The first example of a property loads a tokenizer, and the machines that run this are slow and shared.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


class Ended(NamedTuple):
    """What a call of the command left."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`qwen3-ranker` in this process, where its imports are paid for: with arguments, streams and an exit code."""
    from qwen3_ranker_plugins.cli.app import main

    def run(*arguments: object, stdin: bytes = b"a document") -> Ended:
        monkeypatch.setattr(sys, "argv", ["qwen3-ranker", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # as `main` sets it, which is undone here
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Folder of the bundled model."""
    return resolve_model("bundled:tiny")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny: Path) -> ModelTokenizer:
    return load_tokenizer(tiny)


@pytest.fixture(scope="session")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of Qwen3-Reranker, all 151,669 entries."""
    folder = tmp_path_factory.mktemp("qwen3-tokenizer")
    write_qwen3_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def qwen3_tokenizer(qwen3_folder: Path) -> ModelTokenizer:
    return load_tokenizer(qwen3_folder)


@pytest.fixture(scope="session")
def reranker() -> Iterator[Reranker]:
    with Reranker("bundled:tiny") as shared:
        yield shared


def _one_at_a_time(tiny: Path, dtype: str) -> Callable[..., NDArray[np.float32]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    tokenizer = load_tokenizer(tiny)

    @cache  # several engines are asked for the same prompts
    @torch.inference_mode()
    def margin(prompt: tuple[int, ...]) -> float:
        logits = model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1]
        return float(logits[tokenizer.yes_id] - logits[tokenizer.no_id])

    def margins(request: EncodedRequest) -> NDArray[np.float32]:
        return np.array([margin(tuple(request.prompt(i))) for i in range(len(request.segments))], dtype=np.float32)

    return margins


@pytest.fixture(scope="session")
def one_at_a_time(tiny: Path) -> Callable[..., NDArray[np.float32]]:
    """Margins by transformers' own forward pass on one whole prompt after the other, in float32."""
    return _one_at_a_time(tiny, "float32")


@pytest.fixture(scope="session")
def one_at_a_time_in_float16(tiny: Path) -> Callable[..., NDArray[np.float32]]:
    """The same in float16: how much a margin depends on rounding differs by a factor of 100 between prompts."""
    return _one_at_a_time(tiny, "float16")


@pytest.fixture(scope="session")
def tiny_engine(tiny: Path) -> Iterator[PackedEngine]:
    from qwen3_ranker_plugins.engines.packed.engine import PackedEngine

    engine = PackedEngine(tiny, device="cpu", dtype="float32")
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def vllm_url(tiny: Path, tiny_engine: PackedEngine) -> Iterator[str]:
    """A service in vLLM's shape."""
    from .remote.services import running, vllm_like

    with running(vllm_like(tiny, tiny_engine)) as url:
        yield url


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    with start_warm_python(tmp_path_factory.mktemp("warm")) as warm:
        yield warm


@pytest.fixture(scope="session")
def warm_workers(warm_python: WarmPython) -> Iterator[None]:
    """Worker processes of engines on vLLM are forked from one that has imported vLLM.

    tests/contract/engine_script.py and tests/bench/test_latency.py start workers that import it themselves.
    """
    with warm_python.workers():
        yield
