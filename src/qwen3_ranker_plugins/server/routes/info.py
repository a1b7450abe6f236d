"""The routes that tell: health, models, metrics, the demo corpus, the page."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from ..._version import __version__
from .. import convert as wire
from .. import system
from ..errors import ApiError
from ..metrics import CONTENT_TYPE
from ..parts import parts_of
from ..schemas import DemoCandidates, DemoQueries, ErrorResponse, Health, ModelCard, ModelList, QueueState, Ready
from .demo import demo_candidates, demo_queries
from .page import PAGE, PAGE_HEADERS

router = APIRouter()


@router.get("/health", responses={503: {"model": Health, "description": "The engine has failed."}})
async def health(request: Request, response: Response) -> Health:
    """Whether the process is alive and its engine answers; the one route without a key."""
    parts = parts_of(request)
    host, settings, queue = parts.host, parts.settings, parts.admission
    if host.status == "unhealthy":
        response.status_code = 503
    facts = host.describe()
    engine = facts.get("engine", settings.engine)
    return Health(
        status="draining" if parts.lifecycle.draining and host.status == "healthy" else host.status,
        model_loaded=host.loaded,
        model=settings.names[0],
        backend=engine,
        engine=engine,
        engine_facts=facts,
        engine_error=host.error,
        instruction_format=wire.template_name(settings.template),
        max_model_len=settings.max_length,
        gpu_count=system.gpu_count(),
        memory=system.memory(),
        memory_usage=system.memory_usage(),
        queue=QueueState(requests=queue.requests, documents=queue.documents, tokens=queue.tokens),
        version=__version__,
        uptime_seconds=round(time.time() - parts.started, 3),
    )


@router.get("/ready", responses={503: {"model": Ready, "description": "Send requests elsewhere, or later."}})
async def ready(request: Request, response: Response) -> Ready:
    """Whether to send requests here."""
    parts = parts_of(request)
    status = "draining" if parts.lifecycle.draining else parts.host.status
    if status != "healthy":
        response.status_code = 503
    return Ready(ready=status == "healthy", status=status)


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """Names that a request may give as `model`."""
    parts = parts_of(request)
    return ModelList(
        data=[
            ModelCard(
                id=name,
                created=int(parts.started),
                owned_by="qwen3-ranker-plugins",
                root=parts.settings.model,
                max_model_len=parts.settings.max_length,
            )
            for name in parts.settings.names
        ]
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(parts_of(request).metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@router.get("/demo")
async def demo() -> DemoQueries:
    """Questions of the demo corpus."""
    return demo_queries()


@router.get("/demo/{query_id}", responses={404: {"model": ErrorResponse, "description": "No such question."}})
async def demo_query(query_id: str) -> DemoCandidates:
    """What BM25 finds for one of them."""
    candidates = demo_candidates(query_id)
    if candidates is None:
        raise ApiError(404, "not_found", "no such question; /demo lists them", param="query_id")
    return candidates


@router.get("/", response_class=Response, responses={200: {"content": {"text/html": {}}}})
async def page() -> Response:
    """A page to try it."""
    return Response(PAGE, headers=PAGE_HEADERS)
