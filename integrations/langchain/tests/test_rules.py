"""The rules of all adapters, for the LangChain compressor; the forks also for the cross encoder."""

from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document

from langchain_qwen3_ranker import Qwen3Rerank
from tests.adapter_rules import QUERY, AdapterRules, Ranked


class TestQwen3Rerank(AdapterRules):
    fork_program = """
from langchain_core.documents import Document
from langchain_qwen3_ranker import Qwen3CrossEncoder, Qwen3Rerank
from qwen3_ranker_plugins import EngineClosedError, Reranker

documents = [Document(id=str(i), page_content=text) for i, text in enumerate(texts)]
compressor = Qwen3Rerank(model="bundled:tiny", fail_open=True)
encoder = Qwen3CrossEncoder(model="bundled:tiny")

def read(ranked):
    return [(document.id, document.metadata.get("relevance_score"), document.metadata) for document in ranked]

def sync():
    ranked = compressor.compress_documents(documents, QUERY)
    scores = encoder.score([(QUERY, document.page_content) for document in ranked])
    assert scores == sorted(scores, reverse=True)
    return read(ranked)

async def asynchronous():
    return read(await compressor.acompress_documents(documents, QUERY))

load = sync

def close():
    compressor.close()
    encoder.close()
"""
    after_forks = """
# A reranker that was given is the parent's: the error is not hidden.
with Reranker("bundled:tiny") as given:
    shared = Qwen3Rerank(reranker=given, fail_open=True)
    assert len(shared.compress_documents(documents, QUERY)) == 2

    def refused():
        for attempt in range(2):
            try:
                shared.compress_documents(documents, QUERY)
            except EngineClosedError as error:
                assert "fork" in str(error)
            else:
                raise AssertionError("unranked in silence")

    in_child(refused)
"""

    def make(self, limit: int | None = None, **options: Any) -> Qwen3Rerank:
        return Qwen3Rerank(**{"model": "bundled:tiny", "top_n": limit, **options})

    def documents(self, texts: Sequence[str]) -> list[Document]:
        return [Document(text, id=str(i), metadata={"topic": {"number": str(i)}}) for i, text in enumerate(texts)]

    def rank(self, ranker: Qwen3Rerank, documents: list[Document], query: str = QUERY) -> list[Document]:
        return ranker.compress_documents(documents, query)

    async def arank(self, ranker: Qwen3Rerank, documents: list[Document], query: str = QUERY) -> list[Document]:
        return await ranker.acompress_documents(documents, query)

    def read(self, document: Document) -> Ranked:
        score = document.metadata["relevance_score"]
        return Ranked(str(document.id), document.page_content, score, document.metadata)
