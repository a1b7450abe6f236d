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
from itertools import groupby

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
    token_ids: list[int] = []
    last_positions: list[int] = []
    blocks: list[Block] = []
    lengths: list[int] = []  # of heads and documents, in the order in which they lie
    restarts: list[int] = []  # position of the first token of each
    heads: list[tuple[int, int]] = []  # the head that each sees

    for request in requests:
        head_start, head_length = len(token_ids), len(request.head)
        head = (head_start, head_start + head_length)
        token_ids += request.head
        lengths.append(head_length)
        restarts.append(0)
        heads.append(head)

        order = length_order(request)
        ends = [0] * len(order)
        groups: list[SegmentGroup] = []
        for length, members in groupby(order, key=lambda i: len(request.segments[i])):
            start, count = len(token_ids), 0
            for index in members:
                token_ids += request.segments[index]
                ends[index] = len(token_ids) - 1
                count += 1
            groups.append(SegmentGroup(start, count, length))
            lengths += [length] * count
            restarts += [head_length] * count
            heads += [head] * count
        last_positions += ends
        blocks.append(Block(*head, tuple(groups)))

    length_array = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(length_array) - length_array
    segment_start = np.repeat(starts, length_array)
    bounds = np.repeat(np.asarray(heads, dtype=np.int32), length_array, axis=0)
    return PackedPass(
        token_ids=np.asarray(token_ids, dtype=np.int64),
        position_ids=np.arange(len(token_ids)) - segment_start + np.repeat(restarts, length_array),
        head_start=bounds[:, 0],
        head_end=bounds[:, 1],
        segment_start=segment_start.astype(np.int32),
        last_positions=np.asarray(last_positions, dtype=np.int64),
        blocks=tuple(blocks),
    )


def length_order(request: EncodedRequest) -> list[int]:
    """Indices of the documents, shortest first; equal lengths keep their order."""
    return sorted(range(len(request.lengths)), key=request.lengths.__getitem__)
