"""Clients of other services with only the base URL changed; each ranking is compared with a direct call."""

from __future__ import annotations

import gc
import os

# Haystack's telemetry writes a file into the home folder and calls out.
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

import warnings
from collections.abc import Iterator
from typing import Any

import cohere
import pytest
from cohere.errors import NotFoundError, UnprocessableEntityError
from haystack import Document as HaystackDocument
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.vllm import VLLMRanker
from langchain_cohere import CohereRerank
from langchain_core.documents import Document as LangChainDocument

from qwen3_ranker_plugins import Reranker

from .conftest import DOCUMENTS, QUERY, Running, serving

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # the package is no longer developed
    from langchain_community.document_compressors import JinaRerank, jina_rerank

KEY = "clients-key-0123456789"
TEXTS = [text for text in DOCUMENTS if text]

# Inside these clients, not ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """These clients leave sockets to the garbage collector: it shall find them here, where that is expected."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def shared(reranker: Reranker) -> Iterator[Running]:
    with serving(keys=(KEY,), served_model_names=("qwen3-reranker", "rerank-v3.5")) as running:
        yield running


@pytest.fixture(scope="module")
def expected(reranker: Reranker) -> list[tuple[int, Any]]:
    return [(hit.index, pytest.approx(hit.score, abs=1e-5)) for hit in reranker.rerank(QUERY, TEXTS)]


def test_the_cohere_sdk_v2(shared: Running, expected: list[tuple[int, Any]]) -> None:
    client = cohere.ClientV2(KEY, base_url=shared.url)
    answer = client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS, top_n=3)
    assert [(each.index, each.relevance_score) for each in answer.results] == expected[:3]
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "2"
    assert answer.meta.tokens is not None
    assert answer.meta.tokens.input_tokens
    cut = client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS, max_tokens_per_doc=2)
    assert cut.meta is not None
    assert cut.meta.warnings


def test_the_cohere_sdk_v1(shared: Running, expected: list[tuple[int, Any]]) -> None:
    client = cohere.Client(KEY, base_url=shared.url)
    documents = [{"text": text} for text in TEXTS]
    answer = client.rerank(model="rerank-v3.5", query=QUERY, documents=documents, return_documents=True)
    assert [(each.index, each.relevance_score) for each in answer.results] == expected
    assert [each.document.text for each in answer.results if each.document] == [TEXTS[index] for index, _ in expected]


async def test_the_async_cohere_sdk(shared: Running, expected: list[tuple[int, Any]]) -> None:
    client = cohere.AsyncClientV2(KEY, base_url=shared.url)
    answer = await client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS)
    assert [(each.index, each.relevance_score) for each in answer.results] == expected


def test_the_cohere_sdk_understands_errors(shared: Running) -> None:
    client = cohere.ClientV2(KEY, base_url=shared.url)
    with pytest.raises(NotFoundError, match="served here"):
        client.rerank(model="rerank-english-v2.0", query=QUERY, documents=TEXTS)
    with pytest.raises(UnprocessableEntityError, match="query"):
        client.rerank(model="rerank-v3.5", query=" ", documents=TEXTS)


@pytest.mark.parametrize("path", ["/v1", "/v2", ""])
def test_haystacks_vllm_ranker(path: str, shared: Running, expected: list[tuple[int, Any]]) -> None:
    ranker = VLLMRanker(
        model="qwen3-reranker",
        api_key=Secret.from_token(KEY),
        api_base_url=f"{shared.url}{path}",
        top_k=3,
        http_client_kwargs={"timeout": 60},
        extra_parameters={"instruction": None, "truncate_prompt_tokens": -1},
    )
    output = ranker.run(
        query=QUERY, documents=[HaystackDocument(id=str(n), content=text) for n, text in enumerate(TEXTS)]
    )
    ranker.close()
    assert [(int(each.id), each.score) for each in output["documents"]] == expected[:3]
    assert output["meta"]["usage"]["prompt_tokens"] > 0


def test_haystacks_cohere_ranker(shared: Running, expected: list[tuple[int, Any]]) -> None:
    ranker = CohereRanker(model="rerank-v3.5", api_key=Secret.from_token(KEY), api_base_url=shared.url, top_k=3)
    output = ranker.run(
        query=QUERY, documents=[HaystackDocument(id=str(n), content=text) for n, text in enumerate(TEXTS)]
    )
    assert [(int(each.id), each.score) for each in output["documents"]] == expected[:3]


def test_langchains_cohere_compressor(shared: Running, expected: list[tuple[int, Any]]) -> None:
    compressor = CohereRerank(model="rerank-v3.5", cohere_api_key=KEY, base_url=shared.url, top_n=3)
    documents = [LangChainDocument(text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
    ranked = compressor.compress_documents(documents, QUERY)
    assert [(each.metadata["n"], each.metadata["relevance_score"]) for each in ranked] == expected[:3]


def test_langchains_jina_compressor(
    shared: Running, expected: list[tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no argument for the address, which is a constant of its module."""
    monkeypatch.setattr(jina_rerank, "JINA_API_URL", f"{shared.url}/v1/rerank")
    compressor = JinaRerank(model="qwen3-reranker", jina_api_key=KEY, top_n=3)
    documents = [LangChainDocument(text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
    ranked = compressor.compress_documents(documents, QUERY)
    assert [(each.metadata["n"], each.metadata["relevance_score"]) for each in ranked] == expected[:3]
    refused = JinaRerank(model="jina-reranker-v2", jina_api_key=KEY)
    with pytest.raises(RuntimeError, match="served here: qwen3-reranker"):
        refused.compress_documents(documents, QUERY)
    compressor.session.close()
    refused.session.close()
