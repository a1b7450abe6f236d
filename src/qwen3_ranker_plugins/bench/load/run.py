"""Runs a load test: one step after the other, each sent by one or several client processes."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ...checks import check_positive
from ...errors import InvalidInputError
from ..errors import BenchError
from ..latency.client import Client
from ..machine import Environment
from .arrivals import LEAD, Sent, Share, in_order, prepare, send
from .connections import Connections
from .results import LoadResult, LoadStep, evaluate, figures_of
from .target import Target, Writer
from .workloads import Workload

Progress = Callable[[str], None]

#: Seconds from the moment when all processes have their texts to the first arrival.
_START = 0.3
#: Seconds between two steps, in which a service can finish its remaining work.
_REST = 1.0


@dataclass(frozen=True)
class LoadPlan:
    """The requests that a load test sends.

    Attributes:
        workload: workload of the measured requests.
        rates: open loop: requests per second of each step; empty for a closed loop.
        clients: closed loop: number of clients of each step; empty for an open loop.
        seconds: duration of each step.
        timeout: seconds from a request's scheduled arrival after which it is abandoned.
        p99_limit_ms: limit of P99 in milliseconds; the highest rate within it is reported.
        warmup: number of requests that are sent first and not counted.
        processes: number of client processes.
        beside: second workload, sent at the same time and reported separately; None for none.
        beside_clients: number of clients that send the second workload, one request after the other each.
        seed: seed of texts and arrivals.

    Raises:
        InvalidInputError: a value is unusable.
    """

    workload: Workload
    rates: Sequence[float] = ()
    clients: Sequence[int] = ()
    seconds: float = 10.0
    timeout: float = 30.0
    p99_limit_ms: float = 500.0
    warmup: int = 8
    processes: int = 1
    beside: Workload | None = None
    beside_clients: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if bool(self.rates) == bool(self.clients):
            raise InvalidInputError("rates", list(self.rates), "give either rates or numbers of clients")
        for name in ("seconds", "timeout", "p99_limit_ms"):
            _check_finite(name, getattr(self, name))
        for rate in self.rates:
            _check_finite("rates", rate)
        for name, count in (("processes", self.processes), ("beside_clients", self.beside_clients)):
            check_positive(name, count)
        for count in self.clients:
            check_positive("clients", count)
        if self.warmup < 0:
            raise InvalidInputError("warmup", self.warmup, "use 0 or more")
        if self.clients and self.processes > min(self.clients):
            raise InvalidInputError("processes", self.processes, f"use at most {min(self.clients)}, the fewest clients")

    def settings(self) -> dict[str, Any]:
        """The plan as JSON, for the result."""
        return {
            "workload": self.workload.name,
            "rates": list(self.rates),
            "clients": list(self.clients),
            "seconds": self.seconds,
            "timeout": self.timeout,
            "p99_limit_ms": self.p99_limit_ms,
            "warmup": self.warmup,
            "processes": self.processes,
            "beside": None if self.beside is None else self.beside.name,
            "beside_clients": None if self.beside is None else self.beside_clients,
        }


def measure_load(
    target: Target, plan: LoadPlan, about: Environment, *, tag: str | None = None, progress: Progress | None = None
) -> LoadResult:
    """Run every step.

    Args:
        target: the service.
        plan: the requests.
        about: `environment()` from before the measurement.
        tag: the user's name for the result.
        progress: called with a line for each step.

    Raises:
        BenchError: no warm-up request was answered.
    """
    options = target.options
    facts = {"device": f"{options.kind} at {options.url}"}
    if options.kind == "server":
        facts = _facts(target)
    _warm_up(replace(target, deadline=None), plan)
    steps: list[LoadStep] = []
    with _processes(plan.processes) as send_all:
        for number, (rate, clients) in enumerate([*((rate, None) for rate in plan.rates),
                                                  *((None, count) for count in plan.clients)]):  # fmt: skip
            if number:
                time.sleep(_REST)
            measured, other = send_all(_shares(target, plan, number, rate, clients))
            beside = None if plan.beside is None else in_order(other)
            steps.append(LoadStep(rate, clients, in_order(measured), beside))
            if progress is not None:
                progress(_line(steps[-1], plan.workload))
    settings = plan.settings() | {"url": options.url, "kind": options.kind, "served_model": options.served_model}
    if target.deadline is not None:
        settings["deadline"] = target.deadline
    result = LoadResult(about=about.after(facts), settings=settings, seed=plan.seed, tag=tag, steps=steps)
    return replace(result, figures=evaluate(result))


def _check_finite(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InvalidInputError(name, value, "use a positive number")


def _facts(target: Target) -> dict[str, str]:
    """The facts that our server reports about its engine."""
    client = Client(target.options.url, timeout=10, api_key=target.api_key)
    try:
        facts = client.health().get("engine_facts") or {}
    finally:
        client.close()
    return {name: str(value) for name, value in facts.items()}


def _warm_up(target: Target, plan: LoadPlan) -> None:
    """Send warm-up requests one after the other, of all shapes in turn."""
    shapes = [shape for workload in (plan.workload, plan.beside) if workload is not None for shape in workload.shapes]
    writers = [Writer(target, shape, plan.seed) for shape in shapes]
    rng = random.Random(f"{plan.seed} warm-up")  # noqa: S311 - nothing secret

    async def exchange() -> list[str]:
        connections, reasons = Connections(target), []
        until = asyncio.get_running_loop().time
        for number in range(plan.warmup):
            written = writers[number % len(writers)].write(rng)
            _, failure = await connections.post(written, until=until() + plan.timeout)
            if failure is not None:
                reasons.append(f"{failure.kind}: {failure.message}")
        await connections.close()
        return reasons

    reasons = asyncio.run(exchange())
    if plan.warmup and len(reasons) == plan.warmup:
        raise BenchError(f"{target.options.endpoint} answered no warm-up request; the first: {reasons[0]}")


def _shares(target: Target, plan: LoadPlan, number: int, rate: float | None, clients: int | None) -> list[Share]:
    """The shares of a step, one for each process."""
    count = plan.processes

    def part(total: int, process: int) -> int:
        return len(range(process, total, count))

    return [
        Share(
            target=target,
            workload=plan.workload,
            seconds=plan.seconds,
            timeout=plan.timeout,
            seed=plan.seed,
            draws=f"{plan.seed} step {number} process {process}",
            starts=0.0,
            arrivals=None if rate is None else part(max(1, round(rate * plan.seconds)), process),
            clients=0 if clients is None else part(clients, process),
            beside=plan.beside,
            beside_clients=part(plan.beside_clients, process),
        )
        for process in range(count)
    ]


@contextmanager
def _processes(count: int) -> Iterator[Callable[[list[Share]], tuple[list[Sent], list[Sent]]]]:
    """A function that sends shares at the same time, each in its own process; a single share in this process."""
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pools = [stack.enter_context(ProcessPoolExecutor(1, context)) for _ in range(count if count > 1 else 0)]

        def send_all(shares: list[Share]) -> tuple[list[Sent], list[Sent]]:
            if pools:
                for ready in [pool.submit(prepare, share) for pool, share in zip(pools, shares, strict=True)]:
                    ready.result()
            else:
                prepare(shares[0])
            lead = 0.0 if shares[0].beside is None else LEAD
            starts = time.monotonic() + _START + lead
            shares = [replace(share, starts=starts) for share in shares]
            if pools:
                parts = [pool.submit(send, share) for pool, share in zip(pools, shares, strict=True)]
                found = [part.result() for part in parts]
            else:
                found = [send(shares[0])]
            return [each for part, _ in found for each in part], [each for _, part in found for each in part]

        yield send_all


def _line(step: LoadStep, workload: Workload) -> str:
    found = figures_of(step.requests, workload)
    asked = step.label(workload) + ("" if step.requests_per_second is None else " offered")
    times = "none answered" if found.p50 is None else f"P50 {found.p50:.1f} ms, P99 {found.p99:.1f} ms"
    return f"{asked}: {found.items_per_second:,.0f} items/s answered, {times}, {found.all_failed} requests failed"
