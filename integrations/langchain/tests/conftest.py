"""One loaded model for all tests, and documents to rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from qwen3_ranker_plugins import Reranker

if TYPE_CHECKING:
    from langchain_core.documents import Document

pytest.register_assert_rewrite("langchain_qwen3_ranker.conformance")


@pytest.fixture(scope="session")
def model() -> str:
    return "bundled:tiny"


@pytest.fixture(scope="session", autouse=True)
def core(model: str) -> Iterator[Reranker]:
    """Knows the right scores, and keeps the engine that the tests share alive between them."""
    import torch

    # A second thread gains nothing with a model this small, and waits for its turn on a busy machine.
    torch.set_num_threads(1)
    with Reranker(model) as reranker:
        yield reranker


@pytest.fixture
def documents() -> list[Document]:
    from langchain_core.documents import Document

    texts = [
        "A list is a mutable sequence, written in square brackets.",
        "The with statement closes the file when its block ends.",
        "A generator yields its values one at a time.",
        "The finally clause runs whether or not an exception was raised.",
        "Bananas are rich in potassium.",
    ]
    return [Document(text, id=f"doc-{i}", metadata={"topic": {"number": i}}) for i, text in enumerate(texts)]
