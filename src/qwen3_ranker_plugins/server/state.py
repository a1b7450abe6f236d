"""The state that the routes of a server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

from fastapi import Request

from .admission import Admission, BodyBudget
from .metrics import Metrics
from .middleware import Lifecycle
from .service import Service
from .settings import ServerSettings
from .supervisor import EngineSupervisor


@dataclass(frozen=True)
class ServerState:
    """The objects of one server; `started` is in seconds since the epoch."""

    settings: ServerSettings
    lifecycle: Lifecycle
    metrics: Metrics
    admission: Admission
    bodies: BodyBudget
    supervisor: EngineSupervisor
    service: Service
    started: float = field(default_factory=time.time)

    @classmethod
    def of(cls, settings: ServerSettings, lifecycle: Lifecycle) -> ServerState:
        """Create the objects without loading the model."""
        metrics, admission, bodies = Metrics(), Admission(settings), BodyBudget(settings.max_queue_bytes)
        metrics.watch(admission, lambda: bodies.held)
        metrics.describe_build(settings.model, settings.engine)
        supervisor = EngineSupervisor(
            settings.reranker_settings(),
            metrics,
            lambda report: admission.served(report.tokens, report.seconds, report.token_budget),
            lifecycle.fail,
            probe_interval=settings.probe_interval,
            probe_timeout=settings.probe_timeout,
            owns_process=lifecycle.owns_process,
        )
        metrics.watch_cache(supervisor.cache_statistics)
        metrics.watch_replicas(supervisor.replicas, admission, settings.names[0])
        return cls(settings, lifecycle, metrics, admission, bodies, supervisor, Service(supervisor, admission, metrics))


def state_of(request: Request) -> ServerState:
    """The state of the server that received a request."""
    return cast("ServerState", request.app.state.server)
