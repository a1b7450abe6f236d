"""The plain shape: `POST /rerank` with thresholds and the confidence of each judgement."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ...config import RankingOptions
from ...types import Request
from ..documents import judged_texts, returns_judged_text
from ..explanations import ExplainField, ExplanationAnswer, add_details
from ..fields import (
    EXAMPLE_DOCUMENTS,
    EXAMPLE_QUERY,
    DocumentObject,
    Instruction,
    JudgedPiece,
    Positive,
    Probability,
    Query,
    ScoreThreshold,
    StructuredRequest,
    present,
)
from ..shapes import Exchange, Shape


class PlainRequest(StructuredRequest):
    """A query, its documents and what to keep of the ranking."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": EXAMPLE_QUERY, "documents": EXAMPLE_DOCUMENTS, "top_k": 2}]}
    )

    query: Query
    documents: list[str | DocumentObject]
    instruction: Instruction = None
    top_k: Positive = Field(default=10, description="At most this many documents in the answer.")
    min_confidence: Probability | None = Field(
        default=None,
        description="Only documents whose |P(yes) - P(no)| is at least this. A confident no passes, too: to drop "
        "irrelevant documents, use score_threshold.",
    )
    score_threshold: ScoreThreshold = None
    explain: ExplainField = None


class RankedDocument(BaseModel):
    """A document with its judgement."""

    document: str = Field(description="The document's text; if it is an object, its judged text.")
    judged_text: str | None = Field(default=None, description="The text that the model read; see return_judged_text.")
    index: int = Field(description="Position in the request.")
    relevance_score: float = Field(description="P(yes), from 0 to 1.")
    confidence: float = Field(description="|P(yes) - P(no)|: how sure the model is of yes or of no.")
    rank: int = Field(description="Rank of the document, from 1.")
    truncated_tokens: int | None = Field(
        default=None, description="Tokens cut off the document's end; missing if it was read whole."
    )
    piece: JudgedPiece = None
    explanation: ExplanationAnswer | None = Field(default=None, description="See explain.")


class PlainResponse(BaseModel):
    """The documents in order of relevance, best first."""

    query: str
    ranked_documents: list[RankedDocument]
    total_processed: int = Field(description="Number of documents in the request.")
    processing_time_ms: float = Field(description="Milliseconds from the end of the request's body to its last score.")
    warnings: list[str] | None = None


async def _respond(exchange: Exchange, body: PlainRequest) -> dict[str, Any]:
    texts = await judged_texts(exchange, body.documents, body)
    judged = returns_judged_text(exchange, body)
    ranked = await exchange.rank(
        Request(body.query, texts, body.instruction),
        RankingOptions(body.top_k, body.score_threshold, body.min_confidence),
        explain=body.explain or False,
    )
    documents: list[dict[str, Any]] = [
        {
            "document": hit.document,
            "index": hit.index,
            "relevance_score": hit.score,
            "confidence": hit.confidence,
            "rank": rank,
        }
        for rank, hit in enumerate(ranked.result, start=1)
    ]
    for item, hit in zip(documents, ranked.result, strict=True) if judged or ranked.truncated else ():
        item.update(
            present(judged_text=hit.document if judged else None, truncated_tokens=hit.truncated_tokens or None)
        )
    add_details(documents, ranked.result)
    return present(
        query=body.query,
        ranked_documents=documents,
        total_processed=ranked.result.usage.documents,
        processing_time_ms=ranked.milliseconds,
        warnings=exchange.warnings or None,
    )


SHAPES = [Shape("plain", PlainRequest, PlainResponse, {"/rerank": None}, _respond)]
