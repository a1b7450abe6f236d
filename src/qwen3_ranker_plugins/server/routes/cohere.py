"""The shape of Cohere, Jina, vLLM, LocalAI, Xinference and SiliconFlow: `POST /v1/rerank` and its other addresses.

They agree on {model, query, documents, top_n} -> {results: [{index, relevance_score}]}, and differ in what they add.
"""

from __future__ import annotations

import uuid
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ...config import RankingOptions
from ...types import Pieces, Request
from ..documents import judged_texts, returns_judged_text
from ..errors import ApiError
from ..explanations import ExplainField, ExplanationAnswer, add_details
from ..fields import (
    EXAMPLE_DOCUMENTS,
    EXAMPLE_QUERY,
    NO_EFFECT,
    Count,
    DocumentObject,
    EmptyArguments,
    Flag,
    JudgedPiece,
    No,
    NotBlank,
    Query,
    ScoreThreshold,
    StructuredRequest,
    TaskFields,
    TokenUsage,
    present,
)
from ..service import Ranking
from ..shapes import Exchange, Shape

T = TypeVar("T")


class RerankRequest(TaskFields, StructuredRequest):
    """A query and its documents, as Cohere, Jina, vLLM, LocalAI, Xinference and SiliconFlow take them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": EXAMPLE_QUERY, "documents": EXAMPLE_DOCUMENTS, "top_n": 1}]}
    )

    query: Query
    documents: list[str | DocumentObject]
    top_n: Count | None = Field(default=None, description="At most this many results. 0 or null: all.")
    top_k: Count | None = Field(default=None, description="Another name for top_n.")
    score_threshold: ScoreThreshold = None
    return_documents: Flag | None = Field(
        default=None,
        description="Whether each result holds its document. Null: yes on /rerank, as in vLLM; elsewhere as configured "
        "(setting return_documents, by default no).",
    )
    instruct: NotBlank | None = Field(default=None, description="SGLang's name for instruction.")
    raw_scores: bool | None = Field(
        default=None, description="Infinity's. True: scores are logit(yes) - logit(no) instead of P(yes)."
    )
    truncation: bool | None = Field(
        default=None, description="False: a document that does not fit is an error (413). Otherwise its end is cut."
    )
    max_chunks_per_doc: Count | None = Field(
        default=None,
        description="Cohere's and SiliconFlow's. A document of more than piece_tokens (a setting) is judged in at most "
        "this many pieces, and at most max_pieces (a setting); it gets the score of the best piece. 0 or null: as "
        "configured.",
    )
    overlap_tokens: Count | None = Field(
        default=None,
        description="SiliconFlow's. Tokens that two pieces share; at most half of piece_tokens. Null: as configured. "
        "No effect unless documents are judged in pieces.",
    )
    explain: ExplainField = None
    return_len: Flag | None = Field(
        default=None, description="Xinference's. No effect, because meta.tokens is always in the answer."
    )
    kwargs: EmptyArguments = Field(default=None, description=f"Xinference's. Must be empty. {NO_EFFECT}")
    return_embeddings: No | None = Field(default=None, description="Jina's. Only false.")


class RerankItem(BaseModel):
    """A result."""

    index: int = Field(description="Position in the request.")
    relevance_score: float
    document: DocumentObject | None = Field(default=None, description="See return_documents.")
    piece: JudgedPiece = None
    explanation: ExplanationAnswer | None = Field(default=None, description="See explain.")
    judged_text: str | None = Field(default=None, description="The text that the model read; see return_judged_text.")


class TruncatedDocument(BaseModel):
    """A document whose end was cut."""

    index: int
    truncated_tokens: int


class ApiVersion(BaseModel):
    """The version of Cohere's interface."""

    version: str


class BilledUnits(BaseModel):
    """Billed units, in the place where Cohere's clients look for them."""

    search_units: int


class TokenCounts(BaseModel):
    """Tokens, in the place where clients of Cohere and Xinference look for them."""

    input_tokens: int
    output_tokens: int = Field(description="Always 0, because nothing is generated.")


