"""The rules of all adapters, for the LlamaIndex postprocessor."""

from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import NodeWithScore, TextNode

from llama_index.postprocessor.qwen3_ranker import Qwen3Rerank
from tests.adapter_rules import QUERY, AdapterRules, Ranked


class TestQwen3Rerank(AdapterRules):
    fork_program = """
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.qwen3_ranker import Qwen3Rerank
from qwen3_ranker_plugins import EngineClosedError, Reranker

nodes = [NodeWithScore(node=TextNode(id_=str(i), text=text)) for i, text in enumerate(texts)]
reranker = Qwen3Rerank(model="bundled:tiny", fail_open=True)
close = reranker.close

def read(ranked):
    return [(each.node_id, each.score, each.metadata) for each in ranked]

def sync():
    return read(reranker.postprocess_nodes(nodes, query_str=QUERY))

async def asynchronous():
    return read(await reranker.apostprocess_nodes(nodes, query_str=QUERY))

load = sync
"""
    after_forks = """
# A reranker that was given is the parent's: the error is not hidden.
with Reranker("bundled:tiny") as given:
    shared = Qwen3Rerank(reranker=given, fail_open=True)
    assert len(shared.postprocess_nodes(nodes, query_str=QUERY)) == 2

    def refused():
        try:
            shared.postprocess_nodes(nodes, query_str=QUERY)
        except EngineClosedError as error:
            assert "fork" in str(error)
        else:
            raise AssertionError("unranked in silence")

    in_child(refused)
"""

    def make(self, limit: int | None = None, **options: Any) -> Qwen3Rerank:
        return Qwen3Rerank(**{"model": "bundled:tiny", "top_n": limit, "metadata_mode": "none", **options})

    def documents(self, texts: Sequence[str]) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=TextNode(id_=str(i), text=text, metadata={"topic": {"number": str(i)}}), score=9.5 - i)
            for i, text in enumerate(texts)
        ]

    def rank(self, ranker: Qwen3Rerank, documents: list[NodeWithScore], query: str = QUERY) -> list[NodeWithScore]:
        return ranker.postprocess_nodes(documents, query_str=query)

    async def arank(
        self, ranker: Qwen3Rerank, documents: list[NodeWithScore], query: str = QUERY
    ) -> list[NodeWithScore]:
        return await ranker.apostprocess_nodes(documents, query_str=query)

    def read(self, document: NodeWithScore) -> Ranked:
        return Ranked(document.node_id, document.text, document.get_score(), document.metadata)
