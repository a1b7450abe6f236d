"""The queue of one or several engines and the threads that run them.

Callers queue encoded requests, and each submission has a future. Requests accumulate while a pass runs. The worker then
fills the next pass from all of them in turn, up to the engine's token budget. So concurrent callers share passes
without a timer. A long list does not delay a short one, and short ones do not keep a long one from ending.

An engine on a GPU may have two workers (`EngineCapabilities.passes_in_flight`): while one waits for its pass, the
other lays out and queues the next. No request is delayed for this: an idle worker takes any request that waits.

Several engines with the same model are replicas: the one with the fewest tokens in flight takes the next pass, which
holds so much of the waiting requests that all replicas finish at the same time. A replica whose process ends is
restarted by its keeper thread; meanwhile the other replicas compute its passes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

from ..engines.base import Engine, Margins
from ..errors import EngineClosedError, EngineError, RankerError
from ..prompt import EncodedRequest
from .filling import ByLength, Turns, fill_in_turns, halves
from .replicas import Replica, ReplicaState, may_take, next_to_take, share_of_pass
from .submission import Submission

_logger = logging.getLogger(__name__)

#: Seconds between checks of whether a replica's process runs.
_LOOK_EVERY = 0.25
#: A request fails if this many replicas ended while they computed it, because it may be the cause.
_MOST_ENDS = 3


@dataclass(frozen=True, slots=True)
class PassReport:
    """Content and outcome of one forward pass.

    Attributes:
        requests, documents: number of requests in the pass, and of their documents in it.
        tokens: number of tokens in the pass.
        seconds: wall time of the pass; if it waited for another pass on the same device, counted from the end of that
            pass.
        error: the exception that the pass raised, or None.
        token_budget: tokens that a pass of this engine may hold.
        replica: number of the engine that ran it.
    """

    requests: int
    documents: int
    tokens: int
    seconds: float
    token_budget: int
    error: BaseException | None = None
    replica: int = 0


PassListener = Callable[[PassReport], None]


class _Queued(ByLength):
    """A part of a submission, or all of it, that waits in the queue."""

    owner: Submission


_Pass = Sequence[tuple[_Queued, list[int]]]
"""Content of a forward pass: parts of requests, each with the indices of its documents in the pass."""


@dataclass(frozen=True)
class _Again:
    """A pass to compute. One that is repeated after a replica ended holds a single request, which may be the cause.

    Attributes:
        batch: content of the pass.
        ends: number of replicas that ended while they computed it.
    """

    batch: _Pass
    ends: int

    @cached_property
    def tokens(self) -> int:
        """Number of tokens in the pass."""
        return sum(
            queued.request.prefix_length + sum(map(queued.request.lengths.__getitem__, indices))
            for queued, indices in self.batch
        )


class Dispatcher:
    """Owns one or several engines and the threads that run them.

    Args:
        engine, others: engines with the same model, which the dispatcher closes.
        devices: device of each engine, if the engines are replicas, which the dispatcher restarts when their process
            has ended. None for an engine that its owner replaces.
    """

    def __init__(self, engine: Engine, *others: Engine, devices: Sequence[str] | None = None) -> None:
        #: The first engine.
        self.engine = engine
        engines = [engine, *others]
        places = [each.describe().device for each in engines] if devices is None else devices
        self._lock = threading.RLock()
        self._replicas = [
            Replica(number, each, place, self._lock)
            for number, (each, place) in enumerate(zip(engines, places, strict=True))
        ]
        self._replaces = devices is not None
        self._again: deque[_Again] = deque()
        self._waiting: deque[_Queued] = deque()
        self._turns = Turns()
        self._wake = self._wake_next if len(engines) > 1 else self._replicas[0].changed.notify
        self._closing = False
        self._listeners: list[PassListener] = []
        self._process = os.getpid()
        self._reporting = threading.Lock()
        self._closed = threading.Event()
        # Daemons, so that a program that forgets close() can end; the registry joins them at exit.
        self._workers = [
            threading.Thread(target=self._run, args=(each,), name=f"qwen3-ranker-{engine.name}", daemon=True)
            for each in self._replicas
            for _ in range(each.threads)
        ]
        self._keepers = [
            threading.Thread(target=self._keep, args=(each,), name=f"qwen3-ranker-keeper-{each.number}", daemon=True)
            for each in self._replicas
            if self._replaces
        ]
        for thread in (*self._workers, *self._keepers):
            thread.start()

    def queue(self, submission: Submission, request: EncodedRequest, first: int = 0, *, restart: bool = True) -> None:
        """Queue documents of a submission: all of them, or a part that is followed by others.

        Args:
            submission: settled when its last document is scored. If it is cancelled, documents that no pass has taken
                are dropped.
            request: a request with at least one document.
            first: position of its first document among those of the submission.
            restart: if no engine runs because its process has ended, wait until one has been restarted.

        Raises:
            EngineClosedError: closed, or called in a process forked from the one that made it, or no engine runs and
                `restart` is False.
        """
        if os.getpid() != self._process:
            raise EngineClosedError(
                "this reranker was made before a fork and its engine lives in the parent process: "
                "make the reranker in the child, or start workers with the 'spawn' method"
            )
        queued = _Queued(request, submission, first)
        with self._lock:
            if self._closing:
                raise EngineClosedError("the reranker is closed: make a new one")
            if not restart and not self.can_score:
                remedy = "it is being started again" if self._replaces else "make a new reranker"
                raise EngineClosedError(f"the process of engine {self.engine.name!r} has ended: {remedy}")
            self._waiting.append(queued)
            self._wake()
        submission.future.add_done_callback(partial(self._forget_cancelled, queued))

    def _forget_cancelled(self, queued: _Queued, future: Future[Margins]) -> None:
        """Free the memory of a cancelled request now: the pass in flight may take long, or never end."""
        # In a forked child, the lock may be held by a thread that does not exist there.
        if future.cancelled() and os.getpid() == self._process:
            with self._lock, suppress(ValueError):  # it is in a pass, or was taken out already
                self._waiting.remove(queued)

    def on_pass(self, listener: PassListener) -> None:
        """Call `listener` after every pass, from the thread that ran it. It must not raise."""
        self._listeners.append(listener)

    def close(self, *, wait: bool = True) -> None:
        """Finish the passes in flight, fail what is still waiting, close the engine, end the threads.

        Args:
            wait: block until all this is done; False leaves it to the threads.
        """
        if os.getpid() != self._process:
            return  # the thread and the engine are the parent's
        with self._lock:
            self._close()
        if wait and threading.current_thread() not in self._workers:
            for thread in (*self._workers, *self._keepers):
                thread.join()

    @property
    def running(self) -> bool:
        """Whether any worker thread is alive."""
        return any(worker.is_alive() for worker in self._workers)

    @property
    def can_score(self) -> bool:
        """Whether a process of an engine runs, or none is needed."""
        return any(each.runs for each in self._replicas)

    @property
    def replaces(self) -> bool:
        """Whether engines are restarted when their processes have ended."""
        return self._replaces

    def replicas(self) -> list[ReplicaState]:
        """The state of each engine."""
        with self._lock:
            return [each.state() for each in self._replicas]

    def _close(self) -> None:
        self._closing = True
        self._closed.set()
        self._wake_all()

    def _wake_next(self) -> None:
        """Wake a thread of the replica that should take the next pass."""
        if (first := next_to_take(self._replicas)) is not None:
            first.changed.notify()

    def _wake_all(self) -> None:
        for each in self._replicas:
            each.changed.notify_all()

    def _run(self, replica: Replica) -> None:
        work = _Again((), 0)
        try:
            while (work := self._next_pass(replica)).batch:
                self._score(replica, work)
                with self._lock:
                    replica.in_flight -= 1
                    replica.requests -= len(work.batch)
                    replica.tokens_in_flight -= work.tokens if len(self._replicas) > 1 else 0
        finally:  # even if something other than an Exception ends this thread: nobody may wait forever
            with self._lock:
                self._close()
                stranded = [*(queued for queued, _ in work.batch), *self._take_all()]
                replica.threads -= 1
                last = replica.threads == 0
            for queued in stranded:
                queued.owner.fail(EngineClosedError("the reranker was closed while this call was waiting"))
            if last:
                replica.engine.close()

    def _next_pass(self, replica: Replica) -> _Again:
        """Wait for work and fill one pass; an empty one when closing."""
        work = _Again((), 0)
        with self._lock:
            while not (self._closing or work.batch):
                if not self._replaces or may_take(replica, self._replicas):
                    # Drop requests that were cancelled or have failed: nobody waits for them.
                    self._again = deque(each for each in self._again if not each.batch[0][0].owner.future.done())
                    self._waiting = deque(each for each in self._waiting if not each.owner.future.done())
                    if self._again:
                        work = self._again.popleft()
                    elif self._waiting:
                        room = replica.engine.capabilities
                        if len(self._replicas) > 1:
                            room = share_of_pass(replica, self._replicas, self._waiting)
                        work = _Again(fill_in_turns(self._waiting, room, self._turns), 0)
                elif self._again or self._waiting:
                    self._wake()  # the thread of a replica that has finished more meanwhile
                if not work.batch:
                    replica.changed.wait()
            if work.batch:
                replica.in_flight += 1
                replica.requests += len(work.batch)
                replica.tokens_in_flight += work.tokens if len(self._replicas) > 1 else 0
                if self._waiting or self._again:
                    self._wake()  # another worker may take what is left
        return work

    def _score(self, replica: Replica, work: _Again) -> None:
        batch, engine = work.batch, replica.engine
        requests = [
            queued.request if len(indices) == len(queued.request.segments) else queued.request.take(indices)
            for queued, indices in batch
        ]
        started, process = time.perf_counter(), engine.worker_pid if self._replaces else None
        try:
            if engine.capabilities.workers == 1:
                results = engine.score(requests)
            else:
                results = engine.score_until(requests, batch[0][0].owner.future)
        except Exception as error:  # noqa: BLE001 - callers get the error; this thread must survive
            self._report(replica, requests, started, error)
            failure = error if isinstance(error, RankerError) else _engine_error(engine, error)
            # Its keeper may have restarted it already.
            if not engine.running or (self._replaces and engine.worker_pid != process):
                self._give_to_others(replica, work, failure)
            elif parts := halves(batch):
                for part in parts:
                    self._score(replica, _Again(part, work.ends))
            else:
                batch[0][0].owner.fail(failure)
            return
        except BaseException as error:  # the thread ends with it
            self._report(replica, requests, started, error)
            raise
        self._report(replica, requests, started)
        for (queued, indices), margins in zip(batch, results, strict=True):
            submission, first = queued.owner, queued.first
            if not submission.future.done():
                try:
                    submission.record([first + index for index in indices] if first else indices, margins)
                except Exception as error:  # noqa: BLE001 - the caller's progress function raised
                    submission.fail(error)

    def _give_to_others(self, replica: Replica, work: _Again, error: RankerError) -> None:
        """Have another replica compute a pass in which one has ended. If none is left, fail all waiting requests."""
        ends = work.ends + 1
        with self._lock:
            if self._replaces and not replica.engine.running:
                replica.ends(error)
            if ends < _MOST_ENDS and self._replaces and self.can_score:
                self._again.extend(_Again([share], ends) for share in work.batch)
                failed = []
            else:
                failed = [queued for queued, _ in work.batch]
            failed += self._fail_if_none_is_left()
            self._wake_all()
        for queued in failed:
            queued.owner.fail(error)

    def _fail_if_none_is_left(self) -> list[_Queued]:
        """The waiting requests, which must fail, if no replica runs: a restart takes longer than callers wait."""
        return [] if self.can_score else self._take_all()

    def _take_all(self) -> list[_Queued]:
        """Remove all waiting requests from the queue."""
        taken = [*(work.batch[0][0] for work in self._again), *self._waiting]
        self._again.clear()
        self._waiting.clear()
        return taken

    def _keep(self, replica: Replica) -> None:
        """Restart a replica whenever it has ended, until the dispatcher is closed."""
        while not self._closed.wait(_LOOK_EVERY):
            if replica.engine.running:
                continue
            with self._lock:
                # If it ended in a pass, the requests that waited then have failed; later requests wait for the restart.
                unnoticed = replica.ends("its worker process has ended")
                stranded = self._fail_if_none_is_left() if unnoticed else []
                pause = replica.next_pause()
                self._wake_all()
            _logger.error("replica %d on %s has ended: %s", replica.number, replica.device, replica.state().error)
            for queued in stranded:
                queued.owner.fail(EngineError("every replica has ended; they are being started again"))
            if self._closed.wait(pause):
                return
            self._start_again(replica)

    def _start_again(self, replica: Replica) -> None:
        started = time.perf_counter()
        try:
            replica.engine.restart()
        except Exception as error:  # noqa: BLE001 - after any error, the others run on and this one is retried
            with self._lock:
                replica.fails(error)
                stranded = self._fail_if_none_is_left()
            if not self._closing:
                message = "replica %d on %s cannot be started again: %s"
                _logger.error(message, replica.number, replica.device, error)  # noqa: TRY400 - a traceback adds nothing
            for queued in stranded:
                queued.owner.fail(error)
            return
        with self._lock:
            replica.starts()
            self._wake_all()
        seconds = time.perf_counter() - started
        _logger.warning("replica %d on %s was started again in %.1f s", replica.number, replica.device, seconds)

    def _report(
        self, replica: Replica, requests: list[EncodedRequest], started: float, error: BaseException | None = None
    ) -> None:
        ended = time.perf_counter()
        documents = sum(len(request.segments) for request in requests)
        tokens = sum(request.num_tokens for request in requests)
        with self._reporting:
            if replica.engine.capabilities.workers == 1:  # one device, busy with the previous pass until then
                started = max(started, replica.last_end)
            if error is None:
                replica.last_end = ended
                replica.count(documents, tokens)
            else:
                replica.failed_passes += 1
        if self._listeners:
            report = PassReport(
                requests=len(requests),
                documents=documents,
                tokens=tokens,
                seconds=max(0.0, ended - started),
                token_budget=replica.engine.capabilities.token_budget,
                error=error,
                replica=replica.number,
            )
            for listener in self._listeners:
                listener(report)


def _engine_error(engine: Engine, error: Exception) -> EngineError:
    wrapped = EngineError(f"engine {engine.name!r} failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
