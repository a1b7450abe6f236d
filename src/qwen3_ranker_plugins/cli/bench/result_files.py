"""`qwen3-ranker bench compare` and `bench report`, which work on result files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import OutputOption, TagOption
from ..terminal import output as standard_output


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="Result file of bench or tune.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Result file of the same kind.")],
) -> None:
    """Show the ratios of two results, and everything that differs between them."""
    from ...bench.compare import compare_results
    from ...bench.report_files import read_result

    compare_results(read_result(a), read_result(b), (a.name, b.name)).print(standard_output(width=160))


def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Result file of bench or tune.")],
    output: OutputOption = None,
    tag: TagOption = None,
) -> None:
    """Recompute the report of a result file from its raw values."""
    from ...bench.report_files import check_output, read_result, recomputed
    from ..present import present

    result = read_result(file)
    check_output(output, tag)
    present(recomputed(result), output, tag or file.stem)
