"""What a store of byte strings is, and the one in memory."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence

#: Of a key, its place in an OrderedDict and the two objects, as tracemalloc counts them; rounded up.
ENTRY_BYTES = 250


class Store(ABC):
    """Key -> value, both byte strings, bounded in bytes: what was not used for longest goes first. Thread-safe.

    Attributes:
        limit: in bytes.
        evictions: number of entries that had to go.
        failure: why nothing is read from it or kept in it any more; None while it works.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.evictions = 0
        self.failure: str | None = None

    @abstractmethod
    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key; None for what is not there."""

    @abstractmethod
    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keep values, in place of those that the keys have."""

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(entries, bytes), about."""

    @abstractmethod
    def close(self) -> None:
        """Finish what is to be written. Nothing is called afterwards."""


class MemoryStore(Store):
    """In this process.

    An OrderedDict and no plain dict, whose first key is found slowly after many deletions at its front; cachetools adds
    a call of Python for each entry and is not thread-safe either.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._lock = threading.Lock()
        self._values: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `Store`."""
        with self._lock:
            found = [self._values.get(key) for key in keys]
            for key, value in zip(keys, found, strict=True):
                if value is not None:
                    self._values.move_to_end(key)
        return found

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """See `Store`."""
        with self._lock:
            for key, value in values.items():
                if (former := self._values.pop(key, None)) is not None:
                    self._bytes -= ENTRY_BYTES + len(former)
                self._values[key] = value
                self._bytes += ENTRY_BYTES + len(value)
            while self._bytes > self.limit:
                _, value = self._values.popitem(last=False)
                self._bytes -= ENTRY_BYTES + len(value)
                self.evictions += 1

    def size(self) -> tuple[int, int]:
        """See `Store`."""
        with self._lock:
            return len(self._values), self._bytes

    def close(self) -> None:
        """See `Store`."""
        with self._lock:
            self._values.clear()
            self._bytes = 0
