"""Stock clients of other services with only the base URL changed, against a server that was started without flags.

Each ranking is compared with a direct call of the core. Clients that do not install beside the other test dependencies
run in an environment of their own, see `test_clients_elsewhere.py`.
"""

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
import voyageai
import yaml
from cohere.errors import NotFoundError, UnprocessableEntityError
from haystack import Document as HaystackDocument
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.vllm import VLLMRanker
from langchain_cohere import CohereRerank
from langchain_core.documents import Document as LangChainDocument
from langchain_nvidia_ai_endpoints import NVIDIARerank
from xinference_client import RESTfulClient as XinferenceClient
from xinference_client.client.restful.restful_client import RESTfulRerankModelHandle

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
def shared(server: Running) -> Running:
    """The server with default settings, which needs no key and has no further names."""
    assert server.keys == ()
    return server


@pytest.fixture(scope="module")
def strict(reranker: Reranker) -> Iterator[Running]:
    with serving(keys=(KEY,), strict_model_names=True) as running:
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


def test_the_cohere_sdk_understands_errors(strict: Running) -> None:
    client = cohere.ClientV2(KEY, base_url=strict.url)
    with pytest.raises(NotFoundError, match="served here"):
        client.rerank(model="rerank-english-v2.0", query=QUERY, documents=TEXTS)
    with pytest.raises(UnprocessableEntityError, match="query"):
        client.rerank(model="bundled:tiny", query=" ", documents=TEXTS)


def test_the_cohere_sdk_judges_fields(shared: Running, reranker: Reranker) -> None:
    client = cohere.Client(KEY, base_url=shared.url)
    documents = [{"title": text[:10], "body": text} for text in TEXTS]
    answer = client.rerank(model="rerank-english-v3.0", query=QUERY, documents=documents, rank_fields=["title", "body"])
    texts = [yaml.safe_dump(each, sort_keys=False, allow_unicode=True, width=2**31) for each in documents]
    assert [(each.index, each.relevance_score) for each in answer.results] == [
        (hit.index, pytest.approx(hit.score, abs=1e-5)) for hit in reranker.rerank(QUERY, texts)
    ]


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
    compressor.session.close()


def test_langchains_jina_compressor_shows_why_it_is_refused(strict: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jina_rerank, "JINA_API_URL", f"{strict.url}/v1/rerank")
    refused = JinaRerank(model="jina-reranker-v2", jina_api_key=KEY)
    with pytest.raises(RuntimeError, match="served here: bundled:tiny"):
        refused.compress_documents([LangChainDocument(text) for text in TEXTS], QUERY)
    refused.session.close()


def test_voyages_sdk(shared: Running, expected: list[tuple[int, Any]]) -> None:
    client = voyageai.Client(KEY, base_url=f"{shared.url}/v1")
    answer = client.rerank(QUERY, TEXTS, model="rerank-2.5", top_k=3)
    assert [(each.index, each.relevance_score) for each in answer.results] == expected[:3]
    assert answer.total_tokens > 0
    everything = client.rerank(QUERY, TEXTS, model="rerank-2.5-lite")
    assert [(each.index, each.relevance_score) for each in everything.results] == expected


def test_xinferences_client_as_dify_and_ragflow_use_it(shared: Running, expected: list[tuple[int, Any]]) -> None:
    """They ask what kind of model it is, and read the documents of the answer."""
    model = XinferenceClient(shared.url).get_model("bge-reranker-v2-m3")
    assert isinstance(model, RESTfulRerankModelHandle)
    answer = model.rerank(TEXTS, QUERY, top_n=3, return_documents=True, return_len=True)
    assert [(each["index"], each["relevance_score"]) for each in answer["results"]] == expected[:3]
    assert [each["document"]["text"] for each in answer["results"]] == [TEXTS[index] for index, _ in expected[:3]]


def test_langchains_nvidia_compressor(shared: Running, reranker: Reranker) -> None:
    compressor = NVIDIARerank(base_url=f"{shared.url}/v1", model="nvidia/any-reranker", api_key=KEY, top_n=3)
    documents = [LangChainDocument(text, metadata={"n": n}) for n, text in enumerate(TEXTS)]
    ranked = compressor.compress_documents(documents, QUERY)
    assert [(each.metadata["n"], each.metadata["relevance_score"]) for each in ranked] == [
        (hit.index, pytest.approx(hit.margin, abs=1e-4)) for hit in reranker.rerank(QUERY, TEXTS, 3)
    ]
