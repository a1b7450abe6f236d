"""The state of a request while an engine scores it, in one or more parts and passes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from ..engines.base import Margins
from .filling import Owner

Progress = Callable[[int], None]


class Submission(Owner):
    """Collects the margins of a request's documents and settles one future when the last of them is scored.

    Cancelling the future drops every document that no pass has taken.

    Attributes:
        future: its result is the margins of all documents, in their order. Once it is done (complete, failed or
            cancelled), the engine need not score the rest.
        on_progress: called from an engine's thread with the number of documents that a pass has scored; or None.
        on_complete: called with the margins of all documents before `future` has them, so that whoever waits for the
            future finds what the call did; or None. If it raises, the future gets its error.
        finished: `time.perf_counter()` when the last document was scored.

    Args:
        documents: how many documents will be queued for this request. If there are none, the future is settled at once.
    """

    def __init__(self, documents: int) -> None:
        self.future: Future[Margins] = Future()
        self.on_progress: Progress | None = None
        self.on_complete: Callable[[Margins], None] | None = None
        self.finished: float | None = None
        self._left = documents
        self._values = np.full(documents, np.nan, dtype=np.float32)
        self._failures: dict[int, str] = {}
        self._truncated: dict[int, int] = {}
        self._computed_tokens = 0
        self._prompt_tokens: int | None = None
        self._recording = threading.Lock()  # passes of one request may end at the same time
        self._claimed = False
        if not documents:
            self._complete()

    def expect_more(self, documents: int) -> None:
        """Expect this many more documents. Call it before the last document expected so far is queued."""
        with self._recording:
            self._left += documents
            self._values = np.concatenate([self._values, np.full(documents, np.nan, dtype=np.float32)])

    def record(self, indices: list[int], margins: Margins) -> None:
        """Record the margins of the documents at these positions in the request."""
        with self._recording:
            self._values[indices] = margins.values
            self._failures.update({indices[i]: reason for i, reason in margins.failures.items()})
            self._truncated.update({indices[i]: tokens for i, tokens in margins.truncated.items()})
            self._computed_tokens += margins.computed_tokens
            if margins.prompt_tokens is not None:
                self._prompt_tokens = (self._prompt_tokens or 0) + margins.prompt_tokens
            self._left -= len(indices)
            complete = self._left == 0
            if self.on_progress is not None:
                self.on_progress(len(indices))
        if complete:
            self._complete()

    def fail(self, error: BaseException) -> None:
        """Settle the future with an error, unless it is settled already."""
        if self._claim():
            self.future.set_exception(error)

    def _complete(self) -> None:
        self.finished = time.perf_counter()
        if not self._claim():
            return
        margins = Margins(self._values, self._computed_tokens, self._failures, self._prompt_tokens, self._truncated)
        try:
            if self.on_complete is not None:
                self.on_complete(margins)
        except Exception as error:  # noqa: BLE001 - whoever waits for the future gets it
            self.future.set_exception(error)
        else:
            self.future.set_result(margins)

    def _claim(self) -> bool:
        """Whether the caller has to settle the future: True only for the first call, and not after cancellation."""
        with self._recording:
            if self._claimed or self.future.done():
                return False
            self._claimed = True
        return self.future.set_running_or_notify_cancel()
