"""Infinity's shape, on a route of its own: its requests look like those of other services, but its answers differ."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import BaseModel, Field

from ..documents import returns_judged_text
from ..fields import TokenUsage, present
from ..shapes import Exchange, Shape
from .cohere import RerankRequest, gives_margins, rank


class InfinityRequest(RerankRequest):
    """A query and its documents, as Infinity takes them; the answer holds documents as text."""


class InfinityItem(BaseModel):
    """A result."""

    index: int = Field(description="Position in the request.")
    relevance_score: float
    document: str | None = Field(default=None, description="The judged text, if return_documents is true.")
    judged_text: str | None = Field(default=None, description="The judged text, if return_judged_text is true.")


class InfinityResponse(BaseModel):
    """The documents in order of relevance, best first."""

    object: Literal["rerank"] = "rerank"
    id: str
    model: str
    results: list[InfinityItem]
    usage: TokenUsage
    warnings: list[str] | None = None


async def _respond(exchange: Exchange, body: InfinityRequest) -> dict[str, Any]:
    ranked = await rank(exchange, body)
    judged = returns_judged_text(exchange, body)
    margins = gives_margins(body)
    return present(
        object="rerank",
        id=f"rerank-{uuid.uuid4().hex}",
        model=exchange.model,
        results=[
            present(
                index=hit.index,
                relevance_score=hit.margin if margins else hit.score,
                document=hit.document if body.return_documents else None,
                judged_text=hit.document if judged else None,
            )
            for hit in ranked.result
        ],
        usage=TokenUsage.of([ranked.result.usage]),
        warnings=exchange.warnings or None,
    )


SHAPES = [Shape("Infinity", InfinityRequest, InfinityResponse, {"/infinity/rerank": None}, _respond)]
