"""The interface of a store of byte strings, and the store in memory."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence

#: Bytes of an entry besides its value: key, place in an OrderedDict and the two objects, measured with tracemalloc and
#: rounded up.
ENTRY_BYTES = 250


class Store(ABC):
    """Key -> value, both byte strings. If the store is full, the least recently used entries are deleted. Thread-safe.

    Attributes:
        limit: maximum size in bytes.
        evictions: number of entries deleted to make room.
        failure: why the store is no longer read or written; None while it works.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.evictions = 0
        self.failure: str | None = None

    @abstractmethod
    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key; None if there is none."""

    @abstractmethod
    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Store values; they replace those that the keys have."""

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(number of entries, bytes), estimated."""

    @abstractmethod
    def close(self) -> None:
        """Finish writing. No method is called afterwards."""


class MemoryStore(Store):
    """A store in this process.

    It is an OrderedDict because a plain dict finds its first key slowly after many deletions at its front. cachetools
    was not chosen: it adds a Python call for each entry and is not thread-safe either.
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
