"""The demo corpus for the page: its questions, and the passages that BM25 finds for each."""

from __future__ import annotations

from functools import cache

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from ...data.bm25 import BM25
from ...data.demo import DEFAULT_CANDIDATES, DemoCorpus, load_demo_corpus
from ..errors import ApiError
from ..fields import ErrorResponse
from ..state import state_of

router = APIRouter()


class DemoQueries(BaseModel):
    """Questions of the demo corpus."""

    corpus: str
    queries: dict[str, str]
    shown: dict[str, str] = Field(
        description="The questions to show first, with the reason: typical gains, then the largest loss."
    )
    guarded: bool = Field(description="Whether requests to this server need a key.")


class DemoCandidate(BaseModel):
    """A passage that BM25 found."""

    document_id: str
    text: str
    grade: int = Field(description="2: answers the question; 1: helps; 0: not judged relevant.")


class DemoCandidates(BaseModel):
    """The passages for a question, in BM25's order."""

    query_id: str
    query: str
    reason: str | None = Field(description="Why the question is among those to show first; null if it is not.")
    judged: list[int] = Field(
        description="Grades of all relevant passages, highest first, whether BM25 found them or not: the ideal ranking."
    )
    candidates: list[DemoCandidate]


@router.get("/demo")
async def demo(request: Request) -> DemoQueries:
    """Questions of the demo corpus."""
    corpus = _corpus()
    return DemoQueries(
        corpus="Python language reference",
        queries=dict(corpus.queries),
        shown={each.query_id: each.reason for each in corpus.shown},
        guarded=bool(state_of(request).lifecycle.keys),
    )


@router.get("/demo/{query_id}", responses={404: {"model": ErrorResponse, "description": "No such question."}})
async def demo_query(request: Request, query_id: str) -> DemoCandidates:
    """The passages that BM25 finds for a question, at most as many as a request may contain."""
    if query_id not in _corpus().queries:  # checked first, so that unknown ids cannot fill the cache
        raise ApiError(404, "not_found", "no such question; /demo lists them", param="query_id")
    found = _candidates(query_id)
    return found.model_copy(update={"candidates": found.candidates[: state_of(request).settings.max_documents]})


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
        reason=next((each.reason for each in corpus.shown if each.query_id == query_id), None),
        judged=sorted(grades.values(), reverse=True),
        candidates=[
            DemoCandidate(
                document_id=document_id,
                text=corpus.documents[document_id].content,
                grade=grades.get(document_id, 0),
            )
            for document_id in _index().search(query, DEFAULT_CANDIDATES)
        ],
    )
