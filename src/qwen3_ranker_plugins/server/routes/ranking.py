"""The routes that rank."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from ...config import RankingOptions
from ...types import Request as CoreRequest
from .. import convert as wire
from ..errors import ApiError
from ..parts import Parts, parts_of
from ..schemas import (
    AnyRerankRequest,
    AnyScoreRequest,
    ErrorResponse,
    RerankRequest,
    RerankResponse,
    ScoreResponse,
    SeedResponse,
    TeiRank,
    TeiRequest,
)
from ..service import Ranking


class _JsonRequest(Request):
    async def json(self) -> Any:
        """The body; lone surrogates become U+FFFD, as in the core, since no answer could repeat them."""
        text = (await self.body()).decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_number)
        return _without_surrogates(value) if "\\ud" in text.lower() else value


class _JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's, with our reading of JSON."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return handler


router = APIRouter(
    route_class=_JsonRoute,
    responses={
        400: {"model": ErrorResponse, "description": "The body is not JSON."},
        404: {"model": ErrorResponse, "description": "Another model is served."},
        408: {"model": ErrorResponse, "description": "The body came too slowly."},
        413: {"model": ErrorResponse, "description": "Too many documents, bytes or tokens."},
        415: {"model": ErrorResponse, "description": "The body is not declared as JSON."},
        422: {"model": ErrorResponse, "description": "A field is missing, unknown or unusable."},
        503: {"model": ErrorResponse, "description": "The queue is full, the engine fails, or the server is ending."},
        504: {"model": ErrorResponse, "description": "The deadline has passed."},
    },
)


@router.post("/rerank", response_model=SeedResponse | list[TeiRank] | RerankResponse)
async def rerank(request: Request, body: AnyRerankRequest) -> Response:
    """Rank documents: the plain shape; also TEI's (`texts`) and, if a field of it is there, that of /v1/rerank."""
    if isinstance(body, RerankRequest):
        return await _cohere(request, body, "1")
    if isinstance(body, TeiRequest):
        ranked = await _rank(
            request, CoreRequest(body.query, body.texts), RankingOptions(), may_cut=body.truncate is not False
        )
        return _json([wire.tei_rank(body, hit) for hit in ranked.result], ranked)
    options = RankingOptions(body.top_k, body.score_threshold, body.min_confidence)
    ranked = await _rank(request, CoreRequest(body.query, wire.texts(body.documents), body.instruction), options)
    return _json(wire.seed_response(body, ranked), ranked)


@router.post("/v1/rerank", response_model=RerankResponse)
async def rerank_v1(request: Request, body: RerankRequest) -> Response:
    """Rank documents, in the shape of Cohere, Jina and vLLM."""
    return await _cohere(request, body, "1")


@router.post("/v2/rerank", response_model=RerankResponse)
async def rerank_v2(request: Request, body: RerankRequest) -> Response:
    """The same; clients of Cohere's second version ask for it here."""
    return await _cohere(request, body, "2")


@router.post("/v1/score", response_model=ScoreResponse)
async def score(request: Request, body: AnyScoreRequest) -> Response:
    """Score pairs, in vLLM's shape: one query with one or many documents, or as many queries as documents."""
    parts = parts_of(request)
    _check_model(parts, body.model)
    requests, places = wire.score_requests(body)
    rankings = await parts.service.rank(requests, RankingOptions())
    response = wire.score_response(body, rankings, places, parts.settings.names[0])
    request.state.facts.update(documents=len(response.data), computed_tokens=response.usage.computed_tokens)
    return _json(response, *rankings)


async def _cohere(request: Request, body: RerankRequest, version: str) -> Response:
    parts = parts_of(request)
    _check_model(parts, body.model)
    ranked = await _rank(
        request,
        CoreRequest(body.query, wire.texts(body.documents), body.instruction, body.max_tokens_per_doc),
        RankingOptions(top_k=body.top_n),
    )
    return _json(wire.rerank_response(body, ranked, parts.settings.names[0], version), ranked)


async def _rank(request: Request, core: CoreRequest, options: RankingOptions, *, may_cut: bool = True) -> Ranking:
    """Rank, and leave figures for the log."""
    (ranked,) = await parts_of(request).service.rank([core], options, may_cut=may_cut)
    usage = ranked.result.usage
    request.state.facts.update(
        documents=usage.documents,
        computed_tokens=usage.computed_tokens,
        rank_seconds=round(ranked.seconds, 6),
        truncated=len(ranked.truncated),
    )
    return ranked


def _check_model(parts: Parts, model: str | None) -> None:
    names = parts.settings.names
    if model is not None and model not in names:
        raise ApiError(
            404,
            "model_not_found",
            f"served here: {', '.join(names)}; other names can be added with --served-model-name",
            param="model",
        )


def _json(body: BaseModel | list[TeiRank], *rankings: Ranking) -> Response:
    """Without fields that say nothing, and without FastAPI's second validation of what was just made."""
    if isinstance(body, list):
        content = b"[" + b",".join(each.model_dump_json(exclude_none=True).encode() for each in body) + b"]"
    else:
        content = body.model_dump_json(exclude_none=True).encode()
    cut = sum(len(each.truncated) for each in rankings)
    return Response(content, headers={"X-Truncated-Documents": str(cut)}, media_type="application/json")


def _number(text: str) -> float:
    """A whole number is an integer for JSON Schema, however it is written."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) <= 2**53 else value


def _refuse_constant(name: str) -> float:
    raise json.JSONDecodeError(f"{name} is not JSON", "", 0)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_without_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_without_surrogates(name): _without_surrogates(each) for name, each in value.items()}
    return value
