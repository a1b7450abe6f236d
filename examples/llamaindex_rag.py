"""BM25 -> RetrieverQueryEngine with Qwen3Rerank -> answer, sources, in LlamaIndex.

The answer is that of `MockLLM`, which repeats its prompt; put the language model of your choice in its place.
"""

from __future__ import annotations

from llama_index.core import get_response_synthesizer
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from llama_index.postprocessor.qwen3_ranker import Qwen3Rerank
from qwen3_ranker_plugins.data.bm25 import BM25
from qwen3_ranker_plugins.data.demo import load_demo_corpus

nodes = {
    each.document_id: TextNode(id_=each.document_id, text=each.content)
    for each in load_demo_corpus().documents.values()
}


class Bm25Retriever(BaseRetriever):
    """The ten best passages of the corpus; any retriever does."""

    def __init__(self) -> None:
        super().__init__()
        self._index = BM25((name, node.text) for name, node in nodes.items())

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=nodes[name]) for name in self._index.search(query_bundle.query_str, 10)]


engine = RetrieverQueryEngine(
    retriever=Bm25Retriever(),
    response_synthesizer=get_response_synthesizer(llm=MockLLM()),
    node_postprocessors=[Qwen3Rerank(model="bundled:tiny", top_n=2, return_judged_text=True)],
)
response = engine.query("How do I supply a computed value when an attribute does not exist?")
for number, source in enumerate(response.source_nodes, start=1):
    print(f"[{number}] P(yes) {source.score:.2f}  {source.node_id}")
print("Answer:", " ".join(str(response).split())[:300])
