"""From a result to what the user gets: a print, and files if a folder is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from ..cli.bench_options import console, say
from ..errors import InvalidInputError, MissingDependencyError
from . import latency, matrix, quality, throughput, tune
from .report import Report
from .results import Result, make_folder, write_result, write_text

REPORTS: dict[str, Callable[[Result], Report]] = {
    "quality": quality.quality_report,
    "throughput": throughput.throughput_report,
    "latency": latency.latency_report,
    "matrix": matrix.matrix_report,
    "tune": tune.tune_report,
}

_FIGURES: dict[str, Callable[[Result], object]] = {
    "quality": quality.evaluate,
    "throughput": throughput.evaluate,
    "latency": latency.evaluate,
}


def recompute(result: Result) -> None:
    """Replace the stored figures by what this version computes from the raw values."""
    if result["kind"] in _FIGURES:
        result["figures"] = _FIGURES[result["kind"]](result)


def check_output(folder: Path | None, tag: str | None) -> None:
    """Create the folder and import what reports need, before anything is measured.

    Raises:
        InvalidInputError: it cannot be created, or the tag is no file name.
        MissingDependencyError: a part of the extra is not installed.
    """
    for module in ("ir_measures", "matplotlib", "scipy"):
        try:
            import_module(module)
        except ImportError as error:
            raise MissingDependencyError(
                f'bench and tune need {module}: pip install "qwen3-ranker-plugins[bench]"'
            ) from error
    if tag is not None and (not tag.strip() or Path(tag).name != tag):
        raise InvalidInputError("tag", tag, "use a name that a file can have")
    if folder is not None:
        make_folder(folder)


def present(result: Result, folder: Path | None, tag: str | None, more: Mapping[str, str] | None = None) -> Report:
    """Print a result's report, and write `TAG.json`, `.md`, `.png` and `.html` into the folder.

    Args:
        result: of any kind.
        folder: None to print only.
        tag: None for the kind.
        more: further files by name.
    """
    report = REPORTS[result["kind"]](result)
    report.print(console())
    if folder is not None:
        write_report(result, report, folder, tag or str(result["kind"]), more or {})
    return report


def write_report(result: Result, report: Report, folder: Path, name: str, more: Mapping[str, str]) -> None:
    """The four files, and more."""
    path = folder / f"{name}.json"
    write_result(path, result)
    report = replace(report, raw=path.read_text(encoding="utf-8"))
    picture = None
    if report.picture is not None:
        picture = folder / f"{name}.png"
        picture.write_bytes(report.picture[0])
    write_text(folder / f"{name}.md", report.markdown(None if picture is None else picture.name))
    write_text(folder / f"{name}.html", report.html())
    for file, text in more.items():
        write_text(folder / f"{name}-{file}", text)
    say(f"written: {folder / name}.json, .md, .html{'' if picture is None else ', .png'}")
