"""The share of the load that one client process sends: arrivals at a rate, or clients that wait for their answers.

Latency in the open loop counts from the scheduled arrival, not from the sending. A client that counts from the sending,
or that waits for an answer before it sends the next request, leaves out the time that requests would have waited while
the service stalled (coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

import anyio
import httpcore  # noqa: F401 - httpx imports it with its first request, which would then be late

from .connections import Connections, Failure
from .results import Requests
from .target import Target, Writer
from .workloads import Workload

#: Seconds by which the requests of the second workload start before the measured ones.
LEAD = 1.0


@dataclass(frozen=True)
class Share:
    """The requests that one process sends.

    Attributes:
        target: the service that gets them.
        workload: workload of the measured requests.
        seconds: time in which requests are sent.
        timeout: seconds from the scheduled arrival after which a request is abandoned.
        seed: seed of the texts.
        draws: seed of arrivals and queries, different in each process and step.
        starts: when to start, on the clock `time.monotonic`, which all processes of a machine share.
        arrivals: open loop: number of requests; None for a closed loop.
        clients: closed loop: number of clients of this process.
        beside: second workload that is sent at the same time, or None.
        beside_clients: number of clients of this process that send the second workload.
    """

    target: Target
    workload: Workload
    seconds: float
    timeout: float
    seed: int
    draws: str
    starts: float
    arrivals: int | None = None
    clients: int = 0
    beside: Workload | None = None
    beside_clients: int = 0


@dataclass(frozen=True)
class Sent:
    """One request and its outcome; times are in seconds from the start."""

    scheduled: float
    sent: float
    done: float
    shape: int
    failure: Failure | None


def poisson_arrivals(count: int, seconds: float, rng: random.Random) -> list[float]:
    """Arrival times in [0, seconds), in order, of a Poisson process with exactly `count` arrivals.

    If their number is given, the arrivals of a Poisson process are independent and uniform. A step thus offers exactly
    the rate that it is named after, with the gaps and bursts of independent callers.
    """
    return sorted(rng.uniform(0, seconds) for _ in range(count))


def prepare(share: Share) -> None:
    """Make the texts before the clock starts, and keep them in this process."""
    for workload in (share.workload, share.beside):
        if workload is not None:
            for shape in workload.shapes:
                Writer(share.target, shape, share.seed)


def send(share: Share) -> tuple[list[Sent], list[Sent]]:
    """Send a share; returns (measured requests, requests of the second workload), in the order in which they ended."""
    _allow_open_files()
    return asyncio.run(_send(share))


async def _send(share: Share) -> tuple[list[Sent], list[Sent]]:
    anyio.get_cancelled_exc_class()  # loads the backend that httpx would load with its first request
    connections = Connections(share.target)
    try:
        measured = _Sender(share, share.workload, connections, "measured")
        ends = share.starts + share.seconds
        if share.beside is None:
            await measured.run(share.arrivals, share.clients, ends)
            return measured.sent, []
        other = _Sender(share, share.beside, connections, "beside")
        async with asyncio.TaskGroup() as group:
            group.create_task(other.run(None, share.beside_clients, ends, starts=share.starts - LEAD))
            group.create_task(measured.run(share.arrivals, share.clients, ends))
        return measured.sent, other.sent
    finally:
        await connections.close()


class _Sender:
    """Sends requests of one workload and records their outcomes."""

    def __init__(self, share: Share, workload: Workload, connections: Connections, name: str) -> None:
        self._share = share
        self._connections = connections
        self._rng = random.Random(f"{share.draws} {name}")  # noqa: S311 - nothing secret
        self._places, self._weights = range(len(workload.shapes)), workload.weights
        self._writers = [Writer(share.target, shape, share.seed) for shape in workload.shapes]
        self.sent: list[Sent] = []

    async def run(self, arrivals: int | None, clients: int, ends: float, *, starts: float | None = None) -> None:
        """Send requests until `ends`, then wait until every request has ended."""
        await _sleep_until(self._share.starts if starts is None else starts)
        async with asyncio.TaskGroup() as group:
            if arrivals is None:
                for _ in range(clients):
                    group.create_task(self._client(ends))
                return
            for arrival in poisson_arrivals(arrivals, self._share.seconds, self._rng):
                await _sleep_until(self._share.starts + arrival)
                group.create_task(self._request(self._share.starts + arrival))

    async def _client(self, ends: float) -> None:
        """Send a request whenever the previous one has ended."""
        while (now := time.monotonic()) < ends:
            await self._request(now)

    async def _request(self, scheduled: float) -> None:
        (shape,) = self._rng.choices(self._places, self._weights)
        written = self._writers[shape].write(self._rng)
        sent = time.monotonic()
        done, failure = await self._connections.post(written, until=scheduled + self._share.timeout)
        starts = self._share.starts
        self.sent.append(Sent(scheduled - starts, sent - starts, done - starts, shape, failure))


async def _sleep_until(moment: float) -> None:
    """Sleep until a moment; let other tasks run even if it has passed."""
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def in_order(sent: list[Sent]) -> Requests:
    """The requests of all processes, in the form in which a result contains them."""
    requests = Requests()
    for place, each in enumerate(sorted(sent, key=lambda each: each.scheduled)):
        requests.scheduled.append(round(each.scheduled, 4))
        requests.lag_ms.append(round(1000 * (each.sent - each.scheduled), 2))
        requests.milliseconds.append(round(1000 * (each.done - each.scheduled), 2))
        requests.shapes.append(each.shape)
        if each.failure is not None:
            requests.failures.setdefault(each.failure.kind, []).append(place)
            requests.messages.setdefault(each.failure.kind, each.failure.message)
    return requests


def _allow_open_files() -> None:
    """Allow as many open files as the system permits: an overloaded service has thousands of requests in flight."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
