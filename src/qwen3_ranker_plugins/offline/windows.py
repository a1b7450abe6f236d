"""Divides the pairs into windows: consecutive pairs that are read, encoded and planned together.

Windows bound memory, and a job is continued by windows: the same input always gives the same windows.
"""

from __future__ import annotations

import time
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..data.pairs import Pair
from ..data.source import Source

#: The documents of a query that has more than this are sorted on disk.
MAX_QUERY_PAIRS = 100_000

#: Maximum number of query ids with two texts that a message names.
NAMED_AT_MOST = 3


@dataclass(frozen=True)
class Window:
    """Consecutive pairs of the input.

    Attributes:
        number: number of the window, from 0.
        start: position of the first pair in the input, from 0.
        pairs: in input order.
        fraction: share of the input that has been read at the end of the window, from 0 to 1.
        checksum: CRC-32 of the ids, texts and faults of the pairs.
    """

    number: int
    start: int
    pairs: list[Pair]
    fraction: float
    checksum: int


class MixedQuery(NamedTuple):
    """A query id that has two texts, and the line of the first pair with each text."""

    query_id: str
    line: int | str
    other_line: int | str


class Windows:
    """Reads a source window by window and records whether each query's pairs are consecutive.

    Args:
        source: the source, which is read from its beginning.
        max_pairs: maximum number of pairs in a window.
        max_characters: a window ends with the pair at which its texts reach this many characters.

    Attributes:
        seconds: time spent reading so far.
        pairs: number of pairs read so far.
    """

    def __init__(self, source: Source, max_pairs: int, max_characters: int) -> None:
        self._source = source
        self._max_pairs = max_pairs
        self._max_characters = max_characters
        self._groups = _Groups()
        self._queries = _QueryTexts()
        self.seconds = 0.0
        self.pairs = 0

    def __iter__(self) -> Iterator[Window]:
        pairs = iter(self._source)
        number = 0
        while True:
            started = time.perf_counter()
            window = self._take(pairs)
            self._groups.add(window)
            self._queries.add(window)
            checksum = _checksum(window)
            self.seconds += time.perf_counter() - started
            if not window:
                return
            yield Window(number, self.pairs, window, self._source.fraction(), checksum)
            self.pairs += len(window)
            number += 1

    def _take(self, pairs: Iterator[Pair]) -> list[Pair]:
        window: list[Pair] = []
        characters = 0
        for pair in pairs:
            window.append(pair)
            characters += len(pair.document) + len(pair.query)
            if len(window) == self._max_pairs or characters >= self._max_characters:
                break
        return window

    @property
    def grouped(self) -> bool:
        """Whether the pairs of each query are consecutive, and at most MAX_QUERY_PAIRS."""
        return self._groups.distinct()

    def mixed_queries(self) -> tuple[int, list[MixedQuery]]:
        """The number of query ids that have more than one text, and a few examples; reads the input again for these."""
        ids = self._queries.mixed()
        first: dict[str, Pair] = {}
        found: dict[str, MixedQuery] = {}
        for pair in self._source if ids else ():
            if pair.fault is None and hash(pair.query_id) in ids and pair.query_id not in found:
                known = first.setdefault(pair.query_id, pair)
                if known.query != pair.query:
                    found[pair.query_id] = MixedQuery(pair.query_id, known.line, pair.line)
                    if len(found) == min(len(ids), NAMED_AT_MOST):
                        break
        return len(ids), list(found.values())


def _checksum(pairs: Sequence[Pair]) -> int:
    """CRC-32 of ids, texts and faults."""
    texts = [text for pair in pairs for text in (pair[1], pair[2], pair[3], pair[4], pair[5] or "")]
    return zlib.crc32("\x1f".join(texts).encode("utf-8", "surrogatepass"))


class _Groups:
    """Finds out whether a query has two groups of consecutive pairs. Holds eight bytes per group until it does."""

    def __init__(self) -> None:
        self._hashes: array[int] = array("q")
        self._last: str | None = None
        self._length = 0
        self._known_distinct = 4096
        self._scattered = False

    def add(self, window: list[Pair]) -> None:
        if self._scattered:
            return
        last, length = self._last, self._length
        for pair in window:
            if pair.query_id == last:
                length += 1
            elif not pair.fault:  # a faulty pair does not end a group: it may have lost its query's id
                last = pair.query_id
                self._scattered |= length > MAX_QUERY_PAIRS
                length = 1
                self._hashes.append(hash(last))
        self._last, self._length = last, length
        self._scattered |= length > MAX_QUERY_PAIRS
        if len(self._hashes) > 2 * self._known_distinct:
            self.distinct()
            self._known_distinct = len(self._hashes)

    def distinct(self) -> bool:
        """Whether all groups so far belong to different queries; equal hashes count as equal queries."""
        if not self._scattered and len(self._hashes):
            self._scattered = len(np.unique(np.frombuffer(self._hashes, dtype=np.int64))) < len(self._hashes)
        if self._scattered:
            self._hashes = array("q")
        return not self._scattered


class _QueryTexts:
    """Finds query ids with several texts. Holds 16 bytes per id and text; with duplicates, up to twice that."""

    def __init__(self) -> None:
        self._hashes: array[int] = array("q")
        self._last: tuple[str, str] | None = None
        self._known_distinct = 8192

    def add(self, window: list[Pair]) -> None:
        last = self._last
        for _, query_id, _, query, _, fault in window:
            if fault is None and (last is None or query_id != last[0] or query != last[1]):
                last = (query_id, query)
                self._hashes.append(hash(query_id))
                self._hashes.append(hash(query))
        self._last = last
        if len(self._hashes) > 2 * self._known_distinct:
            self._hashes = array("q", self._distinct().tobytes())
            self._known_distinct = len(self._hashes)

    def _distinct(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        return np.unique(np.frombuffer(self._hashes, dtype=np.int64).reshape(-1, 2), axis=0)

    def mixed(self) -> frozenset[int]:
        """Hashes of the query ids that have more than one text."""
        if not len(self._hashes):
            return frozenset()
        ids, counts = np.unique(self._distinct()[:, 0], return_counts=True)
        return frozenset(ids[counts > 1].tolist())
