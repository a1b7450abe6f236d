"""Shared-prefix attention on any CUDA GPU: FlexAttention with a block mask built on the host.

`create_block_mask` would evaluate the mask for every pair of tokens. The bounds of the segments are enough to tell
which 128 x 128 tiles hold a visible pair, and which hold visible pairs only.
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

from .layout import LENGTH_UNIT, padded_length

if TYPE_CHECKING:
    from .layout import PackedPass

#: Rows and columns of a tile. A padded row consists of whole tiles.
TILE = LENGTH_UNIT


class FlexLayout:
    """The layout of a pass for FlexAttention, which is compiled once for each padded length.

    Args:
        packed: the pass.
        device: where the mask is used.

    Attributes:
        padding: see `interface.Layout`.
        mask: block mask over the padded row. Padding tokens see themselves and each other.
    """

    def __init__(self, packed: PackedPass, device: torch.device) -> None:
        length = padded_length(packed.num_tokens)
        self.padding = length - packed.num_tokens
        self.mask = _build_block_mask(packed, length, device)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """See `interface.Layout`."""
        grouped = query.shape[1] != key.shape[1]
        with many_lengths():
            output: torch.Tensor = _compiled()(
                query, key, value, block_mask=self.mask, scale=scaling, enable_gqa=grouped
            )
        return output


@lru_cache(maxsize=1)
def _compiled() -> Any:
    """FlexAttention, compiled. Uncompiled, it is slow and holds a matrix of all scores in memory.

    `fullgraph` makes dynamo raise an error where it would otherwise fall back to uncompiled code.
    """
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def many_lengths() -> AbstractContextManager[None]:
    """Let dynamo compile once for each padded length; by default it stops after 8 compilations."""
    limits: AbstractContextManager[None] = dynamo_config.patch(recompile_limit=512, accumulated_recompile_limit=4096)
    return limits


def _build_block_mask(packed: PackedPass, length: int, device: torch.device) -> BlockMask:
    """The mask of a pass whose row is padded to `length` tokens, a multiple of TILE."""
    padding = length - packed.num_tokens
    # The padding is one more segment, without a prefix.
    bounds = [
        np.concatenate([each, np.full(padding, packed.num_tokens, dtype=np.int32)])
        for each in (packed.segment_start, packed.prefix_start, packed.prefix_end)
    ]
    segment_start, prefix_start, prefix_end = _to_device(np.stack(bounds), device).unbind()

    def sees(_batch: torch.Tensor, _head: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        in_segment = column >= segment_start[row]
        in_prefix = (column >= prefix_start[row]) & (column < prefix_end[row])
        return (column <= row) & (in_segment | in_prefix)

    partial, full = _find_tiles(*bounds)
    return BlockMask.from_kv_blocks(
        *_counts_and_indices(partial, device),
        *_counts_and_indices(full, device),
        BLOCK_SIZE=(TILE, TILE),
        mask_mod=sees,
        seq_lengths=(length, length),
        compute_q_blocks=False,
    )


def _find_tiles(
    segment_start: NDArray[np.int32], prefix_start: NDArray[np.int32], prefix_end: NDArray[np.int32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(tiles with visible and hidden pairs, tiles of visible pairs only), each [rows of tiles, columns of tiles]."""
    first, last = slice(0, None, TILE), slice(TILE - 1, None, TILE)
    # All arrays have the same dtype, because numpy takes twice as long to compare numbers of two dtypes.
    row_start = np.arange(0, len(segment_start), TILE, dtype=np.int32)[:, None]
    start = row_start.T
    end = start + TILE

    # Segments are contiguous, so the segments of a row of tiles cover one range, which ends at the diagonal. Prefixes
    # lie at the start of their requests, so a row's prefixes lie between its first token's and its last token's.
    reached = start < row_start + TILE
    touched = (end > segment_start[first][:, None]) & reached
    for token in (first, last):
        touched |= (end > prefix_start[token][:, None]) & (start < prefix_end[token][:, None]) & reached
    # Any prefix between those two belongs to a request that begins and ends within this row of tiles, so it lies in the
    # tile on the diagonal.

    same_segment = (segment_start[first] == segment_start[last])[:, None]
    same_prefix = (prefix_start[first] == prefix_start[last])[:, None]
    below = end <= row_start
    full = below & same_segment & (start >= segment_start[first][:, None])
    full |= below & same_prefix & (start >= prefix_start[first][:, None]) & (end <= prefix_end[first][:, None])
    return touched & ~full, full


def _counts_and_indices(tiles: NDArray[np.bool_], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """How many tiles of each row are set, int32 [1, 1, rows], and which ones, int32 [1, 1, rows, columns].

    Indices after a row's count are not read.
    """
    rows, columns = np.nonzero(tiles)
    counts = tiles.sum(axis=1, dtype=np.int32)
    indices = np.zeros(tiles.shape, dtype=np.int32)
    indices[rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)] = columns
    return _to_device(counts[None, None], device), _to_device(indices[None, None], device)


def _to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device; the host does not wait for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
