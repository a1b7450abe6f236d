"""Loads the engine while the server already listens, watches it, and restarts it after a failure."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Literal, TypeVar

from ..cache import CacheStatistics
from ..config import RerankerSettings
from ..dispatch import PassReport, ReplicaState
from ..errors import EngineClosedError
from ..reranker import Reranker
from .errors import ApiError, unavailable
from .logs import describe_error, log
from .metrics import Metrics

Status = Literal["loading", "healthy", "unhealthy"]
T = TypeVar("T")

#: Name of the thread that loads the model.
LOADING = "qwen3-ranker-loading"
#: Seconds between two checks that the engine runs.
_LOOK_EVERY = 0.5
#: Longest pause between two attempts to restart the engine, in seconds.
_LONGEST_PAUSE = 60.0
#: Seconds that a failed engine may take to close before it is abandoned.
_CLOSE_TIMEOUT = 10.0


def place_engine(settings: RerankerSettings, gpus: int) -> RerankerSettings:
    """Settings that run the packed engine in a process of its own if they leave open where it runs and there is a GPU.

    In the server's process, the thread that runs the passes and the event loop wait for each other's interpreter lock.
    On an H200, many short requests get 1.3 times the rate with a process for the engine (docs/performance.md).

    Args:
        settings: the settings of the server.
        gpus: number of GPUs that torch sees.
    """
    return replace(settings, devices="cuda:0") if gpus and _place_is_open(settings) else settings


def _place_is_open(settings: RerankerSettings) -> bool:
    return settings.devices is None and settings.device == "auto" and settings.engine in ("auto", "packed")


def _on_this_machine(settings: RerankerSettings) -> RerankerSettings:
    if not _place_is_open(settings):
        return settings
    import torch  # takes a second, so not before the server listens; the remote engine works without it

    from ..engines.devices import report_idle_gpus

    placed = place_engine(settings, torch.cuda.device_count())
    if placed.devices:
        report_idle_gpus(1)
    return placed


class EngineSupervisor:
    """Holds the one `Reranker` of a server.

    Args:
        settings: the settings of the reranker.
        metrics: counts every pass and every start.
        on_pass: called in the event loop after every successful pass.
        on_fatal: called with the error if the first start fails.
        probe_interval: seconds without a pass after which the engine has to score one short document; 0 for never.
        probe_timeout: seconds without a pass, while that document waits, after which the engine counts as failed.
        owns_process: whether the garbage collector may ignore the objects that exist once the engine is loaded.
    """

    def __init__(
        self,
        settings: RerankerSettings,
        metrics: Metrics,
        on_pass: Callable[[PassReport], None],
        on_fatal: Callable[[Exception], None],
        *,
        probe_interval: float,
        probe_timeout: float = 120.0,
        owns_process: bool = False,
    ) -> None:
        self.settings = settings
        self._error: str | None = None
        self._status: Status = "loading"
        self._owns_process = owns_process
        self._metrics = metrics
        self._on_pass = on_pass
        self._on_fatal = on_fatal
        self._probe_interval = probe_interval or math.inf
        self._probe_timeout = probe_timeout
        self._reranker: Reranker | None = None
        self._failed = _Alarm()  # on while no engine works; ends the waiting in `while_running`
        self._suspicious = asyncio.Event()
        self._last_answer = time.monotonic()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def status(self) -> Status:
        """The current state. An engine that has ended is unhealthy at once, even before the next check."""
        if self._status == "healthy" and not (self._reranker is not None and self._reranker.running):
            return "unhealthy"
        return self._status

    @property
    def error(self) -> str | None:
        """Why the engine is unhealthy: the name of the error's class; None if it is not."""
        return EngineClosedError.__name__ if self._error is None and self.status == "unhealthy" else self._error

    @property
    def loaded(self) -> bool:
        """Whether an engine exists, healthy or not."""
        return self._reranker is not None

    @property
    def reranker(self) -> Reranker:
        """The reranker to use now.

        Raises:
            ApiError: 503, the model is being loaded, or the engine has failed.
        """
        status = self.status
        if status == "loading":
            raise unavailable("loading", "the model is being loaded; see /ready", 5)
        if status == "unhealthy" or self._reranker is None:
            raise _failed()
        return self._reranker

    async def while_running(self, work: Awaitable[T]) -> T:
        """Wait for the result of the engine's work, but only while the engine runs: a failed one may never answer.

        Raises:
            ApiError: 503, the engine has failed meanwhile.
        """
        task = asyncio.ensure_future(work)
        ended = asyncio.get_running_loop().create_future()

        def end(_task: object = None) -> None:
            if not ended.done():
                ended.set_result(None)

        task.add_done_callback(end)
        self._failed.add(end)
        try:
            await ended
            if not task.done():
                raise _failed()
            return task.result()
        finally:
            self._failed.discard(end)
            # The result of asyncio.gather that is cancelled here ends with an exception later, which asyncio would log
            # as one that nobody retrieved.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            task.cancel()

    def describe(self) -> dict[str, str]:
        """The engine's device, dtype and versions; empty without an engine."""
        return {} if self._reranker is None else self._reranker.describe().as_dict()

    def replicas(self) -> list[ReplicaState]:
        """The state of each engine; none while the model is loaded."""
        return [] if self._reranker is None else self._reranker.replicas()

    def cache_statistics(self) -> CacheStatistics | None:
        """Statistics of the cache of scores; None without a cache."""
        return None if self._reranker is None else self._reranker.cache_statistics()

    def start(self) -> None:
        """Load the engine in the background; must be called from the event loop."""
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
        except Exception as error:  # noqa: BLE001 - a server that cannot load its model reports any error and ends
            self._on_fatal(error)
            return
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._suspicious.wait(), _LOOK_EVERY)
            suspicious = self._suspicious.is_set() or time.monotonic() - self._last_answer >= self._probe_interval
            if self.status == "healthy" and not suspicious:
                continue
            self._suspicious.clear()
            if self._waits_for_a_replica():
                continue
            if self._reranker is None or not self._reranker.running:
                # Not probed: the probe would wait until the engine has started its process again.
                self._fails(EngineClosedError("the engine has ended"))
                log(logging.ERROR, "the engine has ended")
            elif await self._answers():
                continue
            if not self._waits_for_a_replica():
                await self._recover()

    def _waits_for_a_replica(self) -> bool:
        """Whether all replicas have ended. Their dispatcher starts them again, with growing pauses."""
        if self._reranker is None or self._reranker.running or not self._reranker.replaces:
            return False
        if self._status == "healthy":
            self._fails(EngineClosedError("every replica has ended"))
            log(logging.ERROR, "every replica has ended; they are being started again")
        return True

    async def _load(self) -> None:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        reranker = await _in_a_daemon(lambda: Reranker(**asdict(_on_this_machine(self.settings))))

        def listen(report: PassReport) -> None:  # in the engine's thread
            self._metrics.on_pass(report)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._hear, report)

        reranker.on_pass(listen)
        if self._owns_process:
            # torch and transformers have half a million objects. A full collection during a request would traverse
            # them for 200 ms.
            await asyncio.to_thread(gc.collect)
            gc.freeze()
        self._reranker = reranker
        self._last_answer = time.monotonic()
        await self._probe(reranker)  # one probe suffices: each replica scores a document before it counts as loaded
        self._works()
        self._metrics.engine_loads.inc()
        self._metrics.describe_build(self.settings.model, reranker.engine_name)
        seconds = round(time.perf_counter() - started, 3)
        log(logging.INFO, "engine ready", seconds=seconds, **reranker.describe().as_dict())

    def _works(self) -> None:
        self._status, self._error = "healthy", None
        self._failed.clear()
        self._metrics.engine_up.set(1)

    def _fails(self, error: Exception) -> None:
        self._status, self._error = "unhealthy", type(error).__name__
        self._failed.set()
        self._metrics.engine_up.set(0)

    def _hear(self, report: PassReport) -> None:
        if report.error is None:
            self._last_answer = time.monotonic()
            self._on_pass(report)
        else:
            log(logging.ERROR, "a forward pass failed", documents=report.documents, **describe_error(report.error))
            self._suspicious.set()

    async def _answers(self) -> bool:
        """Whether the engine scores a probe document; it may take its time while passes of other requests end."""
        if self._reranker is None:
            return False
        try:
            await self._probe(self._reranker)
        except Exception as error:  # noqa: BLE001 - after any error the server keeps running and restarts the engine
            self._fails(error)
            log(logging.ERROR, "the engine does not answer", **describe_error(error))
            self._suspicious.clear()
            return False
        self._last_answer = time.monotonic()
        self._works()
        return True

    async def _probe(self, reranker: Reranker) -> None:
        asked = time.monotonic()
        probe = asyncio.ensure_future(reranker.ascore("Is it alive?", ["Yes."], cached=False))
        try:
            while not probe.done():
                patience = max(asked, self._last_answer) + self._probe_timeout - time.monotonic()
                if patience <= 0:
                    raise TimeoutError
                await asyncio.wait({probe}, timeout=min(patience, _LOOK_EVERY))
                if not reranker.running:
                    raise EngineClosedError("the engine has ended")
            await probe
        finally:
            probe.cancel()

    async def _recover(self) -> None:
        """Restart the engine until it works."""
        pause = 1.0
        while True:
            await self._drop()
            log(logging.WARNING, "starting the engine again")
            try:
                await self._load()
            except Exception as error:  # noqa: BLE001 - after any error the server keeps running and tries again
                self._fails(error)
                log(logging.ERROR, "the engine cannot be started", retry_in=pause, **describe_error(error))
            else:
                if await self._answers():
                    return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _drop(self) -> None:
        if self._owns_process:
            gc.unfreeze()
        reranker, self._reranker = self._reranker, None
        if reranker is None:
            return
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            reranker.close()
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(closed.set)

        # A daemon thread, because an engine that hangs must not keep the process from ending.
        threading.Thread(target=close, name="qwen3-ranker-closing", daemon=True).start()
        try:
            await asyncio.wait_for(closed.wait(), _CLOSE_TIMEOUT)
        except TimeoutError:
            log(logging.ERROR, "the engine does not close; its threads keep running", seconds=_CLOSE_TIMEOUT)


