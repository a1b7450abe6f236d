"""The report of a load test: tables, the highest rate within the limit, and a picture."""

from __future__ import annotations

from collections.abc import Iterator

from .. import published
from ..figures import LoadPoint, load_lines
from ..report import Report, Table, about_lines
from .results import Figures, LoadResult, beside_figures, figures_of, result_rate_within, step_figures

#: The client may have been the limit if its lateness (P99) is more than this many milliseconds and this share of P50.
_LATE_MS = 10.0
_LATE_SHARE = 0.1

_OPEN = (
    "Latency counts from the scheduled arrival and not from the sending, so that a service that stalls does not "
    "hide the requests that would have waited (no coordinated omission). Percentiles are those of answered requests."
)
_CLOSED = (
    "Closed loop: each client sends a request when it has the answer to the previous one, so that a slow service gets "
    "fewer requests. Latency counts from the sending. For latency at a given load use rates instead of clients."
)
_HEADER = ["requests", "items/s answered", "P50 ms", "P90 ms", "P99 ms", "max ms", "failed", "sent late, P99 ms"]


def load_report(result: LoadResult) -> Report:
    """Everything that is shown, computed from the raw values."""
    settings, workload = result.settings, result.workload
    is_open = bool(settings["rates"])
    title = f"Load of {settings['kind']} at {settings['url']}: {workload.name}"
    lines = list(about_lines(result.about))
    lines[:0] = [warning for warning in (_late(result),) if warning is not None]
    lines.append(
        "{seconds:g} s a step, {timeout:g} s until a request is given up, {warmup} warm-up requests, client processes: "
        "{processes}".format(**settings)
    )
    if "deadline" in settings:
        lines.append(f"Deadline of each request, sent as X-Request-Timeout: {settings['deadline']:g} s")
    within = result_rate_within(result)
    limit = f"{settings['p99_limit_ms']:g} ms"
    if within is not None:
        lines.append(f"items/s at P99 <= {limit}: {within.items_per_second:,.0f} ({within.how})")
    tables = [Table("Open loop" if is_open else "Closed loop", ["offered" if is_open else "clients", *_HEADER],
                    list(_rows(result)), _OPEN if is_open else _CLOSED)]  # fmt: skip
    if failures := list(_failures(result)):
        tables.append(Table("Failures", ["step", "kind", "requests", "the first one"], failures, figures=False))
    if len(workload.shapes) > 1:
        note = f"Weights: {', '.join(f'{weight:g}' for weight in workload.weights)}."
        tables.append(Table("By kind of request", ["step, kind", *_HEADER], list(_shape_rows(result)), note))
    if result.beside is not None:
        clients = settings["beside_clients"]
        note = f"Sent at the same time by {clients} clients, one request after the other each; not in the tables above."
        tables.append(Table(f"Beside: {result.beside.name}", ["step", *_HEADER], list(_beside_rows(result)), note))
    if workload.name == published.ITEMS_WORKLOAD:
        rows = [[name, *values] for name, values in published.ITEMS_PER_SECOND.items()]
        tables.append(Table("Published elsewhere", ["system", "items/s", "P99 ms"], rows, published.ITEMS_SOURCE))
    points = [
        LoadPoint(step.label(result.workload), found.items_per_second if step.requests_per_second is None
                  else step.requests_per_second * workload.items, found.p50, found.p99,
                  found.all_failed / max(1, found.requests))
        for step, found in zip(result.steps, step_figures(result), strict=True)
    ]  # fmt: skip
    picture = load_lines(
        points,
        "items per second, offered" if is_open else "items per second, answered",
        settings["p99_limit_ms"] if is_open else None,
        title,
        [f"server: {result.about.device_line}", result.about.version_line],
    )
    return Report(title, lines, tables, (picture, "Milliseconds over items per second"))


def _rows(result: LoadResult) -> Iterator[list[str]]:
    for step, found in zip(result.steps, step_figures(result), strict=True):
        yield [step.label(result.workload), *_cells(found)]


def _shape_rows(result: LoadResult) -> Iterator[list[str]]:
    for step in result.steps:
        for place, shape in enumerate(result.workload.shapes):
            yield [
                f"{step.label(result.workload)}, {shape.name}",
                *_cells(figures_of(step.requests, result.workload, place)),
            ]


def _beside_rows(result: LoadResult) -> Iterator[list[str]]:
    for step, found in zip(result.steps, beside_figures(result), strict=True):
        yield [step.label(result.workload), *_cells(found)]


def _cells(found: Figures) -> list[str]:
    times = ("-" if value is None else f"{value:,.1f}" for value in (found.p50, found.p90, found.p99, found.highest))
    share = f" ({found.all_failed / found.requests:.0%})" if found.all_failed else ""
    late = f"{found.lag_p99:,.1f}"
    return [f"{found.requests}", f"{found.items_per_second:,.0f}", *times, f"{found.all_failed}{share}", late]


def _failures(result: LoadResult) -> Iterator[list[str]]:
    for step in result.steps:
        for name, requests in (("", step.requests), ("beside, ", step.beside)):
            if requests is not None:
                for kind, places in requests.failures.items():
                    yield [f"{name}{step.label(result.workload)}", kind, str(len(places)), requests.messages[kind]]


def _late(result: LoadResult) -> str | None:
    """A warning if the client sent requests late; None otherwise."""
    late = [
        f"{step.label(result.workload)}: {found.lag_p99:,.0f} ms"
        for step, found in zip(result.steps, step_figures(result), strict=True)
        if found.lag_p99 > max(_LATE_MS, _LATE_SHARE * (found.p50 or 0.0))
    ]
    if not late:
        return None
    return (
        f"WARNING: the client sent late ({'; '.join(late)}, P99), and that is part of the latencies: "
        "use more --processes, or another machine for the client"
    )
