"""The memory of one size class: everything that a pass gives the GPU, at addresses that never change.

A pass is written into one pinned buffer on the host and copied in one transfer. Compiled code sees the same tensors in
every pass, so nothing is compiled anew, and a CUDA graph that was recorded over them can be replayed.
"""

from __future__ import annotations

from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..attention.flex import TILE, find_tiles, mask_of, padded_bounds, padded_length, write_tiles
from ..attention.work_items import FIELDS, plan, room_for

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from ..attention.layout import PackedPass

# The official suffix alone is nine tokens, so that rows in the models' own templates never have more documents.
TOKENS_PER_DOCUMENT = 8

# Compiled code assumes that its inputs lie at multiples of 16 bytes; this is four cache lines of 32.
_ALIGNMENT = 32


# The official prefix alone has so many with the default instruction; rows of shorter requests are padded for it.
TOKENS_PER_REQUEST = 64


def row_length(num_tokens: int, num_documents: int, per_octave: int, num_requests: int = 1) -> int:
    """The size class of a pass: room for its tokens, and for so many documents and requests."""
    room = max(num_tokens, num_documents * TOKENS_PER_DOCUMENT, num_requests * TOKENS_PER_REQUEST)
    return padded_length(room, per_octave)


def row_lengths(token_budget: int, per_octave: int) -> list[int]:
    """The size classes of passes within a budget, shortest first; the last holds the budget itself."""
    lengths = [padded_length(1, per_octave)]
    while lengths[-1] < token_budget:
        lengths.append(padded_length(lengths[-1] + 1, per_octave))
    return lengths


class StaticRow:
    """A row of `length` tokens on a device; `write` makes it another pass.

    Args:
        length: a multiple of TILE.
        device: a CPU or a GPU.
        tile_columns: of the block mask, whose tiles have TILE rows.
        tokens_per_program: for our own kernels, see `programs.plan`; None for a block mask.

    Attributes:
        token_ids, position_ids: int32 [length]; 0 in the padding.
        last_positions: int32 [length / TOKENS_PER_DOCUMENT], where documents end; 0 where there is none.
        segment_start: int32 [length], see `PackedPass`.
        mask: who sees whom, for FlexAttention.
        programs: int32 [room, FIELDS], the same for our own kernels, see `programs.plan`.
    """

    mask: BlockMask
    programs: torch.Tensor

    def __init__(
        self, length: int, device: torch.device, tile_columns: int = TILE, tokens_per_program: int | None = None
    ) -> None:
        self.length, self.tile_columns, self.tokens_per_program = length, tile_columns, tokens_per_program
        shapes: dict[str, tuple[int, ...]] = {
            "token_ids": (length,),
            "position_ids": (length,),
            "last_positions": (length // TOKENS_PER_DOCUMENT,),
            "segment_start": (length,),
        }
        if tokens_per_program is None:
            tiles = (length // TILE, length // tile_columns)
            shapes |= {
                "prefix_start": (length,),
                "prefix_end": (length,),
                "partial_counts": tiles[:1],
                "partial_indices": tiles,
                "full_counts": tiles[:1],
                "full_indices": tiles,
            }
        else:
            shapes["programs"] = (room_for(length, tokens_per_program), FIELDS)
        sizes = [-(-prod(shape) // _ALIGNMENT) * _ALIGNMENT for shape in shapes.values()]
        starts = [0, *accumulate(sizes)]
        staging = torch.zeros(starts[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
        on_device = torch.zeros(starts[-1], dtype=torch.int32, device=device)
        self._staging, self._on_device = staging, on_device
        self._transferred: Any = None
        if device.type == "cuda":
            self._transferred = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._written: dict[str, NDArray[np.int32]] = {}
        tensors: dict[str, torch.Tensor] = {}
        for (name, shape), start in zip(shapes.items(), starts, strict=False):
            here = slice(start, start + prod(shape))
            self._written[name] = staging[here].view(shape).numpy()
            tensors[name] = on_device[here].view(shape)
        self.token_ids, self.position_ids = tensors.pop("token_ids"), tensors.pop("position_ids")
        self.last_positions = tensors.pop("last_positions")
        self.segment_start = tensors["segment_start"]
        if tokens_per_program is not None:
            self.programs = tensors["programs"]
            return
        self.mask = mask_of(
            **{
                name: tensor[None, None] if "_counts" in name or "_indices" in name else tensor
                for name, tensor in tensors.items()
            }
        )

    def write(self, packed: PackedPass) -> None:
        """Make the row this pass, and queue its transfer on the current stream, behind whatever still reads the row.

        Waits only until the transfer of the pass before is over, as the buffer on the host is written anew.

        Raises:
            ValueError: the pass does not fit.
        """
        if packed.num_tokens > self.length or packed.num_documents > len(self.last_positions):
            raise ValueError(
                f"{packed.num_tokens} tokens and {packed.num_documents} documents in a row for {self.length} and "
                f"{len(self.last_positions)}"
            )
        if self._transferred is not None:
            self._transferred.synchronize()
        written = self._written
        for name in ("token_ids", "position_ids", "last_positions"):
            values = getattr(packed, name)
            written[name][: len(values)] = values
            written[name][len(values) :] = 0
        if self.tokens_per_program is None:
            self._write_mask(packed)
        else:
            self._write_programs(packed, self.tokens_per_program)
        self._on_device.copy_(self._staging, non_blocking=True)
        if self._transferred is not None:
            self._transferred.record()

    def _write_programs(self, packed: PackedPass, tokens: int) -> None:
        planned = plan(packed, tokens)
        programs, segment_start = self._written["programs"], self._written["segment_start"]
        if len(planned) > len(programs):
            raise ValueError(f"{len(planned)} programs in a row with room for {len(programs)}")
        programs[: len(planned)] = planned
        programs[len(planned) :] = 0
        segment_start[: packed.num_tokens] = packed.segment_start

    def _write_mask(self, packed: PackedPass) -> None:
        written, bounds = self._written, padded_bounds(packed, self.length)
        for name, values in zip(("segment_start", "prefix_start", "prefix_end"), bounds, strict=True):
            written[name][:] = values
        for name, tiles in zip(("partial", "full"), self._tiles(*bounds), strict=True):
            write_tiles(tiles, written[f"{name}_counts"], written[f"{name}_indices"])

    def _tiles(self, *bounds: NDArray[np.int32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return find_tiles(*bounds, columns_of=self.tile_columns)
