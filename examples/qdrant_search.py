"""Qdrant finds candidates by embeddings, the reranker orders them.

Alone, the vector database and the model run inside this process. With the services of compose.yaml:

    docker compose -f examples/compose.yaml up --build --detach --wait
    QDRANT_URL=http://127.0.0.1:6333 RANKER_URL=http://127.0.0.1:8001 python examples/qdrant_search.py
"""

from __future__ import annotations

import os

from local_generator import quiet

quiet()

from passages import embedding_model, passages
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams
from sentence_transformers import SentenceTransformer

from qwen3_ranker_plugins import Reranker

COLLECTION = "passages"

url = os.environ.get("QDRANT_URL")
database = QdrantClient(url=url) if url else QdrantClient(":memory:")
service = os.environ.get("RANKER_URL")
remote = {"engine": "remote", "engine_options": {"url": service, "served_model": ""}} if service else {}

model = SentenceTransformer(embedding_model(), device="cpu")
documents = passages()
vectors = model.encode([each.content for each in documents], normalize_embeddings=True)
if database.collection_exists(COLLECTION):
    database.delete_collection(COLLECTION)
database.create_collection(COLLECTION, VectorParams(size=vectors.shape[1], distance=Distance.COSINE))
database.upsert(
    COLLECTION,
    [
        PointStruct(id=number, vector=vector.tolist(), payload={"name": each.document_id, "content": each.content})
        for number, (each, vector) in enumerate(zip(documents, vectors, strict=True))
    ],
)

question = "Look up a key without an error if it is missing"
asked = model.encode(question, normalize_embeddings=True).tolist()
candidates = [point.payload for point in database.query_points(COLLECTION, asked, limit=20).points if point.payload]

with Reranker("bundled:tiny", **remote) as reranker:
    ranking = reranker.rerank(question, [each["content"] for each in candidates], top_k=3)
print(f"{question} ({len(candidates)} candidates from Qdrant)")
for number, hit in enumerate(ranking, start=1):
    print(f"[{number}] P(yes) {hit.score:.2f}  {candidates[hit.index]['name']} (was {hit.index + 1})")
database.close()
