"""Shows a result to the user: prints it, and writes files if a folder is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..bench.report_files import report_of, write_report
from ..bench.results import Result
from .terminal import output, say


def present(result: Result, folder: Path | None, tag: str | None, more: Mapping[str, str] | None = None) -> None:
    """Print a result's report, and write its files.

    Args:
        result: of any kind.
        folder: None to print only.
        tag: name of the files; None for the kind of result.
        more: further files to write: name -> text.
    """
    report = report_of(result)
    report.print(output(width=160))
    if folder is not None:
        written = write_report(result, report, folder, tag or result.kind, more or {})
        say(f"written to {folder}: {', '.join(written)}")
