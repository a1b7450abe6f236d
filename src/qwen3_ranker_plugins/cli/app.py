"""The command line: assembles the commands and turns errors into exit codes.

0: done; 1: the command failed, and the message says why (`rank` also: no document is a hit); 2: an argument is
unusable; 130: interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer
from rich.text import Text

from .._version import __version__
from ..errors import InvalidInputError, RankerError
from .bench import bench
from .demo import demo
from .doctor import doctor
from .rank import rank
from .rerank import rerank
from .serve import serve
from .terminal import errors
from .tune import tune

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # commands inherit them
    pretty_exceptions_enable=False,  # a bug's traceback is for a bug report: plain, and without local values
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qwen3-ranker-plugins {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Rerank documents with P(yes) of a Qwen3 reranker."""


app.command()(demo)
app.command()(rank)
app.command()(rerank)
app.command()(serve)
app.add_typer(bench, name="bench")
app.command()(tune)
app.command()(doctor)


def main() -> None:
    """The `qwen3-ranker` command."""
    # Read by OpenMP when torch is imported. Threads that wait by spinning, as is its default, make a pass on a CPU up
    # to ten times slower as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no star or box shows "?" instead
            stream.reconfigure(errors="replace")
    try:
        app()
    except RankerError as error:
        errors().print(Text(f"error: {error}"))
        sys.exit(2 if isinstance(error, InvalidInputError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
