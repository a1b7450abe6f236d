"""The steps of a load test: raw values of every request, and the figures that are computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from ..results import Result
from .workloads import Workload


@dataclass(frozen=True)
class Requests:
    """Requests in the order of their arrivals; each list has one value per request.

    Attributes:
        scheduled: seconds from the start to the scheduled arrival; in a closed loop, to the sending.
        lag_ms: milliseconds from the scheduled arrival to the sending, by which the client was late.
        milliseconds: milliseconds from the scheduled arrival to the last byte of the answer, or to the failure.
        shapes: position of the request's shape in the workload.
        failures: kind of failure -> positions of the requests that failed in this way.
        messages: kind of failure -> message of the first of these requests.
    """

    scheduled: list[float] = field(default_factory=list)
    lag_ms: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    shapes: list[int] = field(default_factory=list)
    failures: dict[str, list[int]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadStep:
    """One rate, or one number of clients.

    Attributes:
        requests_per_second: offered rate of the open loop; None in a closed loop.
        clients: number of clients of the closed loop; None in the open loop.
        requests: the measured requests.
        beside: requests of the second workload, which was sent at the same time.
    """

    requests_per_second: float | None
    clients: int | None
    requests: Requests
    beside: Requests | None = None

    def label(self, workload: Workload) -> str:
        """The offered load, in words."""
        if self.requests_per_second is None:
            return "1 client" if self.clients == 1 else f"{self.clients} clients"
        return f"{self.requests_per_second * workload.items:,.0f} items/s"


@dataclass(frozen=True)
class Figures:
    """The figures computed from the requests of a step.

    Attributes:
        requests: number of requests sent.
        failed: kind of failure -> number of requests that failed in this way.
        items_per_second: documents of answered requests, divided by the time from the start to the last answer.
        p50, p90, p99, highest: milliseconds of the answered requests, from their scheduled arrivals; None if there are
            none.
        p99_of_all: P99 of all requests, where failed ones count as slower than any other; None if P99 is one of these.
        lag_p99: P99 of the milliseconds from the scheduled arrival to the sending.
    """

    requests: int
    failed: dict[str, int]
    items_per_second: float
    p50: float | None
    p90: float | None
    p99: float | None
    highest: float | None
    p99_of_all: float | None
    lag_p99: float

    @property
    def all_failed(self) -> int:
        """Number of requests without a usable answer."""
        return sum(self.failed.values())


@dataclass(frozen=True, kw_only=True)
class LoadResult(Result):
    """Raw values of all steps.

    Attributes:
        tag: the user's name for the result.
        steps: the steps, in the order in which they were run.
        figures: the figures that `evaluate` computes.
    """

    kind: ClassVar[str] = "load"

    tag: str | None
    steps: list[LoadStep]
    figures: Any = None

    @property
    def workload(self) -> Workload:
        """The workload of the measured requests."""
        return Workload.named(self.settings["workload"])

    @property
    def beside(self) -> Workload | None:
        """The second workload, which was sent at the same time; None for none."""
        name = self.settings["beside"]
        return None if name is None else Workload.named(name)

    @property
    def failed(self) -> int:
        """Number of measured requests without a usable answer."""
        return sum(each.all_failed for each in step_figures(self))


def figures_of(requests: Requests, workload: Workload, shape: int | None = None) -> Figures:
    """The figures of requests.

    Args:
        requests: the raw values.
        workload: the workload from which they were drawn.
        shape: position of the only shape to count; None counts all.
    """
    shapes = np.asarray(requests.shapes, dtype=np.intp)
    chosen = np.ones(len(shapes), dtype=bool) if shape is None else shapes == shape
    answered = chosen.copy()
    failed = {}
    for kind, places in requests.failures.items():
        answered[places] = False
        if count := int(chosen[places].sum()):
            failed[kind] = count
    latency = np.asarray(requests.milliseconds)
    scheduled = np.asarray(requests.scheduled)
    p50 = p90 = p99 = highest = p99_of_all = None
    rate = 0.0
    if answered.any():
        p50, p90, p99, highest = map(float, np.percentile(latency[answered], (50, 90, 99, 100)))
        # Take a measured value: one cannot interpolate between a number and infinity.
        ranked = float(np.percentile(np.where(answered, latency, np.inf)[chosen], 99, method="inverted_cdf"))
        p99_of_all = ranked if np.isfinite(ranked) else None
        items = np.asarray([each.items for each in workload.shapes])[shapes[answered]].sum()
        rate = float(items / (scheduled + latency / 1000)[answered].max())
    lag = float(np.percentile(np.asarray(requests.lag_ms)[chosen], 99)) if chosen.any() else 0.0
    return Figures(int(chosen.sum()), failed, rate, p50, p90, p99, highest, p99_of_all, lag)


def step_figures(result: LoadResult) -> list[Figures]:
    """Figures of the measured requests of each step."""
    return [figures_of(step.requests, result.workload) for step in result.steps]


def beside_figures(result: LoadResult) -> list[Figures]:
    """Figures of the second workload in each step; empty if there was none."""
    beside = result.beside
    if beside is None:
        return []
    return [figures_of(step.beside, beside) for step in result.steps if step.beside is not None]


@dataclass(frozen=True)
class RateWithin:
    """The highest offered rate whose P99 is within a limit.

    Attributes:
        items_per_second: documents per second; 0 if even the lowest rate is beyond the limit.
        how: how the rate was found, in words.
    """

    items_per_second: float
    how: str


def rate_within(points: Sequence[tuple[float, float | None]], limit_ms: float) -> RateWithin | None:
    """Documents per second at P99 <= `limit_ms`, by linear interpolation between two measured rates.

    Failed requests count as slower than any other. If so many failed that P99 is one of them, one cannot interpolate,
    and the last measured rate within the limit is returned.

    Args:
        points: (offered documents per second, P99 of all requests or None if that is a failed one).
        limit_ms: milliseconds.

    Returns:
        The rate; None if there are no points.
    """
    ordered = sorted(points, key=lambda point: point[0])
    if not ordered:
        return None
    within = [p99 is not None and p99 <= limit_ms for _, p99 in ordered]
    if not within[0]:
        return RateWithin(0.0, f"P99 is beyond the limit even at the lowest rate, {ordered[0][0]:,.0f}")
    for place, ((rate, p99), (next_rate, next_p99)) in enumerate(pairwise(ordered)):
        if within[place + 1]:
            continue
        if next_p99 is None or p99 is None:
            return RateWithin(rate, f"measured; at {next_rate:,.0f} more than 1 % of the requests failed")
        share = (limit_ms - p99) / (next_p99 - p99)
        how = f"interpolated between P99 {p99:,.0f} ms at {rate:,.0f} and {next_p99:,.0f} ms at {next_rate:,.0f}"
        return RateWithin(rate + share * (next_rate - rate), how)
    return RateWithin(ordered[-1][0], "at least: no higher rate was offered")


def result_rate_within(result: LoadResult) -> RateWithin | None:
    """`rate_within` of an open loop; None for a closed one."""
    items = result.workload.items
    points = [
        (step.requests_per_second * items, figures.p99_of_all)
        for step, figures in zip(result.steps, step_figures(result), strict=True)
        if step.requests_per_second is not None
    ]
    return rate_within(points, result.settings["p99_limit_ms"])


def evaluate(result: LoadResult) -> dict[str, Any]:
    """Figures of each step, and the rate within the limit."""
    within = result_rate_within(result)
    return {
        "steps": [asdict(each) for each in step_figures(result)],
        "within_limit": None if within is None else asdict(within),
    }
