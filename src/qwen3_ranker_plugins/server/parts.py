"""What the routes of one server share."""

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
from .supervisor import EngineHost


@dataclass(frozen=True)
class Parts:
    """The parts of a server; `started` is its time of birth, in seconds since the epoch."""

    settings: ServerSettings
    lifecycle: Lifecycle
    metrics: Metrics
    admission: Admission
    bodies: BodyBudget
    host: EngineHost
    service: Service
    started: float = field(default_factory=time.time)

    @classmethod
    def of(cls, settings: ServerSettings, lifecycle: Lifecycle) -> Parts:
        """Put them together."""
        metrics, admission, bodies = Metrics(), Admission(settings), BodyBudget(settings.max_queue_bytes)
        metrics.watch(admission, lambda: bodies.held)
        host = EngineHost(
            settings.reranker_settings(),
            metrics,
            lambda report: admission.served(report.tokens, report.seconds),
            lifecycle.fail,
            probe_interval=settings.probe_interval,
            owns_process=lifecycle.owns_process,
        )
        return cls(settings, lifecycle, metrics, admission, bodies, host, Service(host, admission, metrics))


def parts_of(request: Request) -> Parts:
    """The server that a request came to."""
    return cast("Parts", request.app.state.parts)
