"""Chooses the implementation of shared-prefix attention for a device; has the attention function for transformers.

transformers' own layers run unchanged on a packed row of tokens: they pass the layout through to the attention function
as the keyword argument `packed`. Our own decoder (`engines/packed/decoder.py`) does not use this module; its attention
kernel is chosen together with the decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..devices import capability
from .sdpa import SdpaLayout

if TYPE_CHECKING:
    from .layout import PackedPass

ATTENTION_NAME = "qwen3_ranker_shared_prefix"


class Layout(Protocol):
    """A pass, prepared for one implementation of attention. All layers use the same layout."""

    @property
    def padding(self) -> int:
        """Number of tokens that have to be appended to the row; their outputs are meaningless."""

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """Shared-prefix attention.

        Args:
            query: [1, heads, tokens, head_dim], padding included.
            key, value: [1, kv_heads, tokens, head_dim].
            scaling: factor of the products of queries and keys.

        Returns:
            The query's shape.
        """


def make_layout(packed: PackedPass, device: torch.device) -> Layout:
    """Prepare a pass for the implementation that suits the device.

    NVIDIA GPUs from Ampere on use FlexAttention, which torch compiles; all other devices use SDPA, which torch has for
    every device.
    """
    found = capability(device)
    if found is None or found < (8, 0):
        return SdpaLayout(packed, copy_heads=device.type != "cpu")
    from .flex import FlexLayout  # importing dynamo takes a second

    return FlexLayout(packed, device)


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
        ValueError: the model was called without a layout.
    """
    if packed is None:
        raise ValueError(f"the attention function {ATTENTION_NAME} needs packed=..., the layout of the pass")
    return packed.attend(query, key, value, scaling).transpose(1, 2), None


def register() -> None:
    """Make `attn_implementation=ATTENTION_NAME` known to transformers. Calling it again has no effect."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
