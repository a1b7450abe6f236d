"""One engine per configuration: rerankers with equal settings hold leases on one dispatcher."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from ..config import EngineConfig
from ..engines import create_engine
from ..engines.base import Engine
from ..engines.replica import create_replica
from ..errors import EngineClosedError
from ..prompt import EncodedRequest
from .dispatcher import Dispatcher, PassListener
from .replicas import ReplicaState
from .submission import Submission

#: What rerankers share: an engine in this process, or replicas, each in a process of its own.
Engines = EngineConfig | tuple[EngineConfig, ...]


class _Shared:
    """A dispatcher and how many leases it has; `ready` guards its creation."""

    def __init__(self) -> None:
        self.ready = threading.Lock()
        self.leases = 0
        self.dispatcher: Dispatcher | None = None


class _Registry:
    """The dispatchers of this process. The lock is reentrant: the garbage collector may give a lease back."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start without engines, as a forked child does: it has none of its parent's threads."""
        self._lock = threading.RLock()
        self._entries: dict[Engines, _Shared] = {}
        self._ending: list[Dispatcher] = []  # closed by the garbage collector, which did not wait for their threads

    def enter(self, config: Engines) -> _Shared:
        """Add a lease to a configuration's entry."""
        with self._lock:
            entry = self._entries.setdefault(config, _Shared())
            entry.leases += 1
            # A garbage collection between those two lines may have closed what the first one returned.
            return entry if self._entries.get(config) is entry else self.enter(config)

    def leave(self, config: Engines, entry: _Shared, *, wait: bool) -> None:
        """Remove a lease. The last one closes the engine; `wait` blocks until it is closed."""
        with self._lock:
            entry.leases -= 1
            last = entry.leases == 0
            if last and self._entries.get(config) is entry:
                del self._entries[config]
        if last and entry.dispatcher is not None:
            if not wait:
                self._ending = [each for each in self._ending if each.running] + [entry.dispatcher]
            entry.dispatcher.close(wait=wait)

    def close_all(self) -> None:
        """Close every engine before the interpreter shuts down: a thread inside torch would abort the exit."""
        shared = [entry.dispatcher for entry in self._entries.values() if entry.dispatcher is not None]
        for dispatcher in [*shared, *self._ending]:
            dispatcher.close()


_registry = _Registry()
if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_registry.forget)
atexit.register(_registry.close_all)


class Lease:
    """A share in the one dispatcher of a configuration, given back by `close` or by garbage collection.

    Args:
        config: configuration of one engine in this process, or of several replicas, each in its own process.

    Raises:
        RankerError: the engine could not be started.
    """

    def __init__(self, config: Engines) -> None:
        entry = _registry.enter(config)
        try:
            with entry.ready:  # the first lease loads the model; the others wait for it here
                if entry.dispatcher is None or not entry.dispatcher.running:  # not loaded yet, or dead
                    entry.dispatcher = _start(config)
        except BaseException:
            _registry.leave(config, entry, wait=True)
            raise
        self._dispatcher = entry.dispatcher
        #: The shared engine, or the first of its replicas.
        self.engine: Engine = entry.dispatcher.engine
        self._give_back = partial(_registry.leave, config, entry)
        # The garbage collector may run in any thread, an event loop's or a worker's: it must not wait for a pass.
        self._finalizer = weakref.finalize(self, self._give_back, wait=False)
        self._finalizer.atexit = False

    @property
    def running(self) -> bool:
        """Whether this lease is held, and threads and a process of an engine are alive."""
        return self._finalizer.alive and self._dispatcher.running and self._dispatcher.can_score

    @property
    def replaces(self) -> bool:
        """See `Dispatcher.replaces`."""
        return self._finalizer.alive and self._dispatcher.running and self._dispatcher.replaces

    def replicas(self) -> list[ReplicaState]:
        """See `Dispatcher.replicas`."""
        return self._dispatcher.replicas()

    def on_pass(self, listener: PassListener) -> None:
        """See `Dispatcher.on_pass`; the listener is called for the passes of all rerankers that share the engine."""
        self._dispatcher.on_pass(listener)

    def queue(self, submission: Submission, request: EncodedRequest, first: int = 0, *, restart: bool = True) -> None:
        """See `Dispatcher.queue`.

        Raises:
            EngineClosedError: this lease was given back, even if others hold the engine.
        """
        if not self._finalizer.alive:
            raise EngineClosedError("the reranker is closed: make a new one")
        self._dispatcher.queue(submission, request, first, restart=restart)

    def close(self) -> None:
        """Give the share back; the last one closes the engine. Repeated calls have no effect."""
        if self._finalizer.detach() is not None:
            self._give_back(wait=True)


def _start(config: Engines) -> Dispatcher:
    """The dispatcher of a configuration, once every engine of it can score.

    Raises:
        RankerError: an engine could not be started.
    """
    if isinstance(config, EngineConfig):
        return Dispatcher(create_engine(config))
    on_cpu = sum(each.device == "cpu" for each in config)
    threads = max(1, (os.cpu_count() or 1) // on_cpu) if on_cpu else None
    engines = _all_of([_in_a_thread(partial(create_replica, each, threads=threads)) for each in config])
    return Dispatcher(*engines, devices=[each.device for each in config])


def _in_a_thread(make: Callable[[], Engine]) -> Future[Engine]:
    """Make an engine in a thread, so that replicas load at the same time."""
    made: Future[Engine] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is used
            made.set_exception(error)

    # A daemon thread: a program that ends while it loads does not wait for it, and the processes end with the program.
    threading.Thread(target=run, name="qwen3-ranker-start", daemon=True).start()
    return made


def _all_of(starting: Sequence[Future[Engine]]) -> list[Engine]:
    """Wait until all engines have started; if one fails, close the others."""
    try:
        return [each.result() for each in starting]
    except BaseException:
        for each in starting:
            each.add_done_callback(lambda made: None if made.exception() else made.result().close())
        raise
