"""The short version of haystack_rag.ipynb: documents -> BM25 -> Qwen3Ranker -> prompt -> generator."""

from __future__ import annotations

import os

from local_generator import haystack_generator, quiet

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
quiet()

from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore

from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker
from qwen3_ranker_plugins.data.demo import load_demo_corpus

TEMPLATE = """Answer the question in one sentence, using only the sources.

{% for document in documents %}[{{ loop.index }}] {{ document.content[:500] }}

{% endfor %}Question: {{ question }}"""

corpus = load_demo_corpus()
store = InMemoryDocumentStore()
store.write_documents([Document(id=each.document_id, content=each.content) for each in corpus.documents.values()])

rag = Pipeline()
rag.add_component("retriever", InMemoryBM25Retriever(store, top_k=10))
rag.add_component("ranker", Qwen3Ranker(model="bundled:tiny", top_k=2))
rag.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user(TEMPLATE)], required_variables="*"))
rag.connect("retriever.documents", "ranker.documents")
rag.connect("ranker.documents", "prompt.documents")
generator = haystack_generator(max_tokens=30)
if generator is not None:
    rag.add_component("generator", generator)
    rag.connect("prompt.prompt", "generator.messages")

question = "How do I supply a computed value when an attribute does not exist?"
outputs = rag.run(
    {"retriever": {"query": question}, "ranker": {"query": question}, "prompt": {"question": question}},
    include_outputs_from={"ranker"},
)
print(question)
for number, document in enumerate(outputs["ranker"]["documents"], start=1):
    print(f"[{number}] P(yes) {document.score:.2f}  {document.id}")
if generator is not None:
    print("Answer:", outputs["generator"]["replies"][0].text.strip())
