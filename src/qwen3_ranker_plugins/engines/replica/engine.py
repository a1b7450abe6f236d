"""A replica as its dispatcher sees it: an engine whose calls go to a worker process, which runs the real engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from ...config import EngineConfig
from ...prompt import EncodedRequest, FlatSegments
from ..base import Engine, EngineDescription, Margins
from ..registry import create_engine, engine_entry
from ..workers.engine import WorkerEngine, visible_gpus
from ..workers.process import WorkerProcess
from .messages import EngineFacts, LoadEngine, Scored, ScoreRequests

_PROGRAM = "from qwen3_ranker_plugins.engines.replica.worker import main; main({descriptor})"

#: Seconds that loading may take; on a GPU it includes compiling kernels.
START_TIMEOUT = 1800.0
#: Seconds without a heartbeat after which a worker is killed; it sends one a second.
HEARTBEAT_TIMEOUT = 10.0
#: Seconds that a pass may take on a GPU or a CPU before the worker is killed, unless another pass ends in this time.
PASS_TIMEOUT = {"cuda": 120.0, "cpu": 1800.0}

# Every vocabulary has these ids. What they mean does not matter; the margin only has to be finite.
_EXAMPLE = EncodedRequest(prefix=[1], segments=[[2]], truncated_tokens=[0])


class ReplicaEngine(WorkerEngine):
    """An engine in a worker process. It counts as running once it has loaded and scored a document.

    Args:
        config: of the engine that the process runs; a GPU's number is the one that it has in this process.
        threads: number of threads that the process uses for matrix products on a CPU; None lets torch choose.

    Raises:
        EngineError: the process could not start the engine; the message is the engine's.
    """

    facts: EngineFacts

    def __init__(self, config: EngineConfig, *, threads: int | None = None) -> None:
        super().__init__()
        self.name = config.engine
        self._config = config
        self._threads = threads
        self.start()
        self.capabilities = self.facts.capabilities

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """One pass in the worker process.

        Raises:
            EngineError: the pass failed, or the process has ended or hung.
        """
        sent = [replace(each, segments=FlatSegments.of(each.segments)) for each in requests]
        scored = self._call(ScoreRequests(sent), Scored)
        if scored.error is not None:
            raise scored.error
        return list(scored.margins)

    def describe(self) -> EngineDescription:
        """The description of the engine in the process."""
        return self.facts.description

    def _launch(self) -> tuple[WorkerProcess, LoadEngine]:
        kind = self._config.device.partition(":")[0]
        environment = visible_gpus(self._config.device)
        if self._threads is not None and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        worker = WorkerProcess(
            _PROGRAM,
            environment,
            start_timeout=START_TIMEOUT,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            step_timeout=PASS_TIMEOUT.get(kind, PASS_TIMEOUT["cpu"]),
            show_log=True,
        )
        # The worker sees one GPU, whose number is 0 there.
        device = "cuda:0" if kind == "cuda" else self._config.device
        return worker, LoadEngine(replace(self._config, device=device), _EXAMPLE)


def create_replica(config: EngineConfig, *, threads: int | None = None) -> Engine:
    """An engine whose model is in a process of its own: the engine itself if it starts one, else a `ReplicaEngine`.

    Raises:
        RankerError: it cannot be started; the message says what to do.
    """
    if engine_entry(config.engine).own_process:
        return create_engine(config)
    return ReplicaEngine(config, threads=threads)
