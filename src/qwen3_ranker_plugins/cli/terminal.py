"""Consoles, lines of progress and progress bars of all commands, and the line that a model is being loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.text import Text


def output(*, width: int = 100) -> Console:
    """Standard output, `width` columns wide where it is not a terminal, which knows its own width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=width, highlight=False)


def errors() -> Console:
    """Standard error, without line breaks of our own."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    errors().print(Text(line, style="dim"))


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Show that a model is being loaded, from before the first import that takes seconds, until the block ends.

    Only where standard error is a terminal: a script that keeps standard error wants problems and nothing else.
    """
    if not sys.stderr.isatty():
        yield
        return
    with errors().status(Text(f"loading {model} ...")):
        yield


class ProgressBar:
    """A progress bar on standard error, where that is a terminal and `quiet` is false; called with steps done."""

    def __init__(self, what: str, total: int, *, quiet: bool) -> None:
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), disable=quiet or not sys.stderr.isatty())
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, steps: int = 1) -> None:
        """Move on by so much of the total."""
        self._bar.advance(self._task, steps)
