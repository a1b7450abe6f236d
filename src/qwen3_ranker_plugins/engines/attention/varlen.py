"""Shared-prefix attention of long documents through a library's kernel for sequences of any length.

A kernel such as FlashAttention's `varlen` functions takes sequences one after another. Its causal mask is aligned to
the end: of n queries and m keys, query i sees the first m - n + i + 1 keys. A document becomes one sequence whose keys
are the prefix's and then its own, so that all its queries see the whole prefix. The prefix's keys and values are copied
for each document, which costs little where documents are many times longer than the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .layout import PackedPass


@dataclass(frozen=True)
class LongSegments:
    """The documents of a pass that have at least a given length, as sequences for a kernel.

    Attributes:
        queries: int64 [query tokens], positions in the pass of the documents' tokens, sequence by sequence.
        keys: int64 [key tokens], positions of each document's prefix and then of its own tokens.
        query_bounds, key_bounds: int32 [sequences + 1], where each sequence begins in `queries` and `keys`; the last
            one is the end.
        longest_query, longest_key: tokens of the longest sequence; 0 if there is none.
    """

    queries: NDArray[np.int64]
    keys: NDArray[np.int64]
    query_bounds: NDArray[np.int32]
    key_bounds: NDArray[np.int32]
    longest_query: int
    longest_key: int


def find_long_segments(packed: PackedPass, shortest: int) -> LongSegments:
    """The documents with at least `shortest` tokens, prefix not counted, in the order of the pass."""
    bounds = [
        (block.prefix_start, block.prefix_end, start, start + group.length)
        for block in packed.blocks
        for group in block.groups
        if group.length >= shortest
        for start in range(group.start, group.end, group.length)
    ]
    ranges = np.asarray(bounds, dtype=np.int64).reshape(-1, 4)
    lengths = ranges[:, 3] - ranges[:, 2]
    key_lengths = lengths + ranges[:, 1] - ranges[:, 0]
    empty = [np.empty(0, dtype=np.int64)]
    return LongSegments(
        queries=np.concatenate([*empty, *(np.arange(start, end) for _, _, start, end in bounds)]),
        keys=np.concatenate([*empty, *(part for a, b, c, d in bounds for part in (np.arange(a, b), np.arange(c, d)))]),
        query_bounds=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        key_bounds=np.concatenate([[0], np.cumsum(key_lengths)]).astype(np.int32),
        longest_query=int(lengths.max(initial=0)),
        longest_key=int(key_lengths.max(initial=0)),
    )
