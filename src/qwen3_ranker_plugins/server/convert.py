"""Between the shapes on the wire and the core's values."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence

from ..prompt import TEMPLATES
from ..types import Request, ScoredDocument, Usage
from .errors import ApiError
from .schemas import (
    ApiVersion,
    BilledUnits,
    DocumentObject,
    QueryScoreRequest,
    RankedDocument,
    RerankItem,
    RerankMeta,
    RerankRequest,
    RerankResponse,
    RerankUsage,
    ScoreItem,
    ScoreResponse,
    SeedRequest,
    SeedResponse,
    TeiRank,
    TeiRequest,
    TextScoreRequest,
    TokenCounts,
    TruncatedDocument,
)
from .service import Ranking


def texts(documents: Iterable[str | DocumentObject]) -> list[str]:
    """What is judged."""
    return [each if isinstance(each, str) else each.text for each in documents]


def template_name(template: str) -> str:
    """The name of a template, or "custom"."""
    return template if template in TEMPLATES else "custom"


def seed_response(body: SeedRequest, ranked: Ranking) -> SeedResponse:
    """The plain shape."""
    return SeedResponse(
        query=body.query,
        ranked_documents=[
            RankedDocument(
                document=hit.document,
                index=hit.index,
                relevance_score=hit.score,
                confidence=hit.confidence,
                rank=rank,
                truncated_tokens=hit.truncated_tokens or None,
            )
            for rank, hit in enumerate(ranked.result, start=1)
        ],
        total_processed=ranked.result.usage.documents,
        processing_time_ms=_milliseconds(ranked.seconds),
    )


def tei_rank(body: TeiRequest, hit: ScoredDocument) -> TeiRank:
    """A result of text-embeddings-inference."""
    return TeiRank(
        index=hit.index,
        score=hit.margin if body.raw_scores else hit.score,
        text=hit.document if body.return_text else None,
    )


def rerank_response(body: RerankRequest, ranked: Ranking, model: str, version: str) -> RerankResponse:
    """The shape of Cohere, Jina and vLLM."""
    usage = ranked.result.usage
    cut = [TruncatedDocument(index=index, truncated_tokens=tokens) for index, tokens in ranked.truncated]
    return RerankResponse(
        id=f"rerank-{uuid.uuid4().hex}",
        model=model,
        results=[
            RerankItem(
                index=hit.index,
                relevance_score=hit.margin if body.use_activation is False else hit.score,
                document=_document(body.documents[hit.index]) if body.return_documents else None,
            )
            for hit in ranked.result
        ],
        usage=_usage([usage]),
        meta=RerankMeta(
            api_version=ApiVersion(version=version),
            billed_units=BilledUnits(search_units=1),
            tokens=TokenCounts(input_tokens=usage.prompt_tokens),
            processing_time_ms=_milliseconds(ranked.seconds),
            truncated=cut or None,
            warnings=[f"{len(cut)} documents were not read to their end; meta.truncated lists them"] if cut else None,
        ),
    )


def score_requests(body: TextScoreRequest | QueryScoreRequest) -> tuple[list[Request], list[tuple[int, int]]]:
    """(a request per query, for each pair its request and its place there). Pairs of a query share its prefix.

    Raises:
        ApiError: neither one query nor as many queries as documents.
    """
    first, second = body.pair
    queries = [first] if isinstance(first, str) else first
    documents = [second] if isinstance(second, str) else second
    if len(queries) == 1:
        queries = queries * len(documents)
    if len(queries) != len(documents):
        raise ApiError(
            422,
            "invalid_request",
            f"{len(queries)} queries and {len(documents)} documents: give one query, or as many as documents",
        )
    grouped: dict[str, list[str]] = {}
    numbers: dict[str, int] = {}
    places: list[tuple[int, int]] = []
    for query, document in zip(queries, documents, strict=True):
        group = grouped.setdefault(query, [])
        places.append((numbers.setdefault(query, len(numbers)), len(group)))
        group.append(document)
    limit = body.max_tokens_per_doc or None
    return [Request(query, group, body.instruction, limit) for query, group in grouped.items()], places


def score_response(
    body: TextScoreRequest | QueryScoreRequest,
    rankings: Sequence[Ranking],
    places: Sequence[tuple[int, int]],
    model: str,
) -> ScoreResponse:
    """The shape of vLLM, in the order of the request."""
    raw = body.use_activation is False
    scores = [{hit.index: hit.margin if raw else hit.score for hit in each.result} for each in rankings]
    return ScoreResponse(
        id=f"score-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=model,
        data=[ScoreItem(index=index, score=scores[group][place]) for index, (group, place) in enumerate(places)],
        usage=_usage([each.result.usage for each in rankings]),
    )


def _document(document: str | DocumentObject) -> DocumentObject:
    return DocumentObject(text=document) if isinstance(document, str) else document


def _usage(usages: Sequence[Usage]) -> RerankUsage:
    prompts = sum(each.prompt_tokens for each in usages)
    return RerankUsage(
        prompt_tokens=prompts, total_tokens=prompts, computed_tokens=sum(each.computed_tokens for each in usages)
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
