"""Two result files side by side: ratios of figures, and everything that makes the comparison unfair."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from ..errors import InvalidInputError
from . import latency, matrix, quality, throughput, tune
from .report import Report, Table
from .results import Result, device_line, version_line

#: Parts of "about" that may move a figure. The commit is among them: it is often what is compared.
_COMPARED = ("version", "commit", "python", "system", "processor", "cores", "gpus")


def compare_results(a: Result, b: Result, names: tuple[str, str]) -> Report:
    """B against A.

    Args:
        a, b: results of one kind.
        names: what to call them.

    Raises:
        InvalidInputError: they are of different kinds, or have no row in common.
    """
    if a["kind"] != b["kind"]:
        raise InvalidInputError("B", names[1], f"is a {b['kind']} result, and {names[0]} a {a['kind']} one")
    rows = _rows(a, b)
    if not rows:
        raise InvalidInputError("B", names[1], f"has no row in common with {names[0]}")
    differing = list(_differences(a, b))
    lines = [
        f"A: {names[0]}, {device_line(a)}; {version_line(a)}",
        f"B: {names[1]}, {device_line(b)}; {version_line(b)}",
    ]
    tables = [Table("B / A", ["figure", "A", "B", "B / A"], rows, _NOTES[a["kind"]])]
    if differing:
        note = "WARNING: besides what you meant to compare, these differ, and each of them may be the reason."
        tables.insert(0, Table("What differs", ["what", "A", "B"], differing, note, figures=False))
    return Report(f"{a['kind'].capitalize()}: B against A", lines, tables)


_NOTES = {
    "quality": "Higher is better. For significance compare both in one run: bench quality --against.",
    "throughput": "Pairs/s: higher is better. Milliseconds and MiB: lower is better.",
    "latency": "Milliseconds, lower is better.",
    "matrix": "Milliseconds, lower is better.",
    "tune": "Lower is better.",
}


def _differences(a: Result, b: Result) -> Iterator[list[str]]:
    for name in _COMPARED:
        yield from _differing(name, a["about"].get(name), b["about"].get(name))
    for part in ("engine", "libraries"):
        first, second = a["about"][part], b["about"][part]
        for name in sorted(set(first) | set(second)):
            yield from _differing(f"{part}: {name}", first.get(name), second.get(name))
    for name in sorted(set(a["settings"]) | set(b["settings"])):
        yield from _differing(f"setting: {name}", a["settings"].get(name), b["settings"].get(name))
    yield from _differing("seed", a["seed"], b["seed"])
    for name in ("name", "first_stage", "relevant_from", "qrels", "candidates", "pairs"):
        first, second = (result.get("collection", {}).get(name) for result in (a, b))
        if isinstance(first, (dict, list)) or isinstance(second, (dict, list)):
            if first != second:
                yield [f"data: {name}", f"{len(first or ())} entries", f"{len(second or ())} others"]
        else:
            yield from _differing(f"data: {name}", first, second)
    busy = [result["about"].get("load_before") for result in (a, b)]
    if any((load or 0) > (result["about"].get("cores") or 1) for load, result in zip(busy, (a, b), strict=True)):
        yield ["load before (more than its cores)", *map(str, busy)]


def _differing(name: str, first: Any, second: Any) -> Iterator[list[str]]:
    if first != second:
        yield [name, *("-" if value is None else str(value)[:60] for value in (first, second))]


def _rows(a: Result, b: Result) -> list[list[str]]:
    first, second = _figures(a), _figures(b)
    return [
        [name, f"{first[name]:,.4g}", f"{second[name]:,.4g}", _ratio(first[name], second[name])]
        for name in first
        if name in second
    ]


def _ratio(first: float, second: float) -> str:
    return f"{second / first:.3f}" if first else "-"


def _figures(result: Result) -> dict[str, float]:
    """Name -> figure, computed from raw values."""
    match result["kind"]:
        case "quality":
            evaluated = quality.evaluate(result)
            # Labels of systems say how they differ from each other; their place says which is which.
            return {
                f"{'first stage' if not place else f'system {place}'}, {name}": value
                for place, measures in enumerate(evaluated["means"].values())
                for name, value in measures.items()
            }
        case "throughput":
            return {
                f"batch {each['batch_size']}, {name}": value
                for each in throughput.evaluate(result)
                for name, value in (
                    ("pairs/s", each["pairs_per_second"]),
                    ("p50 ms", each["call_ms"]["p50"]),
                    ("p95 ms", each["call_ms"]["p95"]),
                    ("host MiB", each["host_mib"]),
                    ("device MiB", each["device_mib"]),
                    ("nDCG@10", each["measures"]["nDCG@10"]),
                )
                if value is not None
            }
        case "latency":
            return _latency_figures(result, "")
        case "matrix":
            return {
                name: value
                for cell in result["cells"]
                if "result" in cell
                for name, value in _latency_figures(cell["result"], f"{matrix.cell_label(cell)}: ").items()
            }
        case _:
            trial = tune.chosen_trial(result)
            return {"chosen: median ms": 1000 * statistics.median(trial["seconds"])} | {
                f"chosen: {name} MiB": trial["memory"][f"{name}_mib"]
                for name in ("host", "device")
                if trial["memory"][f"{name}_mib"] is not None
            }


def _latency_figures(result: Result, prefix: str) -> dict[str, float]:
    """Fresh queries first: those are to be compared."""
    return {
        f"{prefix}{each['mode']} query, n={each['documents']}, {label} ms": each[name]
        for each in latency.evaluate(result)
        if each["n"]
        for label, name in (("median", "p50"), ("max", "max"))
    }
