"""The server's HTTP application as a Ray Serve deployment: each replica holds a `Reranker` of its own.

    serve run qwen3_ranker_plugins.server.ray_serve:build model=Qwen/Qwen3-Reranker-0.6B max_replicas=8 num_gpus=1

Ray Serve places and replaces replicas, spreads requests over them, and starts more when documents queue up.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError, InvalidInputError, MissingDependencyError
from ..pip_command import pip_install

try:
    from ray import serve
except ImportError as error:
    raise MissingDependencyError(
        f"Ray Serve is not installed completely: {pip_install('ray-serve', 'packed')}"
    ) from error

from .app import create_app
from .logs import configure, log
from .middleware import Lifecycle
from .settings import load_settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.config import AutoscalingContext

    from .state import ServerState

#: Name of the number that replicas report to the autoscaler.
QUEUED_DOCUMENTS = "queued_documents"
#: Concurrent requests per replica. Ray's default of 5 would leave passes half empty; the server has its own limits.
MAX_ONGOING_REQUESTS = 256

# Arguments of `build` for Ray, with their defaults; all others are settings of the server.
_SCALING: dict[str, float] = {
    "min_replicas": 1,
    "max_replicas": 1,
    "documents_per_replica": 500,
    "upscale_delay_s": 10,
    "downscale_delay_s": 300,
    "num_cpus": 1,
    "num_gpus": 0,
}


class QueuedDocuments:
    """Ray's autoscaling policy: the number of replicas follows the documents that are accepted but not answered.

    Args:
        documents_per_replica: how many of these documents one replica should have.
    """

    def __init__(self, documents_per_replica: float) -> None:
        self._documents_per_replica = documents_per_replica

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas; Ray applies the limits and delays."""
        reported = (context.aggregated_metrics or {}).get(QUEUED_DOCUMENTS, {})
        return math.ceil(sum(reported.values()) / self._documents_per_replica), {}


@serve.ingress()
class RankerReplica:
    """A replica: the application of `qwen3-ranker serve`, with its routes, keys, limits and metrics.

    Args:
        settings: as in `build`. They are loaded here, so that keys are read on the replica's node and never sent.
    """

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._configuration = _load(settings)
        self._lifecycle = Lifecycle()
        configure(self._configuration.settings.log_level)

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = create_app(self._configuration, lifecycle=self._lifecycle)
        return self._app

    async def check_health(self) -> None:
        """Called by Ray regularly. The first call waits until the model is loaded.

        Raises:
            EngineError: the model cannot be loaded, or the engine has failed. Ray replaces a replica that fails
                repeatedly; meanwhile the server tries to restart its engine.
        """
        while self._state.supervisor.status == "loading" and self._lifecycle.fatal is None:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.1)
        if self._lifecycle.fatal is not None:
            raise EngineError(f"the model cannot be loaded: {self._lifecycle.fatal}") from self._lifecycle.fatal
        if self._state.supervisor.status == "unhealthy":
            raise EngineError(f"the engine has failed: {self._state.supervisor.error}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray: this replica's part of the sum that `QueuedDocuments` makes."""
        return {QUEUED_DOCUMENTS: float(self._state.admission.documents)}

    @property
    def _state(self) -> ServerState:
        state: ServerState = self._app.state.server
        return state


def build(arguments: dict[str, object]) -> Application:
    """The Ray Serve application, for `serve run`, for `args` in a Serve configuration file, and for `serve.run`.

    Args:
        arguments: settings of the server by their names (docs/server.md), `config` (a YAML file with them, which has to
            exist on each node), and for Ray:

            - min_replicas, max_replicas: limits of the autoscaler, 1 and 1 by default;
            - documents_per_replica: waiting documents for which a replica is added, 500 by default;
            - upscale_delay_s, downscale_delay_s: seconds for which the load has to last before a replica is added or
              removed, 10 and 300 by default;
            - num_cpus, num_gpus: resources of a replica, 1 and 0 by default.

            `host` and `port` have no effect, because Ray's proxy listens.

    Raises:
        InvalidInputError: a setting is unusable.
    """
    scaling = {name: _number(name, arguments.get(name, default)) for name, default in _SCALING.items()}
    settings = {name: value for name, value in arguments.items() if name not in _SCALING}
    checked = _load(settings).settings
    if scaling["max_replicas"] < scaling["min_replicas"] or scaling["documents_per_replica"] <= 0:
        raise InvalidInputError(
            "max_replicas", scaling["max_replicas"], "give at least min_replicas, and a positive documents_per_replica"
        )
    if scaling["num_gpus"] and checked.device == "auto":
        settings["device"] = "cuda"
    log(logging.DEBUG, "Ray Serve deployment", **scaling)
    deploy: Any = serve.deployment  # its annotations do not cover classes
    application: Application = deploy(
        RankerReplica,
        name="qwen3-ranker",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": scaling["num_cpus"], "num_gpus": scaling["num_gpus"]},
        # Ray waits for accepted requests for at most this time before it ends a replica.
        graceful_shutdown_timeout_s=checked.drain_timeout,
        autoscaling_config={
            "min_replicas": int(scaling["min_replicas"]),
            "max_replicas": int(scaling["max_replicas"]),
            "upscale_delay_s": scaling["upscale_delay_s"],
            "downscale_delay_s": scaling["downscale_delay_s"],
            "policy": {
                "policy_function": QueuedDocuments,
                "policy_kwargs": {"documents_per_replica": scaling["documents_per_replica"]},
            },
        },
    ).bind(settings)
    return application


def _load(settings: Mapping[str, object]) -> Any:
    given = dict(settings)
    config = given.pop("config", None)
    return load_settings(None if config is None else Path(str(config)), given)


def _number(name: str, value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        raise InvalidInputError(name, value, "give a number") from None
