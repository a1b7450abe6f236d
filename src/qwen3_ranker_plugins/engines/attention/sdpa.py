"""Shared-prefix attention on any device: batches of documents of equal length through torch's SDPA, without padding."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from .layout import Block, PackedPass, SegmentGroup

# Tokens. For longer documents, each document's queries include the prefix's. There are then as many queries as keys, so
# SDPA needs no mask and skips what lies above the diagonal. For shorter documents, omitting these queries saves more.
_MASKED_LENGTH = 512

# Documents of a group are attended to in slices of about this many keys. Each document has a copy of the prefix's keys,
# so a long prefix with many short documents would otherwise take gigabytes. Larger slices are no faster.
_KEYS_PER_SLICE = 16384


class SdpaLayout:
    """The layout of a pass for SDPA.

    Args:
        packed: the pass.
        copy_heads: for causal attention, copy keys and values for each query head that shares them. Most of SDPA's fast
            kernels require this, except on a CPU.

    Attributes:
        padding: 0, see `interface.Layout`.
    """

    padding = 0

    def __init__(self, packed: PackedPass, *, copy_heads: bool = False) -> None:
        self._blocks = packed.blocks
        self.copy_heads = copy_heads
        self._masks: dict[tuple[int, int, int], torch.Tensor] = {}  # the same for every layer

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """See `interface.Layout`."""
        states = query[0], key[0], value[0]
        output = torch.empty_like(states[0])
        for block in self._blocks:
            prefix = slice(block.prefix_start, block.prefix_end)
            [output[:, prefix]] = self._causal(*(each[None, :, prefix] for each in states), scaling=scaling)
            for group in block.groups:
                at_once = max(1, _KEYS_PER_SLICE // (block.prefix_length + group.length))
                for part in group.slices(at_once):
                    self._attend_group(output, states, block, part, scaling)
        return output[None]

    def _attend_group(
        self,
        output: torch.Tensor,
        states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        block: Block,
        group: SegmentGroup,
        scaling: float,
    ) -> None:
        """Write the attention of the group's documents into `output`, [heads, tokens, head_dim]."""
        query, key, value = states
        heads, _, width = query.shape
        kv_heads = key.shape[0]
        here = slice(group.start, group.end)

        def as_batch(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[:, here].view(-1, group.count, group.length, width).transpose(0, 1)

        def with_prefix(tensor: torch.Tensor) -> torch.Tensor:
            prefix = tensor[None, :, block.prefix_start : block.prefix_end].expand(group.count, -1, -1, -1)
            return torch.cat([prefix, as_batch(tensor)], dim=2)

        keys, values = with_prefix(key), with_prefix(value)
        if group.length > _MASKED_LENGTH:
            attended = self._causal(with_prefix(query), keys, values, scaling=scaling)[:, :, block.prefix_length :]
        else:
            # Query heads that share a kv head become rows of one product, so that no key is copied for them.
            rows = as_batch(query).reshape(group.count, kv_heads, -1, width)
            mask = self._mask(group.length, block.prefix_length, heads // kv_heads, rows)
            attended = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
            attended = attended.reshape(group.count, heads, group.length, width)
        output[:, here] = attended.transpose(0, 1).flatten(1, 2)

    def _mask(self, length: int, prefix_length: int, copies: int, like: torch.Tensor) -> torch.Tensor:
        """[copies * length, keys]: 0 where a document's token may see the key (prefix, then document), else -inf.

        Not boolean, because SDPA would convert a boolean mask in every layer.
        """
        shape = (length, prefix_length, copies)
        if shape not in self._masks:
            hidden = like.new_full((length, prefix_length + length), -torch.inf).triu(diagonal=prefix_length + 1)
            self._masks[shape] = hidden.repeat(copies, 1)
        return self._masks[shape]

    def _causal(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float) -> torch.Tensor:
        """Causal attention over a square, [batch, heads, length, head_dim]."""
        if self.copy_heads:
            copies = query.shape[1] // key.shape[1]
            key, value = (each.repeat_interleave(copies, dim=1) for each in (key, value))
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=not self.copy_heads
        )
