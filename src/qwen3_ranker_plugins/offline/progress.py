"""Shows people how far a job is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .results import Summary
from .scoring import ScoredPass


class Meter:
    """Adds up the numbers of the passes; draws them if it has a progress bar.

    Attributes:
        pairs, tokens, errors: counts of this run.
        cached: number of pairs of this run whose scores the cache had.
        tokenization_seconds, engine_seconds: seconds of all engines together.
    """

    def __init__(self, bar: Progress | None = None) -> None:
        self.pairs = self.tokens = self.errors = self.cached = 0
        self.tokenization_seconds = self.engine_seconds = 0.0
        self._started = time.perf_counter()
        self._before_window: dict[int, float] = {}
        self._fraction = 0.0
        self._bar = bar
        self._task = None if bar is None else bar.add_task("reranking", total=1.0, pairs="", tokens="")

    def add(self, scored: ScoredPass) -> None:
        """Count a pass."""
        self.pairs += scored.pairs
        self.tokens += scored.tokens
        self.errors += len(scored.failures)
        self.cached += scored.cached
        self.tokenization_seconds += scored.tokenization_seconds
        self.engine_seconds += scored.engine_seconds
        if self._bar is not None and self._task is not None:
            before = self._before_window.setdefault(scored.window, self._fraction)
            within = before + (scored.fraction - before) * (scored.number + 1) / scored.count
            self._fraction = max(self._fraction, within)
            if scored.number + 1 == scored.count:
                del self._before_window[scored.window]
            seconds = max(1e-9, time.perf_counter() - self._started)
            self._bar.update(
                self._task,
                completed=self._fraction,
                pairs=f"{self.pairs:,} pairs, {self.pairs / seconds:,.0f}/s",
                tokens=f"{self.tokens / seconds:,.0f} tokens/s",
            )


@contextmanager
def metering(*, show: bool) -> Iterator[Meter]:
    """A meter, with a bar on standard error if `show`. The time left is estimated from the share of the input read."""
    if not show:
        yield Meter()
        return
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[pairs]}", style="progress.data.speed"),
        TextColumn("{task.fields[tokens]}", style="progress.data.speed"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Meter(bar)


def describe(summary: Summary) -> str:
    """The summary as a few lines of text."""
    now = summary.pairs - summary.resumed
    lines = [
        f"{summary.pairs:,} pairs of {summary.queries:,} queries: {summary.scored:,} scored, {summary.errors:,} errors"
    ]
    if summary.resumed:
        lines[0] += f" ({summary.resumed:,} taken over from earlier runs)"
    lines.append(f"{summary.truncated:,} documents were cut to fit the maximum length")
    if summary.cache_hits or summary.cache_misses:
        lines.append(f"cache: {summary.cache_hits:,} hits, {summary.cache_misses:,} misses")
    if now and summary.scoring_seconds:
        rates = (
            f"{now / summary.scoring_seconds:,.0f} pairs/s, {summary.tokens / summary.scoring_seconds:,.0f} tokens/s"
        )
        lines.append(f"{summary.seconds:,.1f} s, of which {summary.scoring_seconds:,.1f} s scoring: {rates}")
    lines.append(
        f"reading {summary.reading_seconds:.1f} s, tokenization {summary.tokenization_seconds:.1f} s, engine "
        f"{summary.engine_seconds:.1f} s, writing {summary.writing_seconds:.1f} s (these overlap), "
        f"ordering {summary.ordering_seconds:.1f} s"
    )
    return "\n".join(lines)
