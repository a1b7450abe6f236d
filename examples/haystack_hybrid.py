"""Haystack: a pipeline in YAML with hybrid retrieval, a joiner and Qwen3Ranker."""

from __future__ import annotations

import os
from pathlib import Path

from local_generator import quiet

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
quiet()

from haystack import Document, Pipeline
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersDocumentEmbedder
from passages import EMBEDDING_MODEL, embedding_model, passages

embedder = SentenceTransformersDocumentEmbedder(model=embedding_model(), token=None, progress_bar=False)
documents = embedder.run([Document(id=each.document_id, content=each.content) for each in passages()])["documents"]
InMemoryDocumentStore(index="passages").write_documents(documents)

text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
pipeline = Pipeline.loads(text.replace(EMBEDDING_MODEL, embedding_model()))

question = "Look up a key without an error if it is missing"
query = {"query": question}
found = pipeline.run(
    {"bm25": query, "text_embedder": {"text": question}, "ranker": query}, include_outputs_from={"joiner"}
)
print(f"{question} ({len(found['joiner']['documents'])} candidates)")
for number, document in enumerate(found["ranker"]["documents"], start=1):
    print(f"[{number}] P(yes) {document.score:.2f}  {document.id}")
