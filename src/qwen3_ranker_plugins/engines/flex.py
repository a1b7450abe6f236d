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
    from ..packing import PackedPass

TILE = 128


def padded_length(num_tokens: int) -> int:
    """The size class of a pass: the next multiple of TILE that has few significant bits.

    Compiled attention is specialised on the length, so there should be few lengths: four in each octave, which
    pads by a tenth on average.
    """
    step = max(TILE, 1 << max(0, (num_tokens - 1).bit_length() - 3))
    return -(-num_tokens // step) * step


def build_block_mask(packed: PackedPass, padded_length: int, device: torch.device) -> BlockMask:
    """The mask of a pass whose row is padded to `padded_length` tokens, a multiple of TILE.

    Padding tokens see themselves and each other; nothing reads what they compute.
    """
    segment_start, head_start, head_end = _padded_bounds(packed, padded_length)
    partial, full = _tiles(segment_start, head_start, head_end)
    bounds = to_device(np.stack([segment_start, head_start, head_end]), device)
    start_of_segment, start_of_head, end_of_head = bounds.unbind()

    def sees(_batch: torch.Tensor, _head: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        in_segment = column >= start_of_segment[row]
        in_head = (column >= start_of_head[row]) & (column < end_of_head[row])
        return (column <= row) & (in_segment | in_head)

    def counts_and_indices(tiles: NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
        counts = tiles.sum(axis=1, dtype=np.int32)
        indices = np.argsort(~tiles, axis=1, kind="stable").astype(np.int32)
        return to_device(counts[None, None], device), to_device(indices[None, None], device)

    return BlockMask.from_kv_blocks(
        *counts_and_indices(partial),
        *counts_and_indices(full),
        BLOCK_SIZE=TILE,
        mask_mod=sees,
        seq_lengths=(padded_length, padded_length),
        compute_q_blocks=False,
    )


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device, queued without waiting for it where the device is a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _padded_bounds(packed: PackedPass, padded_length: int) -> tuple[NDArray[np.int32], ...]:
    """Bounds per token, with the padding as one more segment that sees no head."""
    padding = padded_length - packed.num_tokens
    return tuple(
        np.concatenate([bounds, np.full(padding, fill, dtype=np.int32)])
        for bounds, fill in (
            (packed.segment_start, packed.num_tokens),
            (packed.head_start, packed.num_tokens),
            (packed.head_end, packed.num_tokens),
        )
    )


def _tiles(
    segment_start: NDArray[np.int32], head_start: NDArray[np.int32], head_end: NDArray[np.int32]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(tiles that hold a visible pair but not only such, tiles of visible pairs only), each [rows, columns]."""
    first, last = slice(0, None, TILE), slice(TILE - 1, None, TILE)
    tile = np.arange(len(segment_start) // TILE)
    row, column = tile[:, None], tile[None, :]
    start, end = column * TILE, (column + 1) * TILE  # of each column of tiles

    # Segments follow one another, so the segments of a row of tiles cover one range, which ends at the diagonal;
    # heads lie at the start of their requests, so a row's heads lie between its first token's and its last one's.
    touched = (end > segment_start[first][:, None]) & (column <= row)
    for token in (first, last):
        touched |= (end > head_start[token][:, None]) & (start < head_end[token][:, None]) & (column <= row)
    # A head between those two belongs to a request that begins and ends inside the row of tiles: on the diagonal.

    same_segment = (segment_start[first] == segment_start[last])[:, None]
    same_head = (head_start[first] == head_start[last])[:, None]
    below = column < row
    full = below & same_segment & (start >= segment_start[first][:, None])
    full |= below & same_head & (start >= head_start[first][:, None]) & (end <= head_end[first][:, None])
    return touched & ~full, full


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
