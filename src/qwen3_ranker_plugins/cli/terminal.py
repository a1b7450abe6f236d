"""Consoles, lines of progress and progress bars of all commands, and the note that a model is being loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.text import Text


def output(*, width: int = 100) -> Console:
    """A console on standard output; `width` columns wide unless it is a terminal, which knows its own width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=width, highlight=False)


def errors() -> Console:
    """A console on standard error, which does not break lines."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    errors().print(Text(line, style="dim"))


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Show that a model is being loaded, from before the first import that takes seconds, until the block ends.

    Only if standard error is a terminal: a script that stores standard error wants to see problems only.
    """
    if not sys.stderr.isatty():
        yield
        return
    with errors().status(Text(f"loading {model} ...")):
        yield


class ProgressBar:
    """A progress bar on standard error, if that is a terminal and `quiet` is false. Call it with the steps done."""

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
        """Advance by `steps` of the total."""
        self._bar.advance(self._task, steps)
