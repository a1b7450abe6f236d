"""Compares two result files: ratios of their figures, and everything that makes the comparison unfair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import InvalidInputError
from .latency.matrix import MatrixResult
from .latency.requests import LatencyResult
from .latency.requests import evaluate as evaluate_latency
from .load.results import LoadResult, result_rate_within, step_figures
from .quality.reranking import QualityResult
from .quality.reranking import evaluate as evaluate_quality
from .report import Report, Table
from .results import Result
from .threshold.measure import ThresholdResult
from .threshold.measure import evaluate as evaluate_threshold
from .throughput.batch_sizes import ThroughputResult
from .throughput.batch_sizes import evaluate as evaluate_throughput
from .tune.search import TuneResult, chosen_trial

#: Parts of "about" that may change a figure. The commit is one of them: often two commits are compared.
_COMPARED = ("version", "commit", "python", "system", "processor", "cores", "gpus")


def compare_results(a: Result, b: Result, names: tuple[str, str]) -> Report:
    """A report of B against A.

    Args:
        a, b: results of the same kind.
        names: their names in messages.

    Raises:
        InvalidInputError: the results are of different kinds, or have no row in common.
    """
    if a.kind != b.kind:
        raise InvalidInputError("B", names[1], f"is a {b.kind} result, and {names[0]} a {a.kind} one")
    rows = _rows(a, b)
    if not rows:
        raise InvalidInputError("B", names[1], f"has no row in common with {names[0]}")
    differing = list(_differences(a, b))
    lines = [
        *(
            f"{letter}: {name}, {result.about.device_line}; {result.about.version_line}"
            for letter, name, result in (("A", names[0], a), ("B", names[1], b))
        ),
        *(
            f"{letter}: {result.about.warning}"
            for letter, result in (("A", a), ("B", b))
            if result.about.warning is not None
        ),
    ]
    tables = [Table("B / A", ["figure", "A", "B", "B / A"], rows, _NOTES[a.kind])]
    if differing:
        note = "WARNING: besides what you meant to compare, these differ, and each of them may be the reason."
        tables.insert(0, Table("What differs", ["what", "A", "B"], differing, note, figures=False))
    return Report(f"{a.kind.capitalize()}: B against A", lines, tables)


_NOTES = {
    "quality": "Higher is better. For significance compare both in one run: bench quality --against.",
    "threshold": "Precision, recall, F1 and area: higher is better. ECE: lower is better.",
    "throughput": "Pairs/s: higher is better. Milliseconds and MiB: lower is better.",
    "latency": "Milliseconds, lower is better.",
    "matrix": "Milliseconds, lower is better.",
    "load": "Items/s: higher is better. Milliseconds and failed requests: lower is better.",
    "tune": "Lower is better.",
}


def _differences(a: Result, b: Result) -> Iterator[list[str]]:
    for name in _COMPARED:
        yield from _differing(name, getattr(a.about, name), getattr(b.about, name))
    for part in ("engine", "libraries"):
        first, second = getattr(a.about, part), getattr(b.about, part)
        for name in sorted(set(first) | set(second)):
            yield from _differing(f"{part}: {name}", first.get(name), second.get(name))
    for name in sorted(set(a.settings) | set(b.settings)):
        yield from _differing(f"setting: {name}", a.settings.get(name), b.settings.get(name))
    yield from _differing("seed", a.seed, b.seed)
    for name in ("name", "first_stage", "relevant_from", "qrels", "candidates", "pairs"):
        first, second = (getattr(getattr(result, "collection", None), name, None) for result in (a, b))
        if isinstance(first, (dict, list)) or isinstance(second, (dict, list)):
            if first != second:
                yield [f"data: {name}", f"{len(first or ())} entries", f"{len(second or ())} others"]
        else:
            yield from _differing(f"data: {name}", first, second)


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


def _figures(result: Result) -> dict[str, float]:  # noqa: PLR0911 - one for each kind of result
    """Name -> figure, computed from the raw values."""
    match result:
        case QualityResult():
            # Systems are identified by their position: labels only say how the systems of one result differ.
            return {
                f"{'first stage' if not place else f'system {place}'}, {name}": value
                for place, measures in enumerate(evaluate_quality(result).means.values())
                for name, value in measures.items()
            }
        case ThresholdResult():
            return _threshold_figures(result)
        case ThroughputResult():
            return {
                f"batch {each.batch_size}, {name}": value
                for each in evaluate_throughput(result)
                for name, value in (
                    ("pairs/s", each.pairs_per_second),
                    ("p50 ms", each.call_ms["p50"]),
                    ("p95 ms", each.call_ms["p95"]),
                    ("host MiB", each.host_mib),
                    ("device MiB", each.device_mib),
                    ("nDCG@10", each.measures["nDCG@10"]),
                )
                if value is not None
            }
        case LatencyResult():
            return _latency_figures(result, "")
        case MatrixResult():
            return {
                name: value
                for cell in result.cells
                if cell.result is not None
                for name, value in _latency_figures(cell.result, f"{cell.label}: ").items()
            }
        case LoadResult():
            return _load_figures(result)
        case TuneResult():
            trial = chosen_trial(result)
            memory = (("host", trial.memory.host_mib), ("device", trial.memory.device_mib))
            return {"chosen: median ms": 1000 * trial.median} | {
                f"chosen: {name} MiB": value for name, value in memory if value is not None
            }
        case _:
            raise TypeError(f"unknown kind of result: {result.kind}")


def _latency_figures(result: LatencyResult, prefix: str) -> dict[str, float]:
    """Figures of latency; fresh queries first, because these are the ones to compare."""
    return {
        f"{prefix}{each['mode']} query, n={each['documents']}, {label} ms": each[name]
        for each in evaluate_latency(result)
        if each["n"]
        for label, name in (("median", "p50"), ("max", "max"))
    }


def _threshold_figures(result: ThresholdResult) -> dict[str, float]:
    """Figures of each target that a threshold reaches, and of how reliable the scores are."""
    found = evaluate_threshold(result)
    figures = {"area under the ROC curve": found.area_under_roc, "ECE of P(yes)": found.raw.ece}
    if found.cross_fitted is not None:
        figures["ECE, calibrated, other queries"] = found.cross_fitted.ece
    for each in found.choices:
        wish = "highest F1" if each.wanted is None else f"{each.kind} of {each.wanted:g}"
        values = {"threshold": each.threshold, "precision": each.precision, "recall": each.recall, "F1": each.f1}
        figures |= {f"{wish}: {name}": value for name, value in values.items() if value is not None}
    return figures


def _load_figures(result: LoadResult) -> dict[str, float]:
    """Figures of each step, and the highest rate within the limit."""
    figures: dict[str, float] = {}
    for step, found in zip(result.steps, step_figures(result), strict=True):
        name = (
            f"{step.clients} clients"
            if step.requests_per_second is None
            else f"{step.requests_per_second:g} requests/s"
        )
        figures[f"{name}, items/s answered"] = found.items_per_second
        figures |= {f"{name}, {label} ms": value for label, value in (("P50", found.p50), ("P99", found.p99)) if value}
        figures[f"{name}, failed"] = found.all_failed
    if (within := result_rate_within(result)) is not None:
        figures[f"items/s at P99 <= {result.settings['p99_limit_ms']:g} ms"] = within.items_per_second
    return figures
