"""The ASGI application: state, routes, middleware, errors and the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from .._version import __version__
from ..errors import RankerError
from .body import JsonRoute
from .errors import ApiError, from_core, from_http, from_validation
from .fields import ErrorResponse
from .middleware import Guard, Lifecycle
from .routes import modules
from .settings import Configuration
from .shapes import routers
from .state import ServerState


def create_app(configuration: Configuration, *, lifecycle: Lifecycle | None = None) -> FastAPI:
    """Create the application. When it starts, the model is loaded in the background.

    Args:
        configuration: from `load_settings`.
        lifecycle: the state that the application shares with the process, see `run`; None for a new one.
    """
    settings = configuration.settings
    state = ServerState.of(settings, lifecycle or Lifecycle())
    state.lifecycle.keys.replace(configuration.api_keys)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        state.supervisor.start()
        yield
        state.service.close()
        await state.supervisor.close()

    app = FastAPI(
        title="Qwen3 reranker",
        version=__version__,
        description="Orders documents by P(yes) of a Qwen3 reranker.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # FastAPI's documentation pages load scripts from other hosts
        redoc_url=None,
        responses={
            401: {"model": ErrorResponse, "description": "No valid API key."},
            500: {"model": ErrorResponse, "description": "The server failed."},
        },
    )
    app.state.server = state
    for router in routers(modules()):
        app.include_router(router)
    app.add_middleware(
        Guard,
        settings=settings,
        metrics=state.metrics,
        admission=state.admission,
        bodies=state.bodies,
        lifecycle=state.lifecycle,
        routes=[route for route in app.routes if isinstance(route, JsonRoute)],
    )
    if settings.cors_origins:  # outermost, because a browser's preflight request carries no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-ID", "X-Model", "X-Truncated-Documents", "Retry-After"],
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
        # The first part of a location is "path" or "query".
        return respond(request, from_validation([{**each, "loc": each["loc"][1:]} for each in error.errors()]))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        return respond(request, from_http(error))

    @app.exception_handler(RankerError)
    async def core(request: Request, error: RankerError) -> Response:
        return respond(request, from_core(error))


def _describe(app: FastAPI) -> None:
    """Correct FastAPI's OpenAPI document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path in schema["paths"].values():
                content = path.get("post", {}).get("requestBody", {}).get("content", {})
                body = content.get("application/json", {}).get("schema", {})
                if "oneOf" in body:  # a body may fit several shapes, which oneOf would forbid
                    body["anyOf"] = body.pop("oneOf")
            scheme = {"ApiKey": {"type": "http", "scheme": "bearer"}}
            schema.setdefault("components", {})["securitySchemes"] = scheme
            schema["security"] = [{}, {"ApiKey": []}]  # a key is required if any is configured
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