class _Alarm:
    """Calls functions when it is set, or at once if it is on. An `asyncio.Event` would take a task for each waiter."""

    def __init__(self) -> None:
        self._on = False
        self._listeners: set[Callable[[], None]] = set()

    def set(self) -> None:
        """Turn it on."""
        self._on = True
        for listener in list(self._listeners):
            listener()

    def clear(self) -> None:
        """Turn it off."""
        self._on = False

    def add(self, listener: Callable[[], None]) -> None:
        """Call a function when it is on."""
        self._listeners.add(listener)
        if self._on:
            listener()

    def discard(self, listener: Callable[[], None]) -> None:
        """Do not call a function any more."""
        self._listeners.discard(listener)


async def _in_a_daemon(make: Callable[[], T]) -> T:
    """Run a function that may take minutes in a daemon thread, which does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Future[T]) -> None:
        if made.done():  # cancelled
            return
        error = outcome.exception()
        if error is None:
            made.set_result(outcome.result())
        else:
            made.set_exception(error)

    def run() -> None:
        outcome: Future[T] = Future()
        try:
            outcome.set_result(make())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is awaited
            outcome.set_exception(error)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=run, name=LOADING, daemon=True).start()
    return await made


def _failed() -> ApiError:
    return unavailable("engine_failed", "the engine has failed; see /health", 5)
