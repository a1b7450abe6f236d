"""The buffers of a size class: everything that a pass sends to the GPU, at addresses that never change.

A pass is written into one pinned buffer on the host and copied in one transfer. The decoder sees the same tensors in
every pass, so that a CUDA graph that was recorded over them can be replayed.
"""

from __future__ import annotations

from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..attention.layout import padded_length
from ..attention.varlen import LongTensors, find_long_segments, to_device
from ..attention.work_items import FIELDS, list_work_items, most_items

if TYPE_CHECKING:
    from ..attention.layout import PackedPass

# A size class of n tokens has room for n / 8 documents and n / 64 requests, so that the number of tokens alone decides
# the size class. With the models' own templates this room is always enough: the official suffix alone has 9 tokens, and
# the official prefix with the default instruction has 64. A pass of shorter documents or requests gets a larger class.
TOKENS_PER_DOCUMENT = 8
_TOKENS_PER_REQUEST = 64

# Tensors begin at multiples of this many int32, a cache line of a GPU. Kernels need 16 bytes only.
_ALIGNMENT = 32


def size_class(num_tokens: int, num_documents: int, per_octave: int, num_requests: int = 1) -> int:
    """Length of the smallest buffers with room for a pass.

    Args:
        num_tokens, num_documents, num_requests: what the pass holds.
        per_octave: number of size classes between a length and its double.
    """
    room = max(num_tokens, num_documents * TOKENS_PER_DOCUMENT, num_requests * _TOKENS_PER_REQUEST)
    return padded_length(room, per_octave)


def size_classes(token_budget: int, per_octave: int) -> list[int]:
    """Lengths of the size classes for passes within a budget, in ascending order; only the last reaches the budget."""
    lengths = [padded_length(1, per_octave)]
    while lengths[-1] < token_budget:
        lengths.append(padded_length(lengths[-1] + 1, per_octave))
    return lengths


class PassBuffers:
    """Holds one pass at a time on a device; `write` replaces it.

    Args:
        length: number of tokens for which there is room, see `size_class`.
        device: a CPU or a GPU.
        tokens_per_item: maximum number of tokens of a work item, see `work_items.list_work_items`.

    Attributes:
        token_ids, position_ids: int32 [length]; 0 in the padding.
        last_positions: int32 [length / TOKENS_PER_DOCUMENT], where documents end; 0 where there is none.
        segment_start: int32 [length], see `PackedPass`.
        work_items: int32 [room, FIELDS], see `work_items.list_work_items`; 0 where there is none.
        num_items: number of work items of the pass.
        long: the long documents; None if all documents have work items.
    """

    def __init__(self, length: int, device: torch.device, tokens_per_item: int) -> None:
        self.length = length
        self.num_items = 0
        self.long: LongTensors | None = None
        self._device = device
        self._tokens_per_item = tokens_per_item
        shapes: dict[str, tuple[int, ...]] = {
            "token_ids": (length,),
            "position_ids": (length,),
            "last_positions": (length // TOKENS_PER_DOCUMENT,),
            "segment_start": (length,),
            "work_items": (most_items(length, tokens_per_item), FIELDS),
        }
        sizes = [-(-prod(shape) // _ALIGNMENT) * _ALIGNMENT for shape in shapes.values()]
        starts = [0, *accumulate(sizes)]
        self._on_host = torch.zeros(starts[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
        self._on_device = torch.zeros(starts[-1], dtype=torch.int32, device=device)
        self._transferred: Any = None
        if device.type == "cuda":
            self._transferred = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrays: dict[str, NDArray[np.int32]] = {}  # parts of the buffer on the host
        tensors: dict[str, torch.Tensor] = {}
        for (name, shape), start in zip(shapes.items(), starts, strict=False):
            here = slice(start, start + prod(shape))
            self._arrays[name] = self._on_host[here].view(shape).numpy()
            tensors[name] = self._on_device[here].view(shape)
        self.token_ids, self.position_ids = tensors["token_ids"], tensors["position_ids"]
        self.last_positions = tensors["last_positions"]
        self.segment_start, self.work_items = tensors["segment_start"], tensors["work_items"]

    def write(self, packed: PackedPass, shortest_long: int | None = None) -> None:
        """Write a pass and queue its transfer on the current stream, after whatever still reads the previous one.

        The host waits only until the transfer of the previous pass is over, because both use the same host buffer.

        Args:
            packed: the pass.
            shortest_long: documents of at least this many tokens get no work items, see `varlen.is_long`; None gives
                work items to all. Must be None for a pass that a CUDA graph computes, because each pass has a new
                `long`.

        Raises:
            ValueError: the pass does not fit.
        """
        if packed.num_tokens > self.length or packed.num_documents > len(self.last_positions):
            raise ValueError(
                f"{packed.num_tokens} tokens and {packed.num_documents} documents in buffers for {self.length} and "
                f"{len(self.last_positions)}"
            )
        items = list_work_items(packed, self._tokens_per_item, shortest_long)
        if len(items) > len(self.work_items):
            raise ValueError(f"{len(items)} work items in buffers for {len(self.work_items)}")
        self.num_items = len(items)
        if self._transferred is not None:
            self._transferred.synchronize()
        values: dict[str, NDArray[Any]] = {
            "token_ids": packed.token_ids,
            "position_ids": packed.position_ids,
            "last_positions": packed.last_positions,
            "work_items": items,
        }
        for name, value in values.items():
            self._arrays[name][: len(value)] = value
            self._arrays[name][len(value) :] = 0
        self._arrays["segment_start"][: packed.num_tokens] = packed.segment_start  # the rest has no work item
        self._on_device.copy_(self._on_host, non_blocking=True)
        if self._transferred is not None:
            self._transferred.record()
        long = None if shortest_long is None else find_long_segments(packed, shortest_long)
        self.long = None if long is None else to_device(long, self._device)
