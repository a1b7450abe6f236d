"""The engine's life: loaded beside the running server, watched, and started again when it has died."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Literal

from ..config import RerankerSettings
from ..dispatch import PassReport
from ..reranker import Reranker
from .errors import unavailable
from .logs import describe_error, log
from .metrics import Metrics

Status = Literal["loading", "healthy", "unhealthy"]

#: Seconds between looks at an engine that does nothing, and the longest wait between attempts to start it again.
_LOOK_EVERY = 1.0
_LONGEST_WAIT = 60.0


class EngineHost:
    """Holds the one `Reranker` of a server.

    Args:
        settings: of the reranker.
        metrics: hears of passes.
        on_pass: called in the event loop after every pass that went well.
        probe_interval: seconds without a pass after which the engine is asked to score one short document; 0 for never.
        on_fatal: called with what kept the first start from succeeding.
        owns_process: keep the garbage collector from what is there when the engine has been loaded.
    """

    def __init__(
        self,
        settings: RerankerSettings,
        metrics: Metrics,
        on_pass: Callable[[PassReport], None],
        on_fatal: Callable[[Exception], None],
        *,
        probe_interval: float,
        owns_process: bool = False,
    ) -> None:
        self.settings = settings
        self._owns_process = owns_process
        self.status: Status = "loading"
        self.error: str | None = None
        self._metrics = metrics
        self._on_pass = on_pass
        self._on_fatal = on_fatal
        self._probe_interval = probe_interval or math.inf
        self._reranker: Reranker | None = None
        self._suspicious = asyncio.Event()
        self._last_answer = time.monotonic()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def loaded(self) -> bool:
        """Whether there is an engine, in whatever state."""
        return self._reranker is not None

    @property
    def reranker(self) -> Reranker:
        """The one to use now.

        Raises:
            ApiError: 503, it is loading or dead.
        """
        if self._reranker is None or self.status == "loading":
            raise unavailable("loading", "the model is being loaded; see /ready", 5)
        if self.status == "unhealthy" or not self._reranker.running:
            raise unavailable("engine_failed", "the engine has failed; see /health", 5)
        return self._reranker

    def describe(self) -> dict[str, str]:
        """What the engine says of itself; empty without one."""
        return {} if self._reranker is None else self._reranker.describe().as_dict()

    def start(self) -> None:
        """Load in the background; called from the event loop."""
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """End the engine."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        await self._drop()

    async def _watch(self) -> None:
        try:
            await self._load()
        except Exception as error:  # noqa: BLE001 - a server that cannot load its model ends, and says why
            self._on_fatal(error)
            return
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._suspicious.wait(), _LOOK_EVERY)
            idle = time.monotonic() - self._last_answer
            running = self._reranker is not None and self._reranker.running
            if running and not self._suspicious.is_set() and idle < self._probe_interval:
                continue
            self._suspicious.clear()
            if not running:  # a probe would wait until the engine has started its process again
                self._has_failed("EngineClosedError")
                log(logging.ERROR, "the engine has ended")
            elif await self._answers():
                continue
            await self._recover()

    async def _load(self) -> None:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        reranker = await asyncio.to_thread(lambda: Reranker(**asdict(self.settings)))

        def listen(report: PassReport) -> None:  # in the engine's thread
            self._metrics.on_pass(report)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._hear, report)

        reranker.on_pass(listen)
        if self._owns_process:
            # Half a million objects of torch and transformers, which a full collection in the middle of somebody's
            # request would look through for 200 ms.
            await asyncio.to_thread(gc.collect)
            gc.freeze()
        self._reranker = reranker
        self._last_answer = time.monotonic()
        self.status, self.error = "healthy", None
        self._metrics.engine_up.set(1)
        self._metrics.engine_loads.inc()
        log(
            logging.INFO,
            "engine ready",
            seconds=round(time.perf_counter() - started, 3),
            **reranker.describe().as_dict(),
        )

    def _hear(self, report: PassReport) -> None:
        if report.error is None:
            self._last_answer = time.monotonic()
            self._on_pass(report)
        else:
            log(logging.ERROR, "a forward pass failed", documents=report.documents, **describe_error(report.error))
            self._suspicious.set()

    async def _answers(self) -> bool:
        """Whether a document can be scored."""
        if self._reranker is None:
            return False
        try:
            await self._reranker.ascore("Is it alive?", ["Yes."])
        except Exception as error:  # noqa: BLE001 - whatever it is, the server goes on and starts the engine again
            self._has_failed(type(error).__name__)
            log(logging.ERROR, "the engine does not answer", **describe_error(error))
            self._suspicious.clear()
            return False
        self.status, self.error = "healthy", None
        self._metrics.engine_up.set(1)
        return True

    def _has_failed(self, error: str) -> None:
        self.status, self.error = "unhealthy", error
        self._metrics.engine_up.set(0)

    async def _recover(self) -> None:
        """Start it again, until it lives."""
        wait = 1.0
        while True:
            await self._drop()
            log(logging.WARNING, "starting the engine again")
            try:
                await self._load()
            except Exception as error:  # noqa: BLE001 - whatever it is, the server goes on and tries again
                self.status, self.error = "unhealthy", type(error).__name__
                log(logging.ERROR, "the engine cannot be started", retry_in=wait, **describe_error(error))
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            if await self._answers():
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _drop(self) -> None:
        if self._owns_process:
            gc.unfreeze()
        reranker, self._reranker = self._reranker, None
        if reranker is not None:
            await asyncio.to_thread(reranker.close)
