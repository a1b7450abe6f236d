"""The rules of all adapters, for the Haystack component."""

from collections.abc import Sequence
from typing import Any

from haystack import Document

from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker
from tests.adapter_rules import QUERY, AdapterRules, Ranked


class TestQwen3Ranker(AdapterRules):
    fork_program = """
from haystack import Document
from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker

documents = [Document(id=str(i), content=text) for i, text in enumerate(texts)]
ranker = Qwen3Ranker(model="bundled:tiny", fail_open=True)
load, close = ranker.warm_up, ranker.close

def read(output):
    return [(document.id, document.score, document.meta) for document in output["documents"]]

def sync():
    return read(ranker.run(QUERY, documents))

async def asynchronous():
    return read(await ranker.run_async(QUERY, documents))
"""

    def make(self, limit: int | None = None, **options: Any) -> Qwen3Ranker:
        return Qwen3Ranker(**{"model": "bundled:tiny", "top_k": limit, **options})

    def documents(self, texts: Sequence[str]) -> list[Document]:
        return [
            Document(id=str(i), content=text, meta={"topic": {"number": str(i)}}, score=9.5 - i)
            for i, text in enumerate(texts)
        ]

    def rank(self, ranker: Qwen3Ranker, documents: list[Document], query: str = QUERY) -> list[Document]:
        return list(ranker.run(query, documents)["documents"])

    async def arank(self, ranker: Qwen3Ranker, documents: list[Document], query: str = QUERY) -> list[Document]:
        return list((await ranker.run_async(query, documents))["documents"])

    def read(self, document: Document) -> Ranked:
        assert document.content is not None
        assert document.score is not None
        return Ranked(document.id, document.content, document.score, document.meta)
