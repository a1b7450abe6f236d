"""The shape of NVIDIA's NIM for reranking: `POST /v1/ranking` with `passages`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ...config import RankingOptions
from ...types import Request
from ..errors import ApiError
from ..fields import EXAMPLE_DOCUMENTS, EXAMPLE_QUERY, Count, Model, Query, ScoreThreshold, WireRequest, present
from ..shapes import Exchange, Shape

_EXAMPLE: dict[str, JsonValue] = {
    "query": {"text": EXAMPLE_QUERY},
    "passages": [{"text": text} for text in EXAMPLE_DOCUMENTS],
    "truncate": "END",
}


class NimQuery(WireRequest):
    """A query as an object."""

    text: Query


class NimPassage(WireRequest):
    """A passage as an object."""

    text: str


class NimRequest(WireRequest):
    """A query and its `passages`, as NVIDIA's NIM takes them."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    query: NimQuery
    passages: list[NimPassage]
    model: Model = None
    truncate: Literal["NONE", "END"] | None = Field(
        default=None, description="NONE: a passage that does not fit is an error (413). Otherwise its end is cut."
    )
    top_k: Count | None = Field(default=None, description="LiteLLM's. At most this many results. 0 or null: all.")
    top_n: Count | None = Field(default=None, description="RAGFlow's name of top_k.")
    score_threshold: ScoreThreshold = None


class NimRanking(BaseModel):
    """A result."""

    index: int
    logit: float = Field(description="logit(yes) - logit(no).")


class NimUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int


class NimResponse(BaseModel):
    """The passages in order of relevance, best first."""

    rankings: list[NimRanking]
    usage: NimUsage


async def _respond(exchange: Exchange, body: NimRequest) -> dict[str, Any]:
    if body.top_k is not None and body.top_n is not None and body.top_k != body.top_n:
        raise ApiError(422, "invalid_request", "top_n: differs from top_k, which means the same", param="top_n")
    ranked = await exchange.rank(
        Request(body.query.text, [passage.text for passage in body.passages]),
        RankingOptions(body.top_k or body.top_n or None, body.score_threshold),
        may_cut=body.truncate != "NONE",
    )
    prompts = ranked.result.usage.prompt_tokens
    return present(
        rankings=[present(index=hit.index, logit=hit.margin) for hit in ranked.result],
        usage=NimUsage(prompt_tokens=prompts, total_tokens=prompts),
    )


SHAPES = [
    Shape(
        "NVIDIA NIM",
        NimRequest,
        NimResponse,
        # The second is the route of NVIDIA's hosted models; LiteLLM uses it on other hosts, too.
        dict.fromkeys(("/v1/ranking", "/v1/retrieval/{model_path:path}/reranking")),
        _respond,
    )
]
