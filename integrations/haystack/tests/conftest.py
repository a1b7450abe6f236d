"""One loaded model for all tests, and documents to rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from qwen3_ranker_plugins import Reranker

if TYPE_CHECKING:
    from haystack import Document

    from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported, which tests do and this file not


@pytest.fixture(scope="session")
def model() -> str:
    import torch

    # A second thread gains nothing with a model this small, and waits for its turn on a busy machine.
    torch.set_num_threads(1)
    return "bundled:tiny"


@pytest.fixture(scope="session")
def core(model: str) -> Iterator[Reranker]:
    """Knows the right scores, and keeps the engine that the components share alive between tests."""
    with Reranker(model) as reranker:
        yield reranker


@pytest.fixture
def ranker(model: str, core: Reranker) -> Iterator[Qwen3Ranker]:
    from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker

    component = Qwen3Ranker(model=model, top_k=None)
    yield component
    component.close()


@pytest.fixture
def documents() -> list[Document]:
    """As a retriever hands them over: with scores of its own, best first."""
    from haystack import Document

    texts = [
        "A list is a mutable sequence, written in square brackets.",
        "The with statement closes the file when its block ends.",
        "A generator yields its values one at a time.",
        "The finally clause runs whether or not an exception was raised.",
        "Bananas are rich in potassium.",
    ]
    return [
        Document(id=f"doc-{i}", content=text, meta={"topic": {"number": i}, "tags": ["a"]}, score=9.5 - i)
        for i, text in enumerate(texts)
    ]
