"""Client wall time of POST /rerank over the number of documents: the method of the T4 report."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..config import check_choice, check_positive
from ..errors import InvalidInputError
from . import published
from .errors import BenchError
from .figures import latency_lines
from .report import Report, Table
from .results import Result, device_line, new_result, version_line
from .server import Client
from .stats import summary
from .titles import DEFAULT_QUERY, generate_queries, sample

#: fresh: a new query in every request, so that nothing of an earlier one can be used again; the one to compare by.
#: same: one query in all requests, as in the T4 report.
FRESH, SAME = "fresh", "same"
MODES = {"both": (FRESH, SAME), FRESH: (FRESH,), SAME: (SAME,)}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LatencyPlan:
    """What is asked of a server.

    Attributes:
        counts: documents in a request.
        repeat: timed requests for each count and mode.
        warmup, warmup_documents: requests before, without a clock, and how large they are.
        seed: of the titles and queries.
        queries: a key of MODES.
        query: of the mode "same".
        language: of generated queries.
        timeout: seconds for one answer.
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


def measure_latency(
    client: Client, plan: LatencyPlan, titles: list[str], *, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Ask a server.

    Every request has titles of its own, drawn from `titles` without replacement. A request that fails is kept with its
    reason, and the next one is made: one bad request must not cost an hour's measurement, nor be left out silently.

    Returns:
        One row per mode and count: "mode", "documents", "milliseconds" (of those that were answered) and "failures".

    Raises:
        InvalidInputError: there are fewer titles than documents in a request.
        BenchError: not one request was answered.
    """
    rng = random.Random(plan.seed)  # noqa: S311 - nothing secret
    modes = MODES[plan.queries]
    fresh = iter(generate_queries(plan.warmup + len(plan.counts) * plan.repeat, language=plan.language, seed=plan.seed))
    for count in (*plan.counts, plan.warmup_documents if plan.warmup else 1):
        sample(titles, count, random.Random(0))  # noqa: S311 - too few are reported before anything is measured
    failures: list[str] = []
    for _ in range(plan.warmup):
        _ask(client, next(fresh), sample(titles, plan.warmup_documents, rng), failures)
    rows: list[dict[str, Any]] = []
    for mode in modes:
        for count in plan.counts:
            row: dict[str, Any] = {"mode": mode, "documents": count, "milliseconds": [], "failures": []}
            for number in range(plan.repeat):
                query = next(fresh) if mode == FRESH else plan.query
                taken = _ask(client, query, sample(titles, count, rng), row["failures"])
                if taken is not None:
                    row["milliseconds"].append(taken)
                if progress is not None:
                    shown = row["failures"][-1] if taken is None else f"{taken:.1f} ms"
                    progress(f"{mode} query, n={count}, {number + 1}/{plan.repeat}: {shown}")
            rows.append(row)
    if not any(row["milliseconds"] for row in rows):
        raise BenchError(f"not one request was answered: {(failures + rows[0]['failures'])[0]}")
    return rows


def _ask(client: Client, query: str, documents: Sequence[str], failures: list[str]) -> float | None:
    try:
        return client.rerank_ms(query, documents)
    except BenchError as error:
        failures.append(str(error))
        return None


def latency_result(
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    plan: LatencyPlan,
    health: Mapping[str, Any],
    *,
    titles: str,
    tag: str | None,
    server: Mapping[str, Any],
) -> Result:
    """A result file of what `measure_latency` returned.

    Args:
        about: `environment()` from before the measurement.
        rows, plan: of the measurement.
        health: the server's /health at its end.
        titles: where the titles come from.
        tag: the user's name for it.
        server: settings of a server of our own, or its URL.
    """
    settings = {**asdict(plan), "counts": list(plan.counts), "titles": titles, "server": dict(server)}
    facts = {name: str(value) for name, value in (health.get("engine_facts") or {}).items()}
    result = new_result("latency", about, settings=settings, seed=plan.seed, facts=facts)
    result["tag"] = tag
    result["health"] = {
        name: health.get(name) for name in ("model", "engine", "instruction_format", "max_model_len", "version")
    }
    result["rows"] = [dict(row) for row in rows]
    result["figures"] = evaluate(result)
    return result


def evaluate(result: Result) -> list[dict[str, Any]]:
    """Per mode and count: `summary` of the milliseconds, how many were answered, how many failed."""
    return [
        {
            "mode": row["mode"],
            "documents": row["documents"],
            "failed": len(row["failures"]),
            **(summary(row["milliseconds"]) if row["milliseconds"] else {"n": 0}),
        }
        for row in result["rows"]
    ]


def failed(result: Result) -> int:
    """How many timed requests were not answered."""
    return sum(len(row["failures"]) for row in result["rows"])


def latency_report(result: Result) -> Report:
    """Everything that is shown, computed from the raw values."""
    health, settings = result["health"], result["settings"]
    title = f"Latency of POST /rerank: {health['model']}, {health['engine']} / {health['instruction_format']}"
    lines = [
        ", ".join(f"{name} {value}" for name, value in health.items()),
        f"titles: {settings['titles']}; seed {settings['seed']}",
        "{warmup} warm-up requests of {warmup_documents} documents; {repeat} timed requests a row".format(**settings),
        f"server: {device_line(result)}",
        version_line(result),
        f"command: {result['about']['command']}",
    ]
    entries = evaluate(result)
    series = {
        f"{mode} query": {row["documents"]: row["milliseconds"] for row in result["rows"]
                          if row["mode"] == mode and row["milliseconds"]}
        for mode in MODES[settings["queries"]]
    }  # fmt: skip
    picture = latency_lines(series, title, [f"server: {device_line(result)}", version_line(result)])
    tables = [_requests(entries, result), orientation(settings["counts"])]
    return Report(title, lines, tables, (picture, "Milliseconds over the number of documents"))


def _requests(entries: Sequence[Mapping[str, Any]], result: Result) -> Table:
    rows = [
        [
            f"{each['mode']} query, n={each['documents']}",
            *((f"{each[name]:.1f}" for name in ("p50", "mean", "stdev", "min", "max")) if each["n"] else ["-"] * 5),
            f"{each['n']}/{each['n'] + each['failed']}",
        ]
        for each in entries
    ]
    note = (
        "Client wall time in ms, JSON and HTTP included. Fresh query: a new one in every request, so that nothing "
        "computed before helps; compare systems by these rows. Same query: one for all, as in the T4 report."
    )
    if count := failed(result):
        first = next(row["failures"][0] for row in result["rows"] if row["failures"])
        note += f" {count} requests failed, the first: {first}"
    return Table("Client wall time", ["requests", "median", "mean", "stdev", "min", "max", "answered"], rows, note)


def orientation(counts: Sequence[int]) -> Table:
    """The T4 report's table, for the counts that it has."""
    places = [place for place, count in enumerate(published.LATENCY_DOCUMENTS) if count in set(counts)]
    places = places or list(range(len(published.LATENCY_DOCUMENTS)))
    header = ["backend / format", *(f"n={published.LATENCY_DOCUMENTS[place]}" for place in places)]
    rows = [[name, *(f"{values[place]:.1f}" for place in places)] for name, values in published.LATENCY.items()]
    return Table("Published elsewhere: Tesla T4, mean ms", header, rows, published.LATENCY_SOURCE)