class RerankMeta(BaseModel):
    """About a ranking."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: TokenCounts
    processing_time_ms: float
    truncated: list[TruncatedDocument] | None = Field(
        default=None, description="Documents that were cut; missing if none was."
    )
    warnings: list[str] | None = None


class RerankResponse(BaseModel):
    """The documents in order of relevance, best first."""

    id: str
    model: str
    results: list[RerankItem]
    usage: TokenUsage
    meta: RerankMeta


async def rank(exchange: Exchange, body: RerankRequest) -> Ranking:
    """Rank the documents of a request of this shape."""
    request = Request(
        body.query,
        await judged_texts(exchange, body.documents, body),
        _one_of("instruction", body.instruction, "instruct", body.instruct),
        body.document_limit,
        _pieces(exchange, body),
    )
    top_k = _one_of("top_n", body.top_n, "top_k", body.top_k) or None
    options = RankingOptions(top_k, body.score_threshold)
    return await exchange.rank(request, options, may_cut=body.truncation is not False, explain=body.explain or False)


def _pieces(exchange: Exchange, body: RerankRequest) -> Pieces | None:
    """The pieces that a request asks for; None if it leaves them as configured.

    Raises:
        ApiError: 422, the overlap is too long.
    """
    if not body.max_chunks_per_doc and body.overlap_tokens is None:
        return None
    settings = exchange.state.settings.reranker_settings()
    if not body.max_chunks_per_doc and settings.pieces is None:
        return None
    configured = settings.cut
    overlap = configured.overlap if body.overlap_tokens is None else body.overlap_tokens
    if overlap > configured.tokens // 2:
        raise ApiError(
            422,
            "invalid_request",
            f"overlap_tokens: {overlap} is more than half of a piece, which has {configured.tokens} tokens here",
            param="overlap_tokens",
        )
    return Pieces(configured.tokens, overlap, min(body.max_chunks_per_doc or configured.limit, configured.limit))


def wants_documents(exchange: Exchange, body: RerankRequest) -> bool:
    """Whether results contain their documents: as the request says, or by the default of the route."""
    if body.return_documents is not None:
        return bool(body.return_documents)
    return exchange.path == "/rerank" or exchange.state.settings.return_documents


def gives_margins(body: RerankRequest) -> bool:
    """Whether scores are logit(yes) - logit(no) instead of P(yes)."""
    return body.use_activation is False or body.raw_scores is True


def _one_of(name: str, value: T | None, alias: str, other: T | None) -> T | None:
    """The value of a field that has two names.

    Raises:
        ApiError: 422, they have different values.
    """
    if value is not None and other is not None and value != other:
        raise ApiError(422, "invalid_request", f"{alias}: differs from {name}, which means the same", param=alias)
    return other if value is None else value


async def _respond(exchange: Exchange, body: RerankRequest) -> dict[str, Any]:
    ranked = await rank(exchange, body)
    usage = ranked.result.usage
    documents, margins = wants_documents(exchange, body), gives_margins(body)
    judged = returns_judged_text(exchange, body)
    cut = [TruncatedDocument(index=index, truncated_tokens=tokens) for index, tokens in ranked.truncated]
    results: list[dict[str, Any]] = [
        {"index": hit.index, "relevance_score": hit.margin if margins else hit.score} for hit in ranked.result
    ]
    for item, hit in zip(results, ranked.result, strict=True) if documents else ():
        item["document"] = _as_object(body.documents[hit.index])
    add_details(results, ranked.result)
    for item, hit in zip(results, ranked.result, strict=True) if judged else ():
        item["judged_text"] = hit.document
    return present(
        id=f"rerank-{uuid.uuid4().hex}",
        model=exchange.model,
        results=results,
        usage=TokenUsage.of([usage]),
        meta=RerankMeta(
            api_version=ApiVersion(version="2" if exchange.path.startswith("/v2") else "1"),
            billed_units=BilledUnits(search_units=1),
            tokens=TokenCounts(input_tokens=usage.prompt_tokens, output_tokens=0),
            processing_time_ms=ranked.milliseconds,
            truncated=cut or None,
            warnings=_warnings(exchange, len(cut)) or None,
        ),
    )


def _as_object(document: str | DocumentObject) -> dict[str, str] | DocumentObject:
    return {"text": document} if isinstance(document, str) else document


def _warnings(exchange: Exchange, cut: int) -> list[str]:
    return exchange.warnings + ([f"{cut} documents were cut at their end; meta.truncated lists them"] if cut else [])


#: Fields that a body on /rerank has only in this shape.
_MARKS = frozenset(RerankRequest.model_fields) - {
    "query", "documents", "instruction", "top_k", "score_threshold", "document_template", "return_judged_text",
    "explain",
}  # fmt: skip

SHAPES = [
    Shape(
        "Cohere, Jina, vLLM",
        RerankRequest,
        RerankResponse,
        {"/rerank": _MARKS} | dict.fromkeys(("/v1/rerank", "/v2/rerank", "/v1/reranking", "/reranking")),
        _respond,
    )
]
