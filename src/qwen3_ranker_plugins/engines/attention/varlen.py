"""Shared-prefix attention of long documents through a library's kernel for sequences of different lengths.

A kernel such as FlashAttention's `varlen` functions takes sequences one after another. Its causal mask is aligned to
the end: of n queries and m keys, query i sees the first m - n + i + 1 keys. A document becomes one sequence whose keys
are the prefix's and then its own, so that all its queries see the whole prefix. The prefix's keys and values are copied
for each document, which costs little where documents are many times longer than the prefix.

Queries and outputs stay where they are in the pass. The tokens between two long documents are a sequence without keys,
whose outputs are overwritten afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .layout import Block, PackedPass, SegmentGroup

# Parts of a transfer begin at multiples of this many int32. Triton compiles a kernel again for a pointer that is not a
# multiple of 16 bytes; with aligned parts it never has to.
_ALIGNMENT = 32


class Sequences(NamedTuple):
    """Queries and keys of each sequence: document, gap, document, ..., gap, document.

    Attributes:
        query_bounds: int32 [sequences + 1], where the queries of each sequence begin in the pass; the last entry is
            where they end.
        query_lengths: int32 [sequences], how many of these queries count; 0 for a gap.
        key_bounds: int32 [sequences + 1], the same for the gathered keys. A gap has no keys.
        most_queries, most_keys: upper bounds of the queries and of the keys of one document.
    """

    query_bounds: torch.Tensor
    query_lengths: torch.Tensor
    key_bounds: torch.Tensor
    most_queries: int
    most_keys: int


@dataclass(frozen=True)
class VarlenKernel:
    """A library's kernel.

    Attributes:
        name: as `EngineDescription` shows it.
        shortest: documents of at least this many tokens are computed with it.
        attend: (queries [tokens, heads, head_dim], which need not be contiguous, keys and values
            [key tokens, kv_heads, head_dim], sequences) -> [tokens, heads, head_dim], in which the rows of a gap and
            those outside of all sequences are undefined.
    """

    name: str
    shortest: int
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Sequences], torch.Tensor]


@dataclass(frozen=True)
class LongSegments:
    """The long documents of a pass.

    Attributes:
        keys: int32 [key tokens], positions in the pass of each document's prefix and then of its own tokens.
        queries: int32 [query tokens], positions of the documents' tokens.
        others: int32, positions of the other tokens of the pass.
        query_bounds, key_bounds: see `Sequences`.
    """

    keys: NDArray[np.int32]
    queries: NDArray[np.int32]
    others: NDArray[np.int32]
    query_bounds: NDArray[np.int32]
    key_bounds: NDArray[np.int32]


class LongTensors(NamedTuple):
    """`LongSegments` on a device.

    Attributes:
        keys, queries, others: see `LongSegments`.
        last_queries: int32 [documents], positions of the documents' last tokens.
        sequences: with all queries of the documents.
        last_sequences: with the last query of each document only.
    """

    keys: torch.Tensor
    queries: torch.Tensor
    others: torch.Tensor
    last_queries: torch.Tensor
    sequences: Sequences
    last_sequences: Sequences


def is_long(block: Block, group: SegmentGroup, shortest: int) -> bool:
    """Whether the documents of a group are long: at least `shortest` tokens, and no shorter than their prefix.

    The second condition limits the gathered keys to twice the number of tokens of the pass.
    """
    return group.length >= max(shortest, block.prefix_length)


def long_work(packed: PackedPass, shortest: int) -> int:
    """The sum of the squares of the long documents' lengths: the cost of their attention in arbitrary units."""
    return sum(
        group.count * group.length**2
        for block in packed.blocks
        for group in block.groups
        if is_long(block, group, shortest)
    )


def find_long_segments(packed: PackedPass, shortest: int) -> LongSegments | None:
    """The long documents of a pass, in its order; None if there are none."""
    bounds = [
        (block.prefix_start, block.prefix_end, start, start + group.length)
        for block in packed.blocks
        for group in block.groups
        if is_long(block, group, shortest)
        for start in range(group.start, group.end, group.length)
    ]
    if not bounds:
        return None
    ranges = np.asarray(bounds, dtype=np.int32)
    key_ends = np.cumsum(ranges[:, 3] - ranges[:, 2] + ranges[:, 1] - ranges[:, 0], dtype=np.int32)
    long = np.zeros(packed.num_tokens, dtype=bool)
    for _, _, start, end in bounds:
        long[start:end] = True
    return LongSegments(
        keys=np.concatenate(
            [
                np.arange(*part, dtype=np.int32)
                for start, end, first, last in bounds
                for part in ((start, end), (first, last))
            ]
        ),
        queries=np.flatnonzero(long).astype(np.int32),
        others=np.flatnonzero(~long).astype(np.int32),
        query_bounds=ranges[:, 2:].flatten(),
        key_bounds=np.concatenate([[0], np.repeat(key_ends, 2)[:-1]]).astype(np.int32),
    )


def to_device(long: LongSegments, device: torch.device) -> LongTensors:
    """A copy on the device, in one transfer; the host does not wait for a GPU."""
    starts, ends = long.query_bounds[::2], long.query_bounds[1::2]
    last_bounds = np.stack([ends - 1, ends], axis=1).flatten()

    def lengths(bounds: NDArray[np.int32]) -> NDArray[np.int32]:
        counted = np.diff(bounds)
        counted[1::2] = 0
        return counted

    parts = [
        *(long.keys, long.queries, long.others, ends - 1, long.key_bounds),
        *(long.query_bounds, lengths(long.query_bounds), last_bounds, lengths(last_bounds)),
    ]
    begins = [0, *accumulate(-(-len(part) // _ALIGNMENT) * _ALIGNMENT for part in parts)]
    on_host = torch.zeros(begins[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
    array = on_host.numpy()
    for part, begin in zip(parts, begins, strict=False):
        array[begin : begin + len(part)] = part
    on_device = on_host.to(device, non_blocking=True)
    keys, queries, others, last_queries, key_bounds, bounds, counts, last, last_counts = (
        on_device[begin : begin + len(part)] for part, begin in zip(parts, begins, strict=False)
    )
    # Both get the same upper bounds, because a library may compile or choose another kernel for a single query.
    most = int((ends - starts).max()), int(np.diff(long.key_bounds).max())
    return LongTensors(
        *(keys, queries, others, last_queries),
        sequences=Sequences(bounds, counts, key_bounds, *most),
        last_sequences=Sequences(last, last_counts, key_bounds, *most),
    )
