"""Encoded requests -> the layout of one forward pass without padding.

A pass is a flat row of tokens: the prefix of a request, its documents (each with the suffix), the next
request's prefix, and so on:

    [prefix A][A's document 0][A's document 1] ... [prefix B][B's document 0] ...

Positions restart after the prefix for every document. A token may see its own request's prefix and the earlier
tokens of its own document, nothing else. The documents of a request are sorted by length, so that those of equal
length are neighbours and can be attended to as one batch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...prompt import EncodedRequest, FlatSegments, length_order

#: Every padded length is a multiple of this.
LENGTH_UNIT = 128


@dataclass(frozen=True)
class SegmentGroup:
    """`count` neighbouring documents of `length` tokens each; the first one begins at position `start`."""

    start: int
    count: int
    length: int

    @property
    def end(self) -> int:
        """First position after the group."""
        return self.start + self.count * self.length

    def slices(self, count: int) -> Iterator[SegmentGroup]:
        """The group in parts of at most `count` documents."""
        for first in range(0, self.count, count):
            yield SegmentGroup(self.start + first * self.length, min(count, self.count - first), self.length)


@dataclass(frozen=True)
class Block:
    """One request's part of a pass: its prefix, then its documents in groups of equal length."""

    prefix_start: int
    prefix_end: int
    groups: tuple[SegmentGroup, ...]

    @property
    def prefix_length(self) -> int:
        """Tokens of the prefix."""
        return self.prefix_end - self.prefix_start

    @property
    def end(self) -> int:
        """First position after the documents."""
        return self.groups[-1].end if self.groups else self.prefix_end


