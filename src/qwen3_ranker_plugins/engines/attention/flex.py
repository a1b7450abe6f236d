"""Shared-prefix attention on CUDA: FlexAttention with a block mask built on the host from the segments' bounds.

`create_block_mask` would evaluate the mask for every pair of tokens; the bounds already say which 128 x 128
tiles hold anything, and which hold everything.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch._dynamo.config as dynamo_config
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import BlockMask, flex_attention

if TYPE_CHECKING:
    from .layout import PackedPass

TILE = 128


def padded_length(num_tokens: int, per_octave: int = 4) -> int:
    """The size class of a pass: the next multiple of TILE that has few significant bits.

    Compiled attention is specialised on the length, so there should be few lengths: `per_octave` (a power of two)
    between a length and its double. Four pad by a tenth on average, eight by a twentieth.
    """
    step = max(TILE, (1 << max(0, (num_tokens - 1).bit_length() - 1)) // per_octave)
    return -(-num_tokens // step) * step


def build_block_mask(packed: PackedPass, padded_length: int, device: torch.device) -> BlockMask:
    """The mask of a pass whose row is padded to `padded_length` tokens, a multiple of TILE.

    Padding tokens see themselves and each other; nothing reads what they compute.
    """
    bounds = padded_bounds(packed, padded_length)
    partial, full = find_tiles(*bounds)

    def counts_and_indices(tiles: NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
        counts, indices = np.zeros(len(tiles), dtype=np.int32), np.zeros(tiles.shape, dtype=np.int32)
        write_tiles(tiles, counts, indices)
        return to_device(counts[None, None], device), to_device(indices[None, None], device)

    segment_start, prefix_start, prefix_end = to_device(np.stack(bounds), device).unbind()
    return mask_of(segment_start, prefix_start, prefix_end, *counts_and_indices(partial), *counts_and_indices(full))


def mask_of(
    segment_start: torch.Tensor,
    prefix_start: torch.Tensor,
    prefix_end: torch.Tensor,
    partial_counts: torch.Tensor,
    partial_indices: torch.Tensor,
    full_counts: torch.Tensor,
    full_indices: torch.Tensor,
) -> BlockMask:
    """A block mask that reads all it knows about a pass from these tensors, so that other numbers are another pass.

    Args:
        segment_start, prefix_start, prefix_end: int32 [tokens], see `PackedPass`.
        partial_counts, full_counts: int32 [1, 1, rows of tiles], how many tiles of each row hold a visible pair but
            not only such, and how many hold visible pairs only.
        partial_indices, full_indices: int32 [1, 1, rows, columns of tiles], which they are; the rest is not read.
    """
    length = len(segment_start)

    def sees(_batch: torch.Tensor, _head: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        in_segment = column >= segment_start[row]
        in_prefix = (column >= prefix_start[row]) & (column < prefix_end[row])
        return (column <= row) & (in_segment | in_prefix)

    return BlockMask.from_kv_blocks(
        partial_counts,
        partial_indices,
        full_counts,
        full_indices,
        BLOCK_SIZE=(TILE, length // partial_indices.shape[-1]),
        mask_mod=sees,
        seq_lengths=(length, length),
        compute_q_blocks=False,
    )


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device, queued without waiting for it where the device is a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def padded_bounds(packed: PackedPass, padded_length: int) -> tuple[NDArray[np.int32], ...]:
    """Start of segment, start and end of prefix of each token, with the padding as a segment without a prefix."""
    padding = padded_length - packed.num_tokens
    return tuple(
        np.concatenate([bounds, np.full(padding, packed.num_tokens, dtype=np.int32)])
        for bounds in (packed.segment_start, packed.prefix_start, packed.prefix_end)
    )


def find_tiles(
    segment_start: NDArray[np.int32],
    prefix_start: NDArray[np.int32],
    prefix_end: NDArray[np.int32],
    *,
    columns_of: int = TILE,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(tiles that hold a visible pair but not only such, tiles of visible pairs only), each [rows, columns].

    A tile is TILE rows by `columns_of` columns, which divides TILE.
    """
    first, last = slice(0, None, TILE), slice(TILE - 1, None, TILE)
    length = len(segment_start)
    # Of one type, since numpy compares numbers of two types in twice the time.
    row_start = np.arange(0, length, TILE, dtype=np.int32)[:, None]
    start = np.arange(0, length, columns_of, dtype=np.int32)[None, :]  # of each column of tiles
    end = start + columns_of

    # Segments follow one another, so the segments of a row of tiles cover one range, which ends at the diagonal;
    # heads lie at the start of their requests, so a row's heads lie between its first token's and its last one's.
    reached = start < row_start + TILE
    touched = (end > segment_start[first][:, None]) & reached
    for token in (first, last):
        touched |= (end > prefix_start[token][:, None]) & (start < prefix_end[token][:, None]) & reached
    # A prefix between those two belongs to a request that begins and ends inside the row of tiles: on the diagonal.

    same_segment = (segment_start[first] == segment_start[last])[:, None]
    same_prefix = (prefix_start[first] == prefix_start[last])[:, None]
    below = end <= row_start
    full = below & same_segment & (start >= segment_start[first][:, None])
    full |= below & same_prefix & (start >= prefix_start[first][:, None]) & (end <= prefix_end[first][:, None])
    return touched & ~full, full


def write_tiles(tiles: NDArray[np.bool_], counts: NDArray[np.int32], indices: NDArray[np.int32]) -> None:
    """Write how many tiles of each row are set, [rows], and which, [rows, columns]; behind them, nothing is written."""
    rows, columns = np.nonzero(tiles)
    counts[:] = tiles.sum(axis=1, dtype=np.int32)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    indices[rows, place] = columns


@lru_cache(maxsize=1)
def _compiled() -> Any:
    """FlexAttention compiled, once for each padded length.

    It is only fast, and only saves memory, when compiled. `fullgraph` makes dynamo raise where it would otherwise go
    on uncompiled, with a matrix of all scores.
    """
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def many_lengths() -> AbstractContextManager[None]:
    """Dynamo may compile as often as there are padded lengths; by default it would stop at 8."""
    limits: AbstractContextManager[None] = dynamo_config.patch(recompile_limit=512, accumulated_recompile_limit=4096)
    return limits


def flex_attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scaling: float
) -> torch.Tensor:
    """Shapes as in `shared_prefix_attention`; key and value may have fewer heads."""
    grouped = query.shape[1] != key.shape[1]
    with many_lengths():
        output: torch.Tensor = _compiled()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped)
    return output
