"""Shared-prefix attention: every token sees its request's prefix and the earlier tokens of its own document.

Registered with transformers' attention interface, so that the model's own layers run unchanged on a packed
row of tokens. The layout reaches the function as the keyword argument `packed`, which transformers hands
through to the attention function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from .layout import Block, PackedPass, SegmentGroup

if TYPE_CHECKING:
    from typing import TypeAlias

    from torch.nn.attention.flex_attention import BlockMask

    #: What attention needs to know about a pass, see `make_layout`.
    Layout: TypeAlias = "CpuLayout | BlockMask"

ATTENTION_NAME = "qwen3_ranker_shared_prefix"

# Above this many tokens a document's queries are padded with the prefix's to a square, where SDPA needs no mask
# and skips what lies above the diagonal; below, the rows saved are worth more.
_MASKED_LENGTH = 512


# A group's documents go through SDPA in slices of about this many keys, each document with a copy of the prefix's: more
# would not be faster, and a long prefix before many short documents would take gigabytes.
_KEYS_PER_SLICE = 16384


class CpuLayout:
    """A packed pass for SDPA: documents of equal length form a batch, with the prefix's keys and values in front."""

    def __init__(self, packed: PackedPass) -> None:
        self._blocks = packed.blocks
        self._masks: dict[tuple[int, int, int], torch.Tensor] = {}  # the same for every layer

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """Shapes: query [heads, tokens, head_dim], key and value [kv_heads, tokens, head_dim]; returns the query's."""
        output = torch.empty_like(query)
        for block in self._blocks:
            prefix = slice(block.prefix_start, block.prefix_end)
            output[:, prefix] = _causal(query[None, :, prefix], key[None, :, prefix], value[None, :, prefix], scaling)[
                0
            ]
            for group in block.groups:
                at_once = max(1, _KEYS_PER_SLICE // (block.prefix_length + group.length))
                for part in group.slices(at_once):
                    self._attend_group(output, (query, key, value), block, part, scaling)
        return output

    def _attend_group(
        self,
        output: torch.Tensor,
        states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        block: Block,
        group: SegmentGroup,
        scaling: float,
    ) -> None:
        """Attention of `group`'s documents, written into `output`."""
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
            attended = _causal(with_prefix(query), keys, values, scaling)[:, :, block.prefix_length :]
        else:
            # Query heads that share a kv head become rows of one product, so that no key is copied for them.
            rows = as_batch(query).reshape(group.count, kv_heads, -1, width)
            mask = self._mask(group.length, block.prefix_length, heads // kv_heads, rows.dtype)
            attended = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
            attended = attended.reshape(group.count, heads, group.length, width)
        output[:, here] = attended.transpose(0, 1).flatten(1, 2)

    def _mask(self, length: int, prefix_length: int, copies: int, dtype: torch.dtype) -> torch.Tensor:
        """[copies * length, keys]: 0 where a document's token may see the key (prefix, then document), else -inf.

        Not boolean, which SDPA would turn into this in every layer.
        """
        shape = (length, prefix_length, copies)
        if shape not in self._masks:
            hidden = torch.full((length, prefix_length + length), -torch.inf, dtype=dtype).triu(
                diagonal=prefix_length + 1
            )
            self._masks[shape] = hidden.repeat(copies, 1)
        return self._masks[shape]


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal attention over a square, [batch, heads, length, head_dim]."""
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)


def make_layout(packed: PackedPass, device: torch.device) -> tuple[Layout, int]:
    """(what attention needs to know about a pass, how many tokens of padding the device wants behind it)."""
    if device.type == "cpu":
        return CpuLayout(packed), 0
    from .flex import build_block_mask, padded_length

    length = padded_length(packed.num_tokens)
    return build_block_mask(packed, length, device), length - packed.num_tokens


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float) -> torch.Tensor:
    """Shared-prefix attention.

    Args:
        query: [1, heads, tokens, head_dim].
        key, value: [1, kv_heads, tokens, head_dim].
        layout: as of `make_layout`, for so many tokens, padding included.
        scaling: of the products.

    Returns:
        The query's shape.
    """
    if isinstance(layout, CpuLayout):
        return layout.attend(query[0], key[0], value[0], scaling)[None]
    from .flex import flex_attend

    return flex_attend(query, key, value, layout, scaling)


def shared_prefix_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    scaling: float,
    packed: Layout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function for transformers: query [1, heads, tokens, head_dim] -> [1, tokens, heads, head_dim].

    Raises:
        ValueError: the model was called without a packed layout.
    """
    if packed is None:
        raise ValueError(f"the attention function {ATTENTION_NAME} needs packed=..., the layout of the pass")
    return attend(query, key, value, packed, scaling).transpose(1, 2), None


def register() -> None:
    """Make `attn_implementation=ATTENTION_NAME` known to transformers. Repeating it does no harm."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
