"""The queue of an engine and the threads that run it: one, or several for an engine that takes overlapping calls.

Callers queue encoded requests, whose submissions have futures. While a pass runs, requests gather; the worker fills
the next pass from all of them in turns, with as many documents of each as fit the engine's token budget. So concurrent
callers share passes without a timer, and a long list does not hold up a short one.

An engine on a GPU may have two workers (`EngineCapabilities.passes_in_flight`): while one waits for its pass, the
other lays out and queues the next. No request is held back for that: an idle worker takes whatever waits.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from ..engines.base import Engine, Margins
from ..errors import EngineClosedError, EngineError, RankerError
from ..prompt import EncodedRequest
from .filling import ByLength, fill_in_turns, halves
from .submission import Submission


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one forward pass held, and how it went.

    Attributes:
        requests, documents: how many took part, and with how many documents.
        tokens: that went into it.
        seconds: wall time of the pass; of one that was queued behind another on the same device, from that one's end.
        error: what it raised, or None.
    """

    requests: int
    documents: int
    tokens: int
    seconds: float
    error: BaseException | None = None


PassListener = Callable[[PassReport], None]


class _Queued(ByLength):
    """A part of a submission, or all of it, whose documents wait for passes.

    Args:
        submission: what the documents belong to.
        request: encoded, with at least one document.
        first: place of its first document among those of the submission.
    """

    def __init__(self, submission: Submission, request: EncodedRequest, first: int) -> None:
        super().__init__(request)
        self.submission = submission
        self.first = first


_Pass = Sequence[tuple[_Queued, list[int]]]
"""What a forward pass is filled with: documents of some requests."""


