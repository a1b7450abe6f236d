"""A search service of your own on FastAPI: BM25 finds, the reranker judges, in one process.

    uvicorn --app-dir examples fastapi_app:app
    curl 'http://127.0.0.1:8000/search?q=Is+list+sorting+stable'

Requests that arrive together share forward passes: the reranker queues what its callers await. To serve reranking
alone, run `qwen3-ranker serve`, which has limits, keys and metrics.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import bm25s
from fastapi import FastAPI, Query, Request
from passages import passages
from pydantic import BaseModel

from qwen3_ranker_plugins import Reranker

PASSAGES = passages()
INDEX = bm25s.BM25()
INDEX.index(bm25s.tokenize([each.content for each in PASSAGES], show_progress=False), show_progress=False)


class Hit(BaseModel):
    """A passage and P(yes)."""

    id: str
    score: float
    text: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with Reranker("bundled:tiny") as reranker:  # in production "Qwen/Qwen3-Reranker-0.6B"
        app.state.reranker = reranker
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/search")
async def search(request: Request, q: Annotated[str, Query(min_length=1)], top_k: int = 3) -> list[Hit]:
    found, _ = INDEX.retrieve(bm25s.tokenize(q, show_progress=False), k=20, show_progress=False)
    candidates = [PASSAGES[index] for index in found[0]]
    ranking = await request.app.state.reranker.arerank(q, [each.content for each in candidates], top_k=top_k)
    return [
        Hit(id=candidates[hit.index].document_id, score=hit.score, text=candidates[hit.index].text) for hit in ranking
    ]
