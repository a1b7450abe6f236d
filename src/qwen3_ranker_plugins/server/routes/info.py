"""The routes that describe the server: health, readiness, models, metrics."""

from __future__ import annotations

import time
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from ..._version import __version__
from ...prompt import TEMPLATES
from .. import system
from ..errors import ApiError
from ..fields import ErrorResponse
from ..metrics import CONTENT_TYPE
from ..state import ServerState, state_of

router = APIRouter()


class QueueState(BaseModel):
    """Requests that are accepted but not answered yet."""

    requests: int
    documents: int
    tokens: int


class Memory(BaseModel):
    """Bytes in use."""

    process_bytes: int | None = Field(description="Resident memory of the server process.")
    gpu_bytes: list[int] = Field(description="Allocated by torch in this process, for each GPU.")


class Replica(BaseModel):
    """One engine: the only one, or one of several that share the queue."""

    replica: int
    device: str
    state: Literal["running", "restarting", "failed"]
    process: int | None = Field(
        description="Id of its process; null if it runs in the server's process, or its process has ended."
    )
    requests: int = Field(description="Requests in the forward passes that it computes now.")
    passes: int
    documents: int
    documents_per_second: float = Field(description="Average over about the last ten seconds.")
    restarts: int
    error: str | None = Field(description="Why it does not run; null if it does.")


class HealthSummary(BaseModel):
    """The part of the state that is shown without a key."""

    status: Literal["loading", "healthy", "unhealthy", "draining"]
    model_loaded: bool


class Health(HealthSummary):
    """The state of the server and its engine."""

    model: str
    demonstration_model: bool = Field(
        description="Whether the served model is the bundled one, which is meant for trials and tests."
    )
    backend: str = Field(description="The same as engine.")
    engine: str
    engine_facts: dict[str, str]
    engine_error: str | None = Field(description="Why the engine is unhealthy; null if it is not.")
    instruction_format: str = Field(description='The name of the template, or "custom".')
    max_model_len: int
    gpu_count: int
    memory: Memory
    memory_usage: float | None = Field(description="Per cent of the machine's memory in use.")
    queue: QueueState
    replicas: list[Replica]
    version: str
    uptime_seconds: float


class Ready(BaseModel):
    """Whether to send requests here."""

    ready: bool
    status: str


class ModelCard(BaseModel):
    """A served name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str = Field(description="The model that scores, under any served name.")
    max_model_len: int
    model_type: Literal["rerank"] = Field(default="rerank", description="Where clients of Xinference look for it.")


class ModelList(BaseModel):
    """The served names."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/health", responses={503: {"model": Health, "description": "The engine has failed."}})
async def health(request: Request, response: Response) -> Health | HealthSummary:
    """Whether the process is alive and its engine answers. Details need a key if the server has any."""
    state = state_of(request)
    supervisor, settings, queue = state.supervisor, state.settings, state.admission
    if supervisor.status == "unhealthy":
        response.status_code = 503
    status = "draining" if state.lifecycle.draining and supervisor.status == "healthy" else supervisor.status
    headers = dict(request.headers.raw)
    if not state.lifecycle.keys.opens(headers.get(b"authorization"), headers.get(b"x-api-key")):
        return HealthSummary(status=status, model_loaded=supervisor.loaded)
    facts = supervisor.describe()
    engine = facts.get("engine", settings.engine)
    return Health(
        status=status,
        model_loaded=supervisor.loaded,
        model=settings.names[0],
        demonstration_model=settings.demonstration_model,
        backend=engine,
        engine=engine,
        engine_facts=facts,
        engine_error=supervisor.error,
        instruction_format=settings.template if settings.template in TEMPLATES else "custom",
        max_model_len=settings.max_length,
        gpu_count=system.gpu_count(),
        memory=Memory(process_bytes=system.resident_bytes(), gpu_bytes=system.gpu_bytes()),
        memory_usage=system.memory_usage(),
        queue=QueueState(requests=queue.requests, documents=queue.documents, tokens=queue.tokens),
        replicas=[
            Replica(
                replica=each.number,
                device=each.device,
                state=each.status,
                process=each.process,
                requests=each.requests,
                passes=each.passes,
                documents=each.documents,
                documents_per_second=round(each.documents_per_second, 1),
                restarts=each.restarts,
                error=each.error,
            )
            for each in supervisor.replicas()
        ],
        version=__version__,
        uptime_seconds=round(time.time() - state.started, 3),
    )


@router.get("/ready", responses={503: {"model": Ready, "description": "Send requests elsewhere, or later."}})
@router.get("/ping", responses={503: {"model": Ready, "description": "Send requests elsewhere, or later."}})
async def ready(request: Request, response: Response) -> Ready:
    """Whether to send requests here; vLLM and SageMaker call the route /ping. Neither route needs a key."""
    state = state_of(request)
    status = "draining" if state.lifecycle.draining else state.supervisor.status
    if status != "healthy":
        response.status_code = 503
    return Ready(ready=status == "healthy", status=status)


@router.get("/v1/models")
async def models(request: Request) -> ModelList:
    """Names of the model; answers contain the first one."""
    state = state_of(request)
    return ModelList(data=[_card(state, name) for name in state.settings.names])


@router.get(
    "/v1/models/{model_id:path}",
    responses={404: {"model": ErrorResponse, "description": "The server is strict about model names."}},
)
async def model(request: Request, model_id: str) -> ModelCard:
    """One of the names that a request may give as `model`."""
    state = state_of(request)
    if not state.settings.serves(model_id):
        raise ApiError(404, "model_not_found", f"served here: {', '.join(state.settings.names)}", param="model_id")
    return _card(state, model_id)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Metrics in the text format of Prometheus."""
    state = state_of(request)
    # The engine may have ended since the supervisor's last check; like /health, the metrics report that at once.
    state.metrics.engine_up.set(state.supervisor.status == "healthy")
    return Response(state.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


def _card(state: ServerState, name: str) -> ModelCard:
    settings = state.settings
    return ModelCard(
        id=name,
        created=int(state.started),
        owned_by="qwen3-ranker-plugins",
        root=settings.model,
        max_model_len=settings.max_length,
    )
