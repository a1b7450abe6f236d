"""The interface of all runners: they take windows and yield scored passes as these finish."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterator
from queue import Full, Queue
from typing import Any, Self, TypeVar

from ..scoring import ScoredPass
from ..windows import Window

#: Windows to score, each with the numbers of its passes that are done.
Todo = Iterator[tuple[Window, Collection[int]]]
T = TypeVar("T")

#: Maximum number of passes that are encoded ahead of the engine.
PASSES_AHEAD = 16
#: Number of windows that each worker has at a time: one is scored while the next is encoded.
WINDOWS_AHEAD = 2


class Runner(ABC):
    """Engines that score windows."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Facts about the engines; see `Scorer.facts`."""

    @abstractmethod
    def devices(self) -> str:
        """The devices on which passes run, for people."""

    @abstractmethod
    def run(self, todo: Todo) -> Generator[ScoredPass]:
        """Score the passes of each window that are not done, in any order.

        The caller commits each pass before it asks for the next one.

        Raises:
            RankerError: an engine has ended.
        """

    def close(self) -> None:  # noqa: B027 - not all runners have something to end
        """End the engines."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _put(queue: Queue[tuple[str, Any]], stop: threading.Event, item: tuple[str, Any]) -> None:
    """Wait for room, unless no consumer is left."""
    while not stop.is_set():
        try:
            queue.put(item, timeout=0.1)
        except Full:
            continue
        return


def prefetch(source: Iterator[T], ahead: int) -> Generator[T]:
    """The items of `source`, produced by a thread that is at most `ahead` of them."""
    queue: Queue[tuple[str, Any]] = Queue(ahead)
    stop = threading.Event()

    def fill() -> None:
        try:
            for item in source:
                _put(queue, stop, ("item", item))
                if stop.is_set():
                    return
            _put(queue, stop, ("end", None))
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            _put(queue, stop, ("error", error))

    thread = threading.Thread(target=fill, name="qwen3-ranker-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
