"""Engines x settings: each server is started, awaited, measured and stopped. If a cell fails, only its row is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, ClassVar

import numpy as np

from ...errors import RankerError
from ..figures import latency_lines
from ..machine import Environment, environment
from ..presets import preset_named
from ..published import LATENCY, LATENCY_DOCUMENTS
from ..report import Report, Table, about_lines, model_name
from ..results import Result, plain
from .client import Client
from .requests import FRESH, MODES, LatencyPlan, LatencyResult, latency_result, measure_latency, orientation
from .server_process import RunningServer

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One server: its settings, and what was measured or why nothing was measured.

    Attributes:
        engine, template, max_length, token_budget, dtype: settings of `serve`; None for its default.
        preset: the preset that the settings come from; None for none.
        result: what was measured; None if nothing was.
        error: why nothing was measured; None if something was.
    """

    engine: str
    template: str
    max_length: int
    token_budget: int | None = None
    dtype: str | None = None
    preset: str | None = None
    result: LatencyResult | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        """Label for tables and plots."""
        preset = "" if self.preset is None else f"{self.preset}: "
        return f"{self.engine} / {preset}{self.template}, {self.max_length}"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of `serve`."""
        names = ("engine", "template", "max_length", "token_budget", "dtype")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def as_json(self) -> dict[str, Any]:
        """The fields that are not None."""
        every = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: plain(value) for name, value in every if value is not None}


@dataclass(frozen=True, kw_only=True)
class MatrixResult(Result):
    """The cells that were measured so far."""

    kind: ClassVar[str] = "matrix"

    cells: list[Cell]


def format_cells(engines: Sequence[str], templates: Sequence[str], max_lengths: Sequence[int]) -> list[Cell]:
    """A cell for each combination of engine, template and length limit."""
    return [Cell(*settings) for settings in product(engines, templates, max_lengths)]


def preset_cells(engines: Sequence[str], presets: Sequence[str], *, dtype: str | None) -> list[Cell]:
    """A cell for each combination of engine and preset.

    Args:
        engines: names of engines.
        presets: names of presets.
        dtype: takes precedence over the dtype of the presets; None for theirs.

    Raises:
        InvalidInputError: there is no such preset.
    """
    fixed = {} if dtype is None else {"dtype": dtype}
    return [
        Cell(engine, preset=preset, **{**preset_named(preset).settings(), **fixed})
        for engine, preset in product(engines, presets)
    ]


def measure_matrix(
    plan: LatencyPlan,
    titles: list[str],
    *,
    cells: Sequence[Cell],
    server: Mapping[str, Any],
    titles_source: str,
    start_timeout: float = 900.0,
    progress: Progress | None = None,
    on_cell: Callable[[MatrixResult], None] | None = None,
) -> MatrixResult:
    """Measure every cell.

    Args:
        plan: the requests that each server gets.
        titles: the documents, the same for all servers.
        cells: from `format_cells` or `preset_cells`.
        server: settings of `serve` that all cells share: model, device ...
        titles_source: where the titles come from.
        start_timeout: seconds until a server has to be ready.
        progress: called with a line on each step.
        on_cell: called with the result so far after each cell, so that nothing is lost if the run ends early.

    Returns:
        The cells, each with its latency result or an error.
    """
    about = environment()
    measured: list[Cell] = []
    result = _result(about, plan, cells, measured, server)
    for cell in cells:
        settings = {**server, **cell.settings}
        say = _prefixed(progress, cell.label)
        before = environment()
        if before.warning is not None:
            say(before.warning)
        say("starting")
        try:
            with RunningServer(settings, start_timeout=start_timeout) as running:
                client = Client(running.url, timeout=plan.timeout)
                try:
                    rows = measure_latency(client, plan, titles, progress=say)
                    health = client.health()
                finally:
                    client.close()
            found = latency_result(before, rows, plan, health, titles=titles_source, tag=cell.label, server=settings)
            measured.append(replace(cell, result=found))
        except RankerError as error:
            measured.append(replace(cell, error=str(error)))
            say(f"failed: {error}")
        result = _result(about, plan, cells, measured, server)
        if on_cell is not None:
            on_cell(result)
    return result


def _result(
    about: Environment, plan: LatencyPlan, cells: Sequence[Cell], measured: Sequence[Cell], server: Mapping[str, Any]
) -> MatrixResult:
    """A result of the cells that were measured so far; its settings are those of the whole matrix."""
    first = next((cell.result for cell in measured if cell.result is not None), None)
    settings = {
        **{f"{name}s": _values(cells, name) for name in ("engine", "preset", "template", "max_length")},
        "server": dict(server),
        **({} if first is None else {name: value for name, value in first.settings.items() if name != "server"}),
    }
    about = about if first is None else replace(about, engine=first.about.engine)
    return MatrixResult(about=about, settings=settings, seed=plan.seed, cells=list(measured))


def _values(cells: Sequence[Cell], name: str) -> list[Any]:
    """The different values that cells have under a name."""
    return [value for value in dict.fromkeys(getattr(cell, name) for cell in cells) if value is not None]


def _prefixed(progress: Progress | None, label: str) -> Progress:
    def say(line: str) -> None:
        if progress is not None:
            progress(f"{label}: {line}")

    return say


def matrix_report(result: MatrixResult) -> Report:
    """A table of fresh queries and one of the same query, with published times; failures by name."""
    title = f"Engines and formats of {model_name(result.settings['server'].get('model', 'the default model'))}"
    lines = [
        "every cell is a server of its own: started, awaited until /health shows engine and format, measured, stopped",
        *about_lines(result.about),
        *(f"{cell.label}: {cell.result.about.warning}" for cell in result.cells
          if cell.result is not None and cell.result.about.warning is not None),
    ]  # fmt: skip
    measured = [(cell, cell.result) for cell in result.cells if cell.result is not None]
    tables: list[Table] = []
    picture = None
    if measured:
        settings = measured[0][1].settings
        counts, modes = settings["counts"], MODES[settings["queries"]]
        tables = [_times(measured, counts, mode, with_published=mode == modes[-1]) for mode in modes]
        series = {cell.label: points for cell, found in measured if (points := found.points(modes[0]))}
        footer = [f"device: {result.about.device_line}", result.about.version_line]
        picture = (latency_lines(series, f"{title} ({modes[0]} query)", footer), "Milliseconds over documents")
        if not set(counts) & set(LATENCY_DOCUMENTS):
            tables.append(orientation(counts))
    broken = [[cell.label, cell.error.splitlines()[0]] for cell in result.cells if cell.error is not None]
    if broken:
        tables.append(
            Table("Cells that failed", ["cell", "reason"], broken, "Whole reasons: in the JSON file.", figures=False)
        )
    return Report(title, lines, tables, picture)


def _times(
    cells: Sequence[tuple[Cell, LatencyResult]], counts: Sequence[int], mode: str, *, with_published: bool
) -> Table:
    """A table of medians; the published rows are means, and are labelled so."""
    rows = []
    for cell, found in cells:
        points = found.points(mode)
        failed = sum(len(row.failures) for row in found.rows if row.mode == mode)
        label = cell.label + (f" ({failed} requests failed)" if failed else "")
        times = (f"{float(np.median(points[count])):.1f}" if count in points else "-" for count in counts)
        rows.append([label, *times])
    known = {count: place for place, count in enumerate(LATENCY_DOCUMENTS)}
    with_published = with_published and bool(set(known) & set(counts))
    if with_published:
        for name, values in LATENCY.items():
            rows.append(
                [f"{name} (mean)", *(f"{values[known[count]]:.1f}" if count in known else "-" for count in counts)]
            )
    note = "Median client wall time in ms. " + (
        "A new query in every request: compare by this table." if mode == FRESH else "One query in all requests."
    )
    if with_published:
        note += (
            " Rows named Tesla T4 are published figures (one GPU, Qwen3-Reranker-0.6B float16, max_model_len 160): "
            "another device and model, for orientation only."
        )
    return Table(f"{mode.capitalize()} query", ["engine / format, max_length", *(f"n={n}" for n in counts)], rows, note)
