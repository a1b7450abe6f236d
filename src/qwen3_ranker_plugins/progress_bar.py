"""The progress bar of `Reranker.rerank(..., show_progress=True)`."""

from __future__ import annotations

from functools import partial

from .dispatch import Progress


class ProgressBar:
    """Documents scored and expected, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("reranking"), BarColumn(), MofNCompleteColumn(), TextColumn("documents"))
        self._bar = RichProgress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self._bar.start()
        self._task = self._bar.add_task("reranking", total=0)
        self._expected = 0

    def expect(self, documents: int) -> Progress:
        """Expect more documents. Call the returned function with the number of documents that were scored."""
        self._expected += documents
        self._bar.update(self._task, total=self._expected)
        return partial(self._bar.advance, self._task)

    def close(self) -> None:
        """End the bar; it stays on the screen as it is."""
        self._bar.stop()
