"""The engines of a dispatcher: which of them takes the next pass, how much goes into it, and what each has done."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..engines.base import Engine, EngineCapabilities
from .filling import ByLength

ReplicaStatus = Literal["running", "restarting", "failed"]

#: Seconds over which `documents_per_second` is averaged.
_RATE_SECONDS = 10.0
#: A replica that has run for more than this many seconds is restarted without a pause.
_STEADY_SECONDS = 60.0
#: Longest pause before a replica is restarted, in seconds.
_LONGEST_PAUSE = 60.0
#: A request that is split over replicas gives each at least the token budget divided by this: smaller passes take just
#: as long.
_LEAST_SHARE = 16


@dataclass(frozen=True, kw_only=True)
class ReplicaState:
    """State and counters of one engine of a reranker.

    Attributes:
        number: position among the engines, from 0, in the order of the devices.
        device: "cpu" or "cuda:N".
        status: "running": it can score. "restarting": it has ended and is being restarted. "failed": it could not be
            restarted, and the next attempt follows after a pause.
        process: id of its process; None if it runs in this one, or has ended.
        requests: number of requests in the passes that it is computing.
        passes, documents, tokens: numbers scored since the dispatcher was made, across restarts.
        failed_passes: number of passes that raised.
        documents_per_second: average over about the last ten seconds.
        restarts: number of times that it was restarted.
        error: why it ended or could not be started; None while it runs.
    """

    number: int
    device: str
    status: ReplicaStatus
    process: int | None
    requests: int
    passes: int
    documents: int
    tokens: int
    failed_passes: int
    documents_per_second: float
    restarts: int
    error: str | None


class Replica:
    """One engine of a dispatcher. The locks of the dispatcher guard it.

    Args:
        number: its position among the engines of the dispatcher.
        engine: running.
        device: "cpu" or "cuda:N".
        lock: the lock of the dispatcher's queue.

    Attributes:
        changed: its threads wait here for work.
        in_flight: number of passes that its threads have taken and not finished.
        requests, tokens_in_flight: number of requests and of tokens in these passes.
    """

    def __init__(self, number: int, engine: Engine, device: str, lock: threading.RLock) -> None:
        self.changed = threading.Condition(lock)
        self.number = number
        self.engine = engine
        self.device = device
        self.threads = engine.capabilities.workers * engine.capabilities.passes_in_flight
        self.in_flight = self.requests = self.tokens_in_flight = 0
        self.passes = self.documents = self.tokens = self.failed_passes = self.restarts = 0
        #: When its last pass ended.
        self.last_end = 0.0
        self._rate = _Rate()
        self._status: ReplicaStatus = "running"
        self._error: str | None = None
        self._started = time.monotonic()
        self._pause = 0.0

    @property
    def runs(self) -> bool:
        """Whether it can score."""
        return self._status == "running" and self.engine.running

    def count(self, documents: int, tokens: int) -> None:
        """Record a pass."""
        self.passes += 1
        self.documents += documents
        self.tokens += tokens
        self._rate.add(documents)

    def ends(self, error: object) -> bool:
        """Record that it has ended. Only the first reason is kept; returns whether this is it."""
        if self._status != "running":
            return False
        self._status, self._error = "restarting", str(error)
        return True

    def fails(self, error: object) -> None:
        """Record that it could not be restarted."""
        self._status, self._error = "failed", str(error)

    def starts(self) -> None:
        """Record that it was restarted."""
        self._status, self._error = "running", None
        self._started = time.monotonic()
        self.restarts += 1

    def next_pause(self) -> float:
        """Seconds to wait before the next restart: 0 at first, and more each time it ends soon after a restart."""
        steady = time.monotonic() - self._started > _STEADY_SECONDS and self._status == "restarting"
        pause = 0.0 if steady else self._pause
        self._pause = min(max(1.0, 2 * pause), _LONGEST_PAUSE)
        return pause

    def state(self) -> ReplicaState:
        """A snapshot of its state."""
        status: ReplicaStatus = "restarting" if self._status == "running" and not self.engine.running else self._status
        return ReplicaState(
            number=self.number,
            device=self.device,
            status=status,
            process=self.engine.worker_pid,
            requests=self.requests,
            passes=self.passes,
            documents=self.documents,
            tokens=self.tokens,
            failed_passes=self.failed_passes,
            documents_per_second=self._rate.per_second,
            restarts=self.restarts,
            error=self._error,
        )


class _Rate:
    """A rate per second, averaged with exponentially decaying weights."""

    def __init__(self) -> None:
        self._weighted = 0.0
        self._at = time.monotonic()

    def add(self, count: int) -> None:
        self._weighted = self._decayed() + count
        self._at = time.monotonic()

    @property
    def per_second(self) -> float:
        return self._decayed() / _RATE_SECONDS

    def _decayed(self) -> float:
        return self._weighted * math.exp((self._at - time.monotonic()) / _RATE_SECONDS)


def next_to_take(replicas: Sequence[Replica]) -> Replica | None:
    """The replica that should take the next pass: the one with the fewest tokens in flight. None if none can."""
    able = [each for each in replicas if each.in_flight < each.threads and each.runs]
    return min(able, key=lambda each: each.tokens_in_flight, default=None)


def may_take(replica: Replica, replicas: Sequence[Replica]) -> bool:
    """Whether this replica may take the next pass: it runs, and no other that can take it has fewer tokens in flight.

    Called from a thread of the replica that has no pass.
    """
    first = next_to_take(replicas)
    return first is not None and replica.runs and replica.tokens_in_flight <= first.tokens_in_flight


def share_of_pass(replica: Replica, replicas: Sequence[Replica], waiting: Collection[ByLength]) -> EngineCapabilities:
    """What a pass of this replica may hold, so that all replicas finish what waits and is in flight at the same time.

    Each share repeats the prefix. A share is at least 1/_LEAST_SHARE of the token budget, and leaves either nothing or
    a quarter of this to the others, because a smaller pass takes just as long.
    """
    capabilities = replica.engine.capabilities
    running = [each for each in replicas if each.runs]
    if len(running) <= 1 or not waiting:
        return capabilities
    least = capabilities.token_budget // _LEAST_SHARE
    tokens = sum(each.request.prefix_length + each.tokens_left for each in waiting)
    of_each = -(-(tokens + sum(each.tokens_in_flight for each in running)) // len(running))
    share = max(of_each - replica.tokens_in_flight + next(iter(waiting)).request.prefix_length, least)
    if tokens - share < least // 4:
        share = tokens
    return replace(capabilities, token_budget=min(share, capabilities.token_budget))
