"""The demo corpus for the page: its questions, and the passages that BM25 finds for each."""

from __future__ import annotations

from functools import cache

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ...data.bm25 import BM25
from ...data.demo import DemoCorpus, load_demo_corpus
from ..errors import ApiError
from ..fields import ErrorResponse

_CANDIDATES = 12

router = APIRouter()


class DemoQueries(BaseModel):
    """Questions of the demo corpus."""

    corpus: str
    queries: dict[str, str]


class DemoCandidate(BaseModel):
    """A passage that BM25 found."""

    document_id: str
    text: str
    grade: int = Field(description="2: answers the question; 1: helps; 0: not judged relevant.")


class DemoCandidates(BaseModel):
    """The passages for a question, in BM25's order."""

    query_id: str
    query: str
    candidates: list[DemoCandidate]


@router.get("/demo")
async def demo() -> DemoQueries:
    """Questions of the demo corpus."""
    return DemoQueries(corpus="Python language reference", queries=dict(_corpus().queries))


@router.get("/demo/{query_id}", responses={404: {"model": ErrorResponse, "description": "No such question."}})
async def demo_query(query_id: str) -> DemoCandidates:
    """What BM25 finds for a question."""
    if query_id not in _corpus().queries:  # asked first, so that unknown ids cannot fill the cache
        raise ApiError(404, "not_found", "no such question; /demo lists them", param="query_id")
    return _candidates(query_id)


@cache
def _corpus() -> DemoCorpus:
    return load_demo_corpus()


@cache
def _index() -> BM25:
    return BM25((document_id, each.content) for document_id, each in _corpus().documents.items())


@cache
def _candidates(query_id: str) -> DemoCandidates:
    """The best passages by BM25, best first."""
    corpus = _corpus()
    query = corpus.queries[query_id]
    grades = corpus.qrels.get(query_id, {})
    return DemoCandidates(
        query_id=query_id,
        query=query,
        candidates=[
            DemoCandidate(
                document_id=document_id,
                text=corpus.documents[document_id].content,
                grade=grades.get(document_id, 0),
            )
            for document_id in _index().search(query, _CANDIDATES)
        ],
    )
