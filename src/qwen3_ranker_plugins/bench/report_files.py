"""The kinds of results, and how each is read from a file, recomputed, reported and written as up to four files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidInputError, MissingDependencyError
from ..pip_command import pip_install
from .latency import matrix, requests
from .load import report as load_report
from .load import results as load_results
from .quality import reranking
from .report import Report
from .results import FORMAT, Result, make_folder, plain, write_result, write_text
from .threshold import measure
from .threshold import report as threshold_report
from .throughput import batch_sizes
from .tune import search


class _Kind(NamedTuple):
    """A kind of result: its class, its report, and the function that computes its figures, if its files have any."""

    result: type[Result]
    report: Callable[[Any], Report]
    evaluate: Callable[[Any], object] | None = None


_KINDS = {
    kind.result.kind: kind
    for kind in (
        _Kind(reranking.QualityResult, reranking.quality_report, reranking.evaluate),
        _Kind(measure.ThresholdResult, threshold_report.threshold_report, measure.evaluate),
        _Kind(batch_sizes.ThroughputResult, batch_sizes.throughput_report, batch_sizes.evaluate),
        _Kind(requests.LatencyResult, requests.latency_report, requests.evaluate),
        _Kind(matrix.MatrixResult, matrix.matrix_report),
        _Kind(load_results.LoadResult, load_report.load_report, load_results.evaluate),
        _Kind(search.TuneResult, search.tune_report),
    )
}


def check_output(folder: Path | None, tag: str | None) -> None:
    """Create the folder and import the dependencies of reports before anything is measured.

    Raises:
        InvalidInputError: the folder cannot be created, or the tag is not a file name.
        MissingDependencyError: a part of the extra is not installed.
    """
    for module in ("ir_measures", "matplotlib", "msgspec", "psutil", "scipy"):
        try:
            import_module(module)
        except ImportError as error:
            raise MissingDependencyError(f"bench and tune need {module}: {pip_install('bench')}") from error
    if tag is not None and (not tag.strip() or Path(tag).name != tag):
        raise InvalidInputError("tag", tag, "use a name that a file can have")
    if folder is not None:
        make_folder(folder)


def read_result(path: Path) -> Result:
    """Read a file that `write_result` wrote.

    Raises:
        InvalidInputError: it is not such a file, or it has another version of the format.
        MissingDependencyError: msgspec is not installed.
    """
    try:
        import msgspec
    except ImportError as error:
        raise MissingDependencyError(f"reading results needs msgspec: {pip_install('bench')}") from error
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError("FILE", str(path), f"{error.strerror}; give a result file") from error
    except ValueError as error:
        raise InvalidInputError("FILE", str(path), f"is not JSON ({error}); give a result file") from error
    if not isinstance(value, dict) or value.get("kind") not in _KINDS or "about" not in value:
        raise InvalidInputError("FILE", str(path), "is not a result of qwen3-ranker bench or tune")
    if value.get("format") != FORMAT:
        raise InvalidInputError("FILE", str(path), f"has format {value.get('format')}, this version reads {FORMAT}")
    try:
        result: Result = msgspec.convert(value, type=_KINDS[value["kind"]].result)
    except msgspec.ValidationError as error:
        raise InvalidInputError("FILE", str(path), f"is damaged: {error}") from error
    return result


def recomputed(result: Result) -> Result:
    """The result with the figures that this version computes from its raw values."""
    evaluate = _KINDS[result.kind].evaluate
    return result if evaluate is None else replace(result, figures=plain(evaluate(result)))  # type: ignore[call-arg]


def report_of(result: Result) -> Report:
    """The report of a result, computed from its raw values."""
    return _KINDS[result.kind].report(result)


def write_report(result: Result, report: Report, folder: Path, name: str, more: Mapping[str, str]) -> list[str]:
    """Write NAME.json, .md and .html, NAME.png if the report has a picture, and NAME-FILE for each of `more`.

    Returns:
        The names of the files.

    Raises:
        InvalidInputError: the files cannot be written there.
    """
    path = folder / f"{name}.json"
    write_result(path, result)
    report = replace(report, raw=path.read_text(encoding="utf-8"))
    written = [path.name]
    picture = None
    if report.picture is not None:
        picture = folder / f"{name}.png"
        picture.write_bytes(report.picture[0])
        written.append(picture.name)
    texts = {
        f"{name}.md": report.markdown(None if picture is None else picture.name),
        f"{name}.html": report.html(),
        **{f"{name}-{file}": text for file, text in more.items()},
    }
    for file, text in texts.items():
        write_text(folder / file, text)
    return [*written, *texts]
