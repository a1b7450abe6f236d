"""Measures the client's wall time of POST /rerank over the number of documents in a request."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from ...checks import check_choice, check_positive
from ...errors import InvalidInputError
from .. import published
from ..errors import BenchError
from ..figures import latency_lines
from ..machine import Environment
from ..report import Report, Table, about_lines, model_name
from ..results import Result
from ..statistics import summary
from ..titles import DEFAULT_QUERY, generate_queries, sample
from .client import Client

#: fresh: a new query in every request, so that nothing computed for an earlier one can be reused; compare by this one.
#: same: the same query in all requests, so that a server may reuse what it has kept of an earlier one.
FRESH, SAME = "fresh", "same"
MODES = {"both": (FRESH, SAME), FRESH: (FRESH,), SAME: (SAME,)}

Progress = Callable[[str], None]

#: The fields of /health that a result contains.
_HEALTH = ("model", "engine", "instruction_format", "max_model_len", "version")


@dataclass(frozen=True)
class LatencyPlan:
    """The requests that a server gets.

    Attributes:
        counts: numbers of documents in a request.
        repeat: number of timed requests for each count and mode.
        warmup, warmup_documents: number of untimed requests that come first, and of the documents in each.
        seed: seed of the choice of titles and queries.
        queries: a key of MODES.
        query: the query of the mode "same".
        language: language of generated queries.
        timeout: maximum seconds for one answer.
    """

    counts: Sequence[int] = published.LATENCY_DOCUMENTS
    repeat: int = 5
    warmup: int = 3
    warmup_documents: int = 400
    seed: int = 99
    queries: str = "both"
    query: str = DEFAULT_QUERY
    language: str = "zh"
    timeout: float = 360.0

    def __post_init__(self) -> None:
        if not self.counts:
            raise InvalidInputError("counts", self.counts, "give at least one number of documents")
        for count in (*self.counts, self.repeat, self.warmup_documents):
            check_positive("counts, repeat and warmup_documents", count)
        if self.warmup < 0:
            raise InvalidInputError("warmup", self.warmup, "use 0 or more")
        check_choice("queries", self.queries, tuple(MODES))


@dataclass(frozen=True)
class RequestsRow:
    """The requests of one mode and count.

    Attributes:
        mode: FRESH or SAME.
        documents: number of documents in each request.
        milliseconds: duration of each request that was answered.
        failures: reason of failure of each other request.
    """

    mode: str
    documents: int
    milliseconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LatencyResult(Result):
    """Raw values of a server; the figures are those of `evaluate`.

    Attributes:
        tag: the user's name for it.
        health: the answer of /health at the end.
        rows: one row for each mode and count.
    """

    kind: ClassVar[str] = "latency"

    tag: str | None
    health: dict[str, Any]
    rows: list[RequestsRow]
    figures: Any = None

    @property
    def failed(self) -> int:
        """Number of timed requests that were not answered."""
        return sum(len(row.failures) for row in self.rows)

    def points(self, mode: str) -> dict[int, list[float]]:
        """Number of documents -> milliseconds, for the counts with at least one answer."""
        return {row.documents: row.milliseconds for row in self.rows if row.mode == mode and row.milliseconds}


def measure_latency(
    client: Client, plan: LatencyPlan, titles: list[str], *, progress: Progress | None = None
) -> list[RequestsRow]:
    """Send the requests of a plan to a server and measure them.

    Every request has its own titles, drawn from `titles` without replacement. If a request fails, its reason is stored
    and the next one is sent: one failure must neither end an hour's measurement nor be ignored silently.

    Raises:
        InvalidInputError: there are fewer titles than documents in a request.
        BenchError: no request was answered.
    """
    rng = random.Random(plan.seed)  # noqa: S311 - nothing secret
    modes = MODES[plan.queries]
    fresh = iter(generate_queries(plan.warmup + len(plan.counts) * plan.repeat, language=plan.language, seed=plan.seed))
    for count in (*plan.counts, plan.warmup_documents if plan.warmup else 1):
        sample(titles, count, random.Random(0))  # noqa: S311 - too few are reported before anything is measured
    failures: list[str] = []
    for _ in range(plan.warmup):
        _ask(client, next(fresh), sample(titles, plan.warmup_documents, rng), failures)
    rows: list[RequestsRow] = []
    for mode in modes:
        for count in plan.counts:
            row = RequestsRow(mode, count)
            for number in range(plan.repeat):
                query = next(fresh) if mode == FRESH else plan.query
                taken = _ask(client, query, sample(titles, count, rng), row.failures)
                if taken is not None:
                    row.milliseconds.append(taken)
                if progress is not None:
                    shown = row.failures[-1] if taken is None else f"{taken:.1f} ms"
                    progress(f"{mode} query, n={count}, {number + 1}/{plan.repeat}: {shown}")
            rows.append(row)
    if not any(row.milliseconds for row in rows):
        raise BenchError(f"no request was answered; the first failed with: {(failures + rows[0].failures)[0]}")
    return rows


def _ask(client: Client, query: str, documents: Sequence[str], failures: list[str]) -> float | None:
    try:
        return client.rerank_ms(query, documents)
    except BenchError as error:
        failures.append(str(error))
        return None


def latency_result(
    about: Environment,
    rows: Sequence[RequestsRow],
    plan: LatencyPlan,
    health: Mapping[str, Any],
    *,
    titles: str,
    tag: str | None,
    server: Mapping[str, Any],
) -> LatencyResult:
    """Make a result from what `measure_latency` returned.

    Args:
        about: `environment()` from before the measurement.
        rows, plan: rows and plan of the measurement.
        health: the server's /health at the end of the measurement.
        titles: where the titles come from.
        tag: the user's name for the result.
        server: settings of a server that we started, or the URL of another one.
    """
    result = LatencyResult(
        about=about.after({name: str(value) for name, value in (health.get("engine_facts") or {}).items()}),
        settings={**asdict(plan), "counts": list(plan.counts), "titles": titles, "server": dict(server)},
        seed=plan.seed,
        tag=tag,
        health={name: health.get(name) for name in _HEALTH},
        rows=list(rows),
    )
    return replace(result, figures=evaluate(result))


def evaluate(result: LatencyResult) -> list[dict[str, Any]]:
    """For each mode and count: `summary` of the milliseconds, number of answers ("n"), number of failures."""
    return [
        {
            "mode": row.mode,
            "documents": row.documents,
            "failed": len(row.failures),
            **(summary(row.milliseconds) if row.milliseconds else {"n": 0}),
        }
        for row in result.rows
    ]


def latency_report(result: LatencyResult) -> Report:
    """Everything that is shown, computed from the raw values."""
    health, settings = result.health, result.settings
    title = (
        f"Latency of POST /rerank: {model_name(health['model'])}, {health['engine']} / {health['instruction_format']}"
    )
    lines = [
        ", ".join(f"{name} {value}" for name, value in health.items()),
        f"titles: {settings['titles']}; seed {settings['seed']}",
        "{warmup} warm-up requests of {warmup_documents} documents; {repeat} timed requests a row".format(**settings),
        *about_lines(result.about),
    ]
    series = {f"{mode} query": points for mode in MODES[settings["queries"]] if (points := result.points(mode))}
    picture = latency_lines(series, title, [f"server: {result.about.device_line}", result.about.version_line])
    tables = [_requests(result), orientation(settings["counts"])]
    return Report(title, lines, tables, (picture, "Milliseconds over the number of documents"))


def _requests(result: LatencyResult) -> Table:
    rows = [
        [
            f"{each['mode']} query, n={each['documents']}",
            *((f"{each[name]:.1f}" for name in ("p50", "mean", "stdev", "min", "max")) if each["n"] else ["-"] * 5),
            f"{each['n']}/{each['n'] + each['failed']}",
        ]
        for each in evaluate(result)
    ]
    note = (
        "Client wall time in ms, JSON and HTTP included. Fresh query: a new one in every request, so that nothing "
        "computed before helps; compare systems by these rows. Same query: one query in all requests."
    )
    if result.failed:
        first = next(row.failures[0] for row in result.rows if row.failures)
        note += f" {result.failed} requests failed, the first: {first}"
    return Table("Client wall time", ["requests", "median", "mean", "stdev", "min", "max", "answered"], rows, note)


def orientation(counts: Sequence[int]) -> Table:
    """Times that others published, for the counts that they published."""
    places = [place for place, count in enumerate(published.LATENCY_DOCUMENTS) if count in set(counts)]
    places = places or list(range(len(published.LATENCY_DOCUMENTS)))
    header = ["backend / format", *(f"n={published.LATENCY_DOCUMENTS[place]}" for place in places)]
    rows = [[name, *(f"{values[place]:.1f}" for place in places)] for name, values in published.LATENCY.items()]
    return Table("Published elsewhere: Tesla T4, mean ms", header, rows, published.LATENCY_SOURCE)