@dataclass(frozen=True)
class PackedPass:
    """The layout of one forward pass over `num_tokens` tokens holding `num_documents` documents.

    Attributes:
        token_ids: int64 [num_tokens].
        position_ids: int64 [num_tokens], for rotary embeddings.
        prefix_start, prefix_end: int32 [num_tokens], bounds of the prefix that each token may see.
        segment_start: int32 [num_tokens], start of the prefix or document that each token belongs to.
        last_positions: int64 [num_documents], where each document's prompt ends, in the order of the requests
            and of their documents as they were given to `pack`.
        blocks: one per request.
    """

    token_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    prefix_start: NDArray[np.int32]
    prefix_end: NDArray[np.int32]
    segment_start: NDArray[np.int32]
    last_positions: NDArray[np.int64]
    blocks: tuple[Block, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in the pass."""
        return len(self.token_ids)

    @property
    def num_documents(self) -> int:
        """Documents in the pass."""
        return len(self.last_positions)


def pack(requests: Sequence[EncodedRequest]) -> PackedPass:
    """Lay requests out one after another.

    Args:
        requests: each with at least one document.
    """
    builder = PassBuilder()
    for request in requests:
        builder.start_request(request.prefix)
        order = length_order(request)
        ends = np.empty(len(order), dtype=np.int64)
        ends[order] = builder.add_segments(request.segments, order)
        builder.last_positions += ends.tolist()
    return builder.build()


def padded_length(num_tokens: int, per_octave: int = 4) -> int:
    """The size class of a pass: the next multiple of LENGTH_UNIT that has few significant bits.

    With few different lengths, passes often reuse what was compiled or allocated for a length.

    Args:
        num_tokens: tokens of the pass.
        per_octave: number of size classes between a length and its double, a power of two. With four, padding adds
            10 % on average; with eight, 5 %.
    """
    step = max(LENGTH_UNIT, (1 << max(0, (num_tokens - 1).bit_length() - 1)) // per_octave)
    return -(-num_tokens // step) * step


class PassBuilder:
    """Lays a pass out: for each request `start_request`, then `add_segment` or `add_segments`, finally `build`.

    Attributes:
        last_positions: becomes `PackedPass.last_positions`. The caller fills it, because only the caller knows the
            order in which the documents were given.
    """

    def __init__(self) -> None:
        self.last_positions: list[int] = []
        self._arrays: list[NDArray[Any]] = []  # the ids before those in `_token_ids`
        self._token_ids: list[int] = []
        self._total = 0
        self._lengths: list[int] = []  # of prefixes and documents, in the order of the pass
        self._prefixes: list[tuple[int, int]] = []  # start and end of each request's prefix
        self._first_segments: list[int] = []  # index in `_lengths` of each request's prefix

    def start_request(self, prefix: Sequence[int]) -> None:
        """Start a request; its prefix may be empty."""
        self._prefixes.append((self._total, self._total + len(prefix)))
        self._first_segments.append(len(self._lengths))
        self.add_segment(prefix)

    def add_segment(self, segment: Sequence[int]) -> int:
        """Add a document with its suffix to the request; return the position of its last token.

        Neighbouring documents of equal length become one group.
        """
        self._token_ids += segment
        self._lengths.append(len(segment))
        self._total += len(segment)
        return self._total - 1

    def add_segments(self, segments: Sequence[Sequence[int]], order: Sequence[int]) -> NDArray[np.int64]:
        """Add several documents in this order; return the positions of their last tokens, int64 [segments]."""
        if isinstance(segments, FlatSegments):
            self._close_list()
            places = np.asarray(order, dtype=np.intp)
            self._arrays.append(segments.ordered(places))
            lengths = segments.lengths[places].tolist()
        else:
            lengths = [len(segments[index]) for index in order]
            for index in order:
                self._token_ids += segments[index]
        ends: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64) + (self._total - 1)
        self._lengths += lengths
        self._total += sum(lengths)
        return ends

    def _close_list(self) -> None:
        self._arrays.append(_as_array(self._token_ids))
        self._token_ids = []

    def build(self) -> PackedPass:
        """The layout of everything that was added."""
        total = self._total
        self._close_list()
        lengths = np.asarray(self._lengths, dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        prefix_starts, prefix_ends = np.asarray(self._prefixes, dtype=np.int32).T
        tokens = [end - start for start, end in pairwise([*prefix_starts.tolist(), total])]  # of each request
        segments = [end - start for start, end in pairwise([*self._first_segments, len(lengths)])]
        restarts = np.repeat(prefix_ends - prefix_starts, segments)  # position of the first token of each segment
        restarts[self._first_segments] = 0
        return PackedPass(
            token_ids=np.concatenate(self._arrays, dtype=np.int64),
            position_ids=np.arange(total) - np.repeat(starts - restarts, lengths),
            prefix_start=np.repeat(prefix_starts, tokens),
            prefix_end=np.repeat(prefix_ends, tokens),
            segment_start=np.repeat(starts.astype(np.int32), lengths),
            last_positions=np.asarray(self.last_positions, dtype=np.int64),
            blocks=tuple(self._blocks(lengths, starts)),
        )

    def _blocks(self, lengths: NDArray[np.int64], starts: NDArray[np.int64]) -> Iterator[Block]:
        for prefix, (first, end) in zip(self._prefixes, pairwise([*self._first_segments, len(lengths)]), strict=True):
            documents = lengths[first + 1 : end]
            changes = np.flatnonzero(documents[1:] != documents[:-1]) + 1
            bounds = pairwise([0, *changes.tolist(), len(documents)])
            yield Block(
                *prefix,
                tuple(
                    SegmentGroup(int(starts[first + 1 + begin]), stop - begin, int(documents[begin]))
                    for begin, stop in bounds
                    if begin < stop
                ),
            )


def _as_array(ids: list[int]) -> NDArray[np.int64]:
    """The same as `np.asarray`, in half the time, which counts because a pass has tens of thousands of ids."""
    if not ids:
        return np.empty(0, dtype=np.int64)
    return np.frombuffer(bytearray(struct.pack(f"{len(ids)}q", *ids)), dtype=np.int64)
