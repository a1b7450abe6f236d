"""Encoded requests -> one forward pass without padding.

A pass is a flat row of tokens: the head of a request, its documents (each with the suffix), the next
request's head, and so on:

    [head A][A's document 0][A's document 1] ... [head B][B's document 0] ...

Positions restart after the head for every document. A token may see its own request's head and the earlier
tokens of its own document, nothing else. Documents of a request lie in order of length, so that those of
equal length are neighbours and can be attended to as one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from .prompt import EncodedRequest


@dataclass(frozen=True)
class SegmentGroup:
    """`count` neighbouring documents of `length` tokens each, the first of them at `start`."""

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
    """One request's part of a pass: its head, then its documents in groups of equal length."""

    head_start: int
    head_end: int
    groups: tuple[SegmentGroup, ...]

    @property
    def head_length(self) -> int:
        """Tokens of the head."""
        return self.head_end - self.head_start


@dataclass(frozen=True)
class PackedPass:
    """The layout of one forward pass over `num_tokens` tokens holding `num_documents` documents.

    Attributes:
        token_ids: int64 [num_tokens].
        position_ids: int64 [num_tokens], for rotary embeddings.
        head_start, head_end: int32 [num_tokens], bounds of the head that each token may see.
        segment_start: int32 [num_tokens], start of the head or document that each token belongs to.
        last_positions: int64 [num_documents], where each document's prompt ends, in the order of the requests
            and of their documents as they were given to `pack`.
        blocks: one per request.
    """

    token_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    head_start: NDArray[np.int32]
    head_end: NDArray[np.int32]
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
    """Lay requests out behind one another.

    Args:
        requests: each with at least one document.
    """
    row = Row()
    for request in requests:
        row.begin(request.head)
        order = length_order(request)
        ends = [0] * len(order)
        for index in order:
            ends[index] = row.add(request.segments[index])
        row.last_positions += ends
    return row.packed()


class Row:
    """A pass that is being laid out: `begin` a request with its head, `add` its documents.

    Attributes:
        last_positions: what `PackedPass.last_positions` will be; entered by the caller, who knows the order.
    """

    def __init__(self) -> None:
        self.last_positions: list[int] = []
        self._token_ids: list[int] = []
        self._lengths: list[int] = []  # of heads and documents, in the order in which they lie
        self._restarts: list[int] = []  # position of the first token of each
        self._heads: list[tuple[int, int]] = []  # the head that each sees
        self._first_documents: list[int] = []  # where in these lists the documents of each request begin

    def begin(self, head: Sequence[int]) -> None:
        """Start a request; its head may be empty."""
        start = len(self._token_ids)
        self._head = (start, start + len(head))
        self._append(head, restart=0)
        self._first_documents.append(len(self._lengths))

    def add(self, segment: Sequence[int]) -> int:
        """A document of the request, with its suffix; returns the position of its last token.

        Documents of equal length that follow one another become one group.
        """
        self._append(segment, restart=self._head[1] - self._head[0])
        return len(self._token_ids) - 1

    def _append(self, ids: Sequence[int], *, restart: int) -> None:
        self._token_ids += ids
        self._lengths.append(len(ids))
        self._restarts.append(restart)
        self._heads.append(self._head)

    def packed(self) -> PackedPass:
        """The finished pass."""
        lengths = np.asarray(self._lengths, dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        segment_start = np.repeat(starts, lengths)
        bounds = np.repeat(np.asarray(self._heads, dtype=np.int32), lengths, axis=0)
        return PackedPass(
            token_ids=np.asarray(self._token_ids, dtype=np.int64),
            position_ids=np.arange(len(self._token_ids)) - segment_start + np.repeat(self._restarts, lengths),
            head_start=bounds[:, 0],
            head_end=bounds[:, 1],
            segment_start=segment_start.astype(np.int32),
            last_positions=np.asarray(self.last_positions, dtype=np.int64),
            blocks=tuple(self._blocks(starts.tolist())),
        )

    def _blocks(self, starts: list[int]) -> Iterator[Block]:
        for first, end in pairwise([*self._first_documents, len(self._lengths) + 1]):
            groups: list[SegmentGroup] = []
            documents = range(first, end - 1)  # a head lies between the documents of two requests
            for length, members in groupby(documents, key=self._lengths.__getitem__):
                group = list(members)
                groups.append(SegmentGroup(starts[group[0]], len(group), length))
            yield Block(*self._heads[first - 1], tuple(groups))


def length_order(request: EncodedRequest) -> list[int]:
    """Indices of the documents, shortest first; equal lengths keep their order."""
    return sorted(range(len(request.lengths)), key=request.lengths.__getitem__)
