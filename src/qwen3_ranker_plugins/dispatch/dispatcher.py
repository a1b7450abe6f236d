"""One worker per engine (several for one that can be called again meanwhile), and one engine per configuration.

Callers submit encoded requests and get futures. While a pass is running, waiting requests gather; the worker
fills the next pass from all of them in turns, as many documents of each as fit the engine's token budget.
So concurrent callers share passes without a timer, and a long list does not hold up a short one.

An engine on a GPU may have two workers (`EngineCapabilities.passes_in_flight`): while one waits for its pass, the
other lays out and queues the next. No request is held back for that: an idle worker takes whatever waits.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np

from ..engines.base import Engine, Margins
from ..errors import EngineClosedError, EngineError, RankerError
from ..prompt import EncodedRequest, length_order

Progress = Callable[[int], None]


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


class _Submission:
    """A request on its way: documents up to `_taken` (shortest first) have gone into passes."""

    def __init__(self, request: EncodedRequest, on_progress: Progress | None) -> None:
        self.request = request
        self.future: Future[Margins] = Future()
        self._on_progress = on_progress
        self._order = length_order(request)
        self._tokens_before = [0, *accumulate(request.lengths[i] for i in self._order)]
        self._taken = 0
        self._scored = 0
        self._values = np.full(len(self._order), np.nan, dtype=np.float32)
        self._failures: dict[int, str] = {}
        self._truncated: dict[int, int] = {}
        self._computed_tokens = 0
        self._prompt_tokens: int | None = None
        self._recording = threading.Lock()  # passes of one request may end at the same time
        self._claimed = False

    @property
    def waiting(self) -> int:
        """Documents that no pass has taken yet."""
        return len(self._order) - self._taken

    def take(self, budget: int, most: int, *, at_least: int = 0) -> tuple[list[int], int]:
        """(indices of the next documents, at most so many, that fit the budget with the prefix, their tokens)."""
        prefix = self.request.prefix_length
        before = self._tokens_before
        stop = min(len(self._order), self._taken + most)
        fits = bisect_right(before, budget - prefix + before[self._taken], self._taken, stop + 1) - 1
        end = min(stop, max(fits, self._taken + at_least))
        indices = sorted(self._order[self._taken : end])  # a service that ranks may tell ties by this order
        tokens = prefix + before[end] - before[self._taken] if indices else 0
        self._taken = end
        return indices, tokens

    def part(self, indices: list[int]) -> EncodedRequest:
        """The request with the documents that were taken, which may be all of them."""
        return self.request if len(indices) == len(self._order) else self.request.take(indices)

    def take_first(self, budget: int, most: int) -> tuple[list[int], int]:
        """`take` for the first of a pass: at least one document, and enough of them to be worth a long prefix."""
        return self.take(max(budget, self.request.prefix_length + budget // 4), most, at_least=1)

    def record(self, indices: list[int], margins: Margins) -> None:
        """Enter the scores of some documents; the last of them completes the future."""
        with self._recording:
            self._values[indices] = margins.values
            self._failures.update({indices[i]: reason for i, reason in margins.failures.items()})
            self._truncated.update({indices[i]: tokens for i, tokens in margins.truncated.items()})
            self._computed_tokens += margins.computed_tokens
            if margins.prompt_tokens is not None:
                self._prompt_tokens = (self._prompt_tokens or 0) + margins.prompt_tokens
            self._scored += len(indices)
            complete = self._scored == len(self._order)
            if self._on_progress is not None:
                self._on_progress(len(indices))
        if complete and self._claim():
            self.future.set_result(
                Margins(self._values, self._computed_tokens, self._failures, self._prompt_tokens, self._truncated)
            )

    def fail(self, error: BaseException) -> None:
        """Complete the future with an error, unless it is settled."""
        if self._claim():
            self.future.set_exception(error)

    def _claim(self) -> bool:
        """Whether the caller is to settle the future: the first who asks, unless it was cancelled."""
        with self._recording:
            if self._claimed or self.settled:
                return False
            self._claimed = True
        return self.future.set_running_or_notify_cancel()

    @property
    def settled(self) -> bool:
        """Cancelled, failed or complete: nothing more is wanted."""
        return self.future.done()


_Pass = list[tuple[_Submission, list[int]]]
"""What a forward pass is filled with: documents of some submissions."""


class Dispatcher:
    """Owns an engine and the thread, or the threads, that run it.

    Args:
        engine: closed together with the dispatcher.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._waiting: deque[_Submission] = deque()
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

    def submit(
        self, request: EncodedRequest, on_progress: Progress | None = None, *, restart: bool = True
    ) -> Future[Margins]:
        """Queue a request. Cancelling the future drops what no pass has taken yet.

        Args:
            request: with at least one document.
            on_progress: called from a worker thread with the number of documents scored by a pass.
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
        submission = _Submission(request, on_progress)
        with self._changed:
            if self._closing:
                raise EngineClosedError("the reranker is closed: make a new one")
            if not restart and not self.engine.running:
                raise EngineClosedError(f"the process of engine {self.engine.name!r} has ended: make a new reranker")
            self._waiting.append(submission)
            self._changed.notify()
        submission.future.add_done_callback(partial(self._forget_cancelled, submission))
        return submission.future

    def _forget_cancelled(self, submission: _Submission, future: Future[Margins]) -> None:
        """Free the memory of a cancelled request now: the pass in flight may take long, or never end."""
        if future.cancelled():
            with self._changed, suppress(ValueError):  # it is in a pass, or was taken out already
                self._waiting.remove(submission)

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
        batch: _Pass = []
        try:
            while batch := self._next_pass():
                self._score(batch)
        finally:  # also if this thread is torn down by what is not an Exception: nobody may wait for ever
            with self._changed:
                self._closing = True
                self._changed.notify_all()
                stranded = [*(submission for submission, _ in batch), *self._waiting]
                self._waiting.clear()
                self._working -= 1
                last = self._working == 0
            for submission in stranded:
                submission.fail(EngineClosedError("the reranker was closed while this call was waiting"))
            if last:
                self.engine.close()

    def _next_pass(self) -> _Pass:
        """Wait for work and fill one pass; empty when closing."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return []
                if batch := self._fill():
                    if self._waiting:
                        self._changed.notify()  # another worker may go on with what is left
                    return batch

    def _fill(self) -> _Pass:
        """Take documents of the waiting submissions in turns, until the budget is used."""
        capabilities = self.engine.capabilities
        budget = capabilities.token_budget
        most = sys.maxsize if capabilities.documents_per_pass is None else capabilities.documents_per_pass
        shared = capabilities.workers == 1
        batch: _Pass = []
        skipped: list[_Submission] = []
        served: list[_Submission] = []
        while self._waiting and budget > 0 and most > 0 and (shared or not batch):
            submission = self._waiting.popleft()
            if submission.settled:
                continue
            indices, tokens = submission.take(budget, most) if batch else submission.take_first(budget, most)
            budget -= tokens
            most -= len(indices)
            if not indices:
                skipped.append(submission)
                continue
            batch.append((submission, indices))
            if submission.waiting:
                served.append(submission)
        # Whoever got nothing comes first next time, whoever got something last.
        self._waiting.extendleft(reversed(skipped))
        self._waiting.extend(served)
        return batch

    def _score(self, batch: _Pass) -> None:
        requests = [submission.part(indices) for submission, indices in batch]
        started = time.perf_counter()
        try:
            if self.engine.capabilities.workers == 1:
                results = self.engine.score(requests)
            else:
                results = self.engine.score_until(requests, batch[0][0].future)
        except Exception as error:  # noqa: BLE001 - it belongs to the callers; this thread has to live on
            self._report(requests, started, error)
            failure = error if isinstance(error, RankerError) else _engine_error(self.engine, error)
            if not self.engine.running:
                self._fail_all(batch, failure)
            elif len(batch) > 1:  # one caller's fault must not become everybody's
                for single in batch:
                    self._score([single])
            else:
                batch[0][0].fail(failure)
            return
        except BaseException as error:  # the thread ends with it
            self._report(requests, started, error)
            raise
        self._report(requests, started)
        for (submission, indices), margins in zip(batch, results, strict=True):
            if not submission.settled:
                try:
                    submission.record(indices, margins)
                except Exception as error:  # noqa: BLE001 - the caller's progress function raised
                    submission.fail(error)

    def _fail_all(self, batch: _Pass, error: RankerError) -> None:
        """Fail a pass and everything that waits: starting an engine's process again takes longer than callers wait."""
        with self._changed:
            failed = [*(submission for submission, _ in batch), *self._waiting]
            self._waiting.clear()
        for submission in failed:
            submission.fail(error)

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
