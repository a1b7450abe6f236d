"""Engines x settings: each server started, awaited, measured, stopped; a failing cell costs its row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from ..errors import RankerError
from .figures import latency_lines
from .latency import FRESH, MODES, LatencyPlan, latency_result, measure_latency, orientation
from .presets import preset_named
from .published import LATENCY, LATENCY_DOCUMENTS
from .report import Report, Table
from .results import Result, device_line, environment, new_result, version_line
from .server import Client, RunningServer

Progress = Callable[[str], None]


def format_cells(engines: Sequence[str], templates: Sequence[str], max_lengths: Sequence[int]) -> list[dict[str, Any]]:
    """A cell for each combination of engine, instruction format and length limit."""
    return [
        {"engine": engine, "template": template, "max_length": max_length}
        for engine, template, max_length in product(engines, templates, max_lengths)
    ]


def preset_cells(engines: Sequence[str], presets: Sequence[str], *, dtype: str | None) -> list[dict[str, Any]]:
    """A cell for each combination of engine and preset.

    Args:
        engines: their names.
        presets: their names.
        dtype: goes before that of the presets; None for theirs.

    Raises:
        InvalidInputError: there is no such preset.
    """
    fixed = {} if dtype is None else {"dtype": dtype}
    return [
        {"engine": engine, "preset": preset, **preset_named(preset).settings(), **fixed}
        for engine, preset in product(engines, presets)
    ]


def measure_matrix(
    plan: LatencyPlan,
    titles: list[str],
    *,
    cells: Sequence[Mapping[str, Any]],
    server: Mapping[str, Any],
    titles_source: str,
    start_timeout: float = 900.0,
    progress: Progress | None = None,
    on_cell: Callable[[Result], None] | None = None,
) -> Result:
    """Measure every cell.

    Args:
        plan: what is asked of each server.
        titles: the same for all.
        cells: of `format_cells` or `preset_cells`: settings of `serve` that are a cell's own, and perhaps its "preset".
        server: settings of `serve` that all share: model, device ...
        titles_source: where the titles come from.
        start_timeout: seconds until a server has to be ready.
        progress: called with what happens.
        on_cell: called with the result so far after each cell, so that whatever ends the run leaves what was measured.

    Returns:
        A result with the cells, each with its latency result, or "error".
    """
    about = environment()
    measured: list[dict[str, Any]] = []
    result: Result = {}
    for own in cells:
        cell = dict(own)
        settings = {**server, **{name: value for name, value in cell.items() if name != "preset"}}
        label = cell_label(cell)
        say = _prefixed(progress, label)
        say("starting")
        try:
            with RunningServer(settings, start_timeout=start_timeout) as running:
                client = Client(running.url, timeout=plan.timeout)
                try:
                    rows = measure_latency(client, plan, titles, progress=say)
                    health = client.health()
                finally:
                    client.close()
            cell["result"] = latency_result(about, rows, plan, health, titles=titles_source, tag=label, server=settings)
        except RankerError as error:
            cell["error"] = str(error)
            say(f"failed: {error}")
        measured.append(cell)
        result = _result(about, plan, cells, measured, server)
        if on_cell is not None:
            on_cell(result)
    return result


def _result(
    about: dict[str, Any],
    plan: LatencyPlan,
    cells: Sequence[Mapping[str, Any]],
    measured: Sequence[Mapping[str, Any]],
    server: Mapping[str, Any],
) -> Result:
    """Of the cells that were measured so far; settings are those of all."""
    first = next((cell["result"] for cell in measured if "result" in cell), None)
    settings = {
        **{f"{name}s": _values(cells, name) for name in ("engine", "preset", "template", "max_length")},
        "server": dict(server),
        **({} if first is None else {name: value for name, value in first["settings"].items() if name != "server"}),
    }
    facts = {} if first is None else first["about"]["engine"]
    result = new_result("matrix", about, settings=settings, seed=plan.seed, facts=facts)
    result["cells"] = list(measured)
    return result


def _values(cells: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """What cells have under a name, each once."""
    return list(dict.fromkeys(cell[name] for cell in cells if name in cell))


def _prefixed(progress: Progress | None, label: str) -> Progress:
    def say(line: str) -> None:
        if progress is not None:
            progress(f"{label}: {line}")

    return say


def cell_label(cell: Mapping[str, Any]) -> str:
    """For tables and plots."""
    preset = f"{cell['preset']}: " if "preset" in cell else ""
    return f"{cell['engine']} / {preset}{cell['template']}, {cell['max_length']}"


def matrix_report(result: Result) -> Report:
    """One table of fresh queries, one of the same query, with the T4 figures beside; failures by name."""
    cells, settings = result["cells"], result["settings"]
    title = f"Engines and formats of {settings['server'].get('model', 'the default model')}"
    lines = [
        "every cell is a server of its own: started, awaited until /health shows engine and format, measured, stopped",
        f"device: {device_line(result)}",
        version_line(result),
        f"command: {result['about']['command']}",
    ]
    measured = [cell for cell in cells if "result" in cell]
    tables: list[Table] = []
    picture = None
    if measured:
        counts = measured[0]["result"]["settings"]["counts"]
        modes = MODES[measured[0]["result"]["settings"]["queries"]]
        tables = [_times(measured, counts, mode, with_t4=mode == modes[-1]) for mode in modes]
        mode = modes[0]
        series = {cell_label(cell): points for cell in measured if (points := _points(cell, mode))}
        footer = [f"device: {device_line(result)}", version_line(result)]
        picture = (latency_lines(series, f"{title} ({mode} query)", footer), "Milliseconds over documents")
        if not set(counts) & set(LATENCY_DOCUMENTS):
            tables.append(orientation(counts))
    broken = [[cell_label(cell), cell["error"].splitlines()[0]] for cell in cells if "error" in cell]
    if broken:
        tables.append(
            Table("Cells that failed", ["cell", "reason"], broken, "Whole reasons: in the JSON file.", figures=False)
        )
    return Report(title, lines, tables, picture)


def _points(cell: Mapping[str, Any], mode: str) -> dict[int, list[float]]:
    rows = cell["result"]["rows"]
    return {row["documents"]: row["milliseconds"] for row in rows if row["mode"] == mode and row["milliseconds"]}


def _times(cells: Sequence[Mapping[str, Any]], counts: Sequence[int], mode: str, *, with_t4: bool) -> Table:
    """Medians; the T4 report's rows have means, and say so."""
    rows = []
    for cell in cells:
        points = _points(cell, mode)
        failed = sum(len(row["failures"]) for row in cell["result"]["rows"] if row["mode"] == mode)
        label = cell_label(cell) + (f" ({failed} requests failed)" if failed else "")
        times = (f"{float(np.median(points[count])):.1f}" if count in points else "-" for count in counts)
        rows.append([label, *times])
    known = {count: place for place, count in enumerate(LATENCY_DOCUMENTS)}
    if with_t4 and set(known) & set(counts):
        for name, values in LATENCY.items():
            rows.append(
                [f"{name} (mean)", *(f"{values[known[count]]:.1f}" if count in known else "-" for count in counts)]
            )
    note = "Median client wall time in ms. " + (
        "A new query in every request: compare by this table." if mode == FRESH else "One query in all requests."
    )
    if with_t4:
        note += (
            " Rows named T4 are published figures (one Tesla T4, Qwen3-Reranker-0.6B float16, max_model_len 160): "
            "another device and model, for orientation only."
        )
    return Table(f"{mode.capitalize()} query", ["engine / format, max_length", *(f"n={n}" for n in counts)], rows, note)
