"""A wire shape, and the HTTP routes made of all of them.

A module of `routes` that defines `SHAPES` adds wire shapes to the server, and one that defines `router` adds other
routes; no other code has to change.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from types import ModuleType
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Discriminator, Tag
from pydantic_core import to_json

from ..config import RankingOptions
from ..explanation import Explain
from ..types import Request as RankRequest
from .body import JsonRoute
from .errors import SHAPE_TAG, ApiError
from .fields import ErrorResponse, WireRequest
from .service import Ranking
from .state import ServerState, state_of

#: A model, or plain dicts and lists of the same content, see `fields.present`.
Answer = BaseModel | Mapping[str, Any] | Sequence[Mapping[str, Any]]
R = TypeVar("R", bound=WireRequest)


@dataclass
class Exchange:
    """One HTTP request on its way through a wire shape.

    Attributes:
        state: the state of the server.
        path: the route of the request.
        model: the name of the model for the answer.
        rankings: the rankings made so far.
        warnings: possible mistakes in the request, for answers that have a field for warnings.
    """

    request: Request
    state: ServerState
    path: str
    model: str
    rankings: list[Ranking] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    async def rank(
        self,
        request: RankRequest,
        options: RankingOptions | None = None,
        *,
        may_cut: bool = True,
        explain: Explain = False,
    ) -> Ranking:
        """Rank one request.

        Args:
            request: the request, converted from its wire shape.
            options: what to keep of the ranking; None for everything.
            may_cut: False refuses documents that do not fit (413).
            explain: as in `Reranker.rerank`.
        """
        (ranking,) = await self.rank_all([request], options, may_cut=may_cut, explain=explain)
        return ranking

    async def rank_all(
        self,
        requests: Sequence[RankRequest],
        options: RankingOptions | None = None,
        *,
        may_cut: bool = True,
        explain: Explain = False,
    ) -> list[Ranking]:
        """Rank several requests that are accepted or refused together, and leave figures for the log."""
        ranked = await self.state.service.rank(requests, options or RankingOptions(), may_cut=may_cut, explain=explain)
        self.rankings += ranked
        usages = [each.result.usage for each in self.rankings]
        self.request.state.facts.update(
            documents=sum(each.documents for each in usages),
            computed_tokens=sum(each.computed_tokens for each in usages),
            rank_seconds=round(max((each.seconds for each in self.rankings), default=0.0), 6),
            truncated=sum(len(each.truncated) for each in self.rankings),
        )
        return ranked


@dataclass(frozen=True)
class Shape(Generic[R]):
    """How one family of clients writes a request and reads the answer.

    Attributes:
        name: for the OpenAPI document and for error messages.
        request: the model by which the body is validated. A field `model` is checked against the served names.
        answer: the type of the answer, for the OpenAPI document.
        paths: route -> the names of fields that distinguish this shape from others on the same route; None for the
            shape of a body without any such field. Several shapes may share a route.
        respond: ranks, and returns the answer.
    """

    name: str
    request: type[R]
    answer: Any
    paths: Mapping[str, frozenset[str] | None]
    respond: Callable[[Exchange, R], Awaitable[Answer]]


def routers(modules: Sequence[ModuleType]) -> list[APIRouter]:
    """The routes of modules that define `SHAPES` or `router`."""
    shapes: list[Shape[Any]] = [shape for module in modules for shape in getattr(module, "SHAPES", ())]
    paths = dict.fromkeys(path for shape in shapes for path in shape.paths)
    ranking = APIRouter(route_class=JsonRoute, responses=_RESPONSES)
    for path in paths:
        _add(ranking, path, [shape for shape in shapes if path in shape.paths])
    return [ranking, *(module.router for module in modules if hasattr(module, "router"))]


def _add(router: APIRouter, path: str, shapes: Sequence[Shape[Any]]) -> None:
    marked = [(marks, shape) for shape in shapes if (marks := shape.paths[path]) is not None]
    marked.sort(key=lambda each: len(each[0]))  # the most specific one first
    (default,) = [shape for shape in shapes if shape.paths[path] is None]  # one for each route

    def tag(body: object) -> str:
        names = body.keys() if isinstance(body, Mapping) else set()
        likely = [*(shape for marks, shape in marked if marks & names), default]
        # For a body that fits no shape, the errors of the likeliest shape are reported.
        return (
            SHAPE_TAG + next((shape for shape in likely if names <= shape.request.model_fields.keys()), likely[0]).name
        )

    async def endpoint(request: Request, body: WireRequest) -> Response:
        shape = next(each for each in shapes if type(body) is each.request)
        state = state_of(request)
        exchange = Exchange(request, state, path, _model_name(state, getattr(body, "model", None)))
        return _write(await shape.respond(exchange, body), exchange)

    # FastAPI reads the type of the body from the signature; one shape needs no choice.
    members = [Annotated[shape.request, Tag(SHAPE_TAG + shape.name)] for shape in shapes]
    union = Annotated[reduce(or_, members), Discriminator(tag)] if len(shapes) > 1 else default.request
    endpoint.__annotations__ = {"request": Request, "body": union, "return": Response}
    names = " or ".join(shape.name for shape in [default, *(shape for _, shape in marked)])
    router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        response_model=reduce(or_, dict.fromkeys(shape.answer for shape in shapes)),
        summary=f"Rank documents: {names}",
        description="\n\n".join(f"**{shape.name}**: {shape.request.__doc__}" for shape in shapes),
        openapi_extra={"parameters": [_path_parameter(name) for name in re.findall(r"{(\w+)(?::path)?}", path)]},
    )


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _model_name(state: ServerState, asked: str | None) -> str:
    """The name for the answer.

    Raises:
        ApiError: 404, the server is strict about names and does not have this one.
    """
    settings = state.settings
    if asked is None or asked in settings.names:
        return settings.names[0]
    if not settings.serves(asked):
        raise ApiError(
            404,
            "model_not_found",
            f"served here: {', '.join(settings.names)}; --served-model-name adds a name, and without "
            "--strict-model-names any name is served",
            param="model",
        )
    return settings.model


def _write(answer: Answer, exchange: Exchange) -> Response:
    """Write an answer as JSON; null fields of models are left out. FastAPI would validate it a second time."""
    content = to_json(answer, exclude_none=True)
    cut = sum(len(each.truncated) for each in exchange.rankings)
    headers = {"X-Truncated-Documents": str(cut), "X-Model": quote(exchange.state.settings.model, safe="/:@ ~+,=")}
    return Response(content, headers=headers, media_type="application/json")


_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The body is not JSON, or not gzip although it is declared as such."},
    404: {"model": ErrorResponse, "description": "The server is strict about model names and serves another model."},
    408: {"model": ErrorResponse, "description": "The body did not arrive in time."},
    413: {"model": ErrorResponse, "description": "Too many documents, bytes or tokens."},
    415: {"model": ErrorResponse, "description": "The body is not declared as JSON, or its coding is not supported."},
    422: {"model": ErrorResponse, "description": "A field is missing, unknown or unusable."},
    503: {
        "model": ErrorResponse,
        "description": "The queue is full, the engine has failed, or the server is shutting down.",
    },
    504: {"model": ErrorResponse, "description": "The deadline has passed."},
}