class Dispatcher:
    """Owns an engine and the thread, or the threads, that run it.

    Args:
        engine: closed together with the dispatcher.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._waiting: deque[_Queued] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._listeners: list[PassListener] = []
        self._process = os.getpid()
        # Daemons, so that a program that forgets close() can end; the registry joins them at exit.
        self._workers = [
            threading.Thread(target=self._run, name=f"qwen3-ranker-{engine.name}", daemon=True)
            for _ in range(engine.capabilities.workers * engine.capabilities.passes_in_flight)
        ]
        self._working = len(self._workers)
        self._reporting = threading.Lock()
        self._last_end = 0.0
        for worker in self._workers:
            worker.start()

    def queue(self, submission: Submission, request: EncodedRequest, first: int = 0, *, restart: bool = True) -> None:
        """Queue documents of a submission: all of them, or a part that is followed by others.

        Args:
            submission: settled when its last document is scored. If it is cancelled, what no pass has taken is dropped.
            request: with at least one document.
            first: place of its first document among those of the submission.
            restart: if the engine's process has ended, wait until the engine has started another one.

        Raises:
            EngineClosedError: closed, or called in a process forked from the one that made it, or the engine's process
                has ended and `restart` is False.
        """
        if os.getpid() != self._process:
            raise EngineClosedError(
                "this reranker was made before a fork and its engine lives in the parent process: "
                "make the reranker in the child, or start workers with the 'spawn' method"
            )
        queued = _Queued(submission, request, first)
        with self._changed:
            if self._closing:
                raise EngineClosedError("the reranker is closed: make a new one")
            if not restart and not self.engine.running:
                raise EngineClosedError(f"the process of engine {self.engine.name!r} has ended: make a new reranker")
            self._waiting.append(queued)
            self._changed.notify()
        submission.future.add_done_callback(partial(self._forget_cancelled, queued))

    def _forget_cancelled(self, queued: _Queued, future: Future[Margins]) -> None:
        """Free the memory of a cancelled request now: the pass in flight may take long, or never end."""
        # In a forked child, the lock may be held by a thread that does not exist there.
        if future.cancelled() and os.getpid() == self._process:
            with self._changed, suppress(ValueError):  # it is in a pass, or was taken out already
                self._waiting.remove(queued)

    def on_pass(self, listener: PassListener) -> None:
        """Call `listener` after every pass, from the thread that ran it. It must not raise."""
        self._listeners.append(listener)

    def close(self, *, wait: bool = True) -> None:
        """Finish the passes in flight, fail what is still waiting, close the engine, end the threads.

        Args:
            wait: until all that is done; False leaves it to the threads.
        """
        if os.getpid() != self._process:
            return  # the thread and the engine are the parent's
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if wait and threading.current_thread() not in self._workers:
            for worker in self._workers:
                worker.join()

    @property
    def running(self) -> bool:
        """Whether a thread is alive."""
        return any(worker.is_alive() for worker in self._workers)

    def _run(self) -> None:
        batch: _Pass = ()
        try:
            while batch := self._next_pass():
                self._score(batch)
        finally:  # also if something other than an Exception ends this thread: nobody may wait forever
            with self._changed:
                self._closing = True
                self._changed.notify_all()
                stranded = [*(queued for queued, _ in batch), *self._waiting]
                self._waiting.clear()
                self._working -= 1
                last = self._working == 0
            for queued in stranded:
                queued.submission.fail(EngineClosedError("the reranker was closed while this call was waiting"))
            if last:
                self.engine.close()

    def _next_pass(self) -> _Pass:
        """Wait for work and fill one pass; empty when closing."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return ()
                self._waiting = deque(each for each in self._waiting if not each.submission.settled)
                if batch := fill_in_turns(self._waiting, self.engine.capabilities):
                    if self._waiting:
                        self._changed.notify()  # another worker may go on with what is left
                    return batch

    def _score(self, batch: _Pass) -> None:
        requests = [
            queued.request if len(indices) == len(queued.request.segments) else queued.request.take(indices)
            for queued, indices in batch
        ]
        started = time.perf_counter()
        try:
            if self.engine.capabilities.workers == 1:
                results = self.engine.score(requests)
            else:
                results = self.engine.score_until(requests, batch[0][0].submission.future)
        except Exception as error:  # noqa: BLE001 - it belongs to the callers; this thread has to live on
            self._report(requests, started, error)
            failure = error if isinstance(error, RankerError) else _engine_error(self.engine, error)
            if not self.engine.running:
                self._fail_all(batch, failure)
            elif parts := halves(batch):
                for part in parts:
                    self._score(part)
            else:
                batch[0][0].submission.fail(failure)
            return
        except BaseException as error:  # the thread ends with it
            self._report(requests, started, error)
            raise
        self._report(requests, started)
        for (queued, indices), margins in zip(batch, results, strict=True):
            submission, first = queued.submission, queued.first
            if not submission.settled:
                try:
                    submission.record([first + index for index in indices] if first else indices, margins)
                except Exception as error:  # noqa: BLE001 - the caller's progress function raised
                    submission.fail(error)

    def _fail_all(self, batch: _Pass, error: RankerError) -> None:
        """Fail a pass and everything that waits: starting an engine's process again takes longer than callers wait."""
        with self._changed:
            failed = [*(queued for queued, _ in batch), *self._waiting]
            self._waiting.clear()
        for queued in failed:
            queued.submission.fail(error)

    def _report(self, requests: list[EncodedRequest], started: float, error: BaseException | None = None) -> None:
        ended = time.perf_counter()
        with self._reporting:
            if self.engine.capabilities.workers == 1:  # one device, which was busy with the pass before until then
                started = max(started, self._last_end)
            if error is None:
                self._last_end = ended
        if self._listeners:
            report = PassReport(
                requests=len(requests),
                documents=sum(len(request.segments) for request in requests),
                tokens=sum(request.num_tokens for request in requests),
                seconds=max(0.0, ended - started),
                error=error,
            )
            for listener in self._listeners:
                listener(report)


def _engine_error(engine: Engine, error: Exception) -> EngineError:
    wrapped = EngineError(f"engine {engine.name!r} failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
