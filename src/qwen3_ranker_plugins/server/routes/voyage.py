"""Voyage's shape: `POST /v1/rerank` with `top_k` or `truncation`, answered with `data` in place of `results`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...config import RankingOptions
from ...types import Request
from ..fields import (
    EXAMPLE_DOCUMENTS,
    EXAMPLE_QUERY,
    Count,
    Instruction,
    Model,
    Query,
    ScoreThreshold,
    WireRequest,
    present,
)
from ..shapes import Exchange, Shape


class VoyageRequest(WireRequest):
    """A query and its documents, as Voyage takes them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": EXAMPLE_QUERY, "documents": EXAMPLE_DOCUMENTS, "top_k": 1, "truncation": True}]
        }
    )

    query: Query
    documents: list[str]
    model: Model = None
    instruction: Instruction = None
    top_k: Count | None = Field(default=None, description="At most this many results. 0 or null: all.")
    score_threshold: ScoreThreshold = None
    truncation: bool | None = Field(
        default=None, description="False: a document that does not fit is an error (413). Otherwise its end is cut."
    )
    return_documents: bool | None = Field(default=None, description="Whether each result holds its document.")


class VoyageItem(BaseModel):
    """A result."""

    index: int = Field(description="Position in the request.")
    relevance_score: float
    document: str | None = Field(default=None, description="The document's text, if return_documents is true.")


class VoyageUsage(BaseModel):
    """Tokens of a request."""

    total_tokens: int = Field(description="Tokens of all prompts, as if each document had been scored on its own.")


class VoyageResponse(BaseModel):
    """The documents in order of relevance, best first."""

    object: Literal["list"] = "list"
    data: list[VoyageItem]
    results: list[VoyageItem] = Field(
        description="The same as data, for clients of other services that send top_k instead of top_n."
    )
    model: str
    usage: VoyageUsage


async def _respond(exchange: Exchange, body: VoyageRequest) -> dict[str, Any]:
    ranked = await exchange.rank(
        Request(body.query, body.documents, body.instruction),
        RankingOptions(body.top_k or None, body.score_threshold),
        may_cut=body.truncation is not False,
    )
    items = [
        present(index=hit.index, relevance_score=hit.score, document=hit.document if body.return_documents else None)
        for hit in ranked.result
    ]
    return present(
        object="list",
        data=items,
        results=items,
        model=exchange.model,
        usage=VoyageUsage(total_tokens=ranked.result.usage.prompt_tokens),
    )


SHAPES = [
    Shape(
        "Voyage",
        VoyageRequest,
        VoyageResponse,
        {"/v1/rerank": frozenset({"top_k", "truncation"}), "/rerank": frozenset({"truncation"})},
        _respond,
    )
]
