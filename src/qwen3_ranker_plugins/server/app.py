"""The server as an ASGI application: parts, routes, errors, and the description of all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from .._version import __version__
from ..errors import RankerError
from .auth import KeyRing
from .errors import ApiError, from_core, from_http, from_validation
from .middleware import Guard, Lifecycle
from .parts import Parts
from .routes import info as info_routes
from .routes import ranking as ranking_routes
from .schemas import ErrorResponse
from .settings import Configuration


def create_app(configuration: Configuration, *, lifecycle: Lifecycle | None = None) -> FastAPI:
    """The application; its start begins to load the model, and does not wait for it.

    Args:
        configuration: of `load_settings`.
        lifecycle: shared with the process, see `run`.
    """
    parts = Parts.of(configuration.settings, lifecycle or Lifecycle())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        parts.host.start()
        yield
        parts.service.close()
        await parts.host.close()

    app = FastAPI(
        title="Qwen3 reranker",
        version=__version__,
        description="Orders documents by P(yes) of a Qwen3 reranker.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # both pages would load scripts from elsewhere
        redoc_url=None,
        responses={
            401: {"model": ErrorResponse, "description": "No valid API key."},
            500: {"model": ErrorResponse, "description": "A fault of this server."},
        },
    )
    app.state.parts = parts
    app.include_router(ranking_routes.router)
    app.include_router(info_routes.router)
    app.add_middleware(
        Guard,
        settings=parts.settings,
        keys=KeyRing(configuration.api_keys),
        metrics=parts.metrics,
        bodies=parts.bodies,
        lifecycle=parts.lifecycle,
    )
    _handle_errors(app)
    _describe(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    def respond(request: Request, error: ApiError) -> Response:
        request.state.facts["error"] = error.kind
        return error.response(request.state.request_id)

    @app.exception_handler(ApiError)
    async def ours(request: Request, error: ApiError) -> Response:
        return respond(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return respond(request, from_validation(error))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        return respond(request, from_http(error))

    @app.exception_handler(RankerError)
    async def core(request: Request, error: RankerError) -> Response:
        return respond(request, from_core(error))


def _describe(app: FastAPI) -> None:
    """FastAPI's OpenAPI document, corrected."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path in schema["paths"].values():
                content = path.get("post", {}).get("requestBody", {}).get("content", {})
                body = content.get("application/json", {}).get("schema", {})
                if "oneOf" in body:  # {query, documents} fits two shapes, which oneOf would forbid
                    body["anyOf"] = body.pop("oneOf")
            scheme = {"ApiKey": {"type": "http", "scheme": "bearer"}}
            schema.setdefault("components", {})["securitySchemes"] = scheme
            schema["security"] = [{}, {"ApiKey": []}]  # keys are asked for if any are configured
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
