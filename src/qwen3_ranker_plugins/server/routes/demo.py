"""The demo corpus for the page: its questions, and what BM25 finds for them."""

from __future__ import annotations

from functools import cache

from ...data.demo import DemoCorpus, load_demo_corpus
from ...demo.searches import lower_case_words
from ..schemas import DemoCandidate, DemoCandidates, DemoQueries

_CANDIDATES = 12


@cache
def _corpus() -> DemoCorpus:
    return load_demo_corpus()


def demo_queries() -> DemoQueries:
    """All questions."""
    return DemoQueries(corpus="Python language reference", queries=dict(_corpus().queries))


@cache
def demo_candidates(query_id: str) -> DemoCandidates | None:
    """The best passages by BM25, best first; None if there is no such question."""
    from rank_bm25 import BM25Okapi

    corpus = _corpus()
    query = corpus.queries.get(query_id)
    if query is None:
        return None
    documents = list(corpus.documents.values())
    scores = BM25Okapi([lower_case_words(each.content) for each in documents]).get_scores(lower_case_words(query))
    best = sorted(range(len(documents)), key=lambda index: -scores[index])[:_CANDIDATES]
    grades = corpus.qrels.get(query_id, {})
    return DemoCandidates(
        query_id=query_id,
        query=query,
        candidates=[
            DemoCandidate(
                document_id=documents[index].document_id,
                text=documents[index].content,
                grade=grades.get(documents[index].document_id, 0),
            )
            for index in best
        ],
    )
