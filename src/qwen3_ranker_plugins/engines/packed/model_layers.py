"""A pass through the layers of the loaded model, which call our attention (`engines/attention/interface.py`).

Used on CPUs, and on GPUs where our decoder does not run, for example in float32, on GPUs older than Turing, and for
heads of a shape without kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from . import qwen3

if TYPE_CHECKING:
    from ..attention.interface import Layout
    from ..attention.layout import PackedPass


class ModelLayers:
    """Computes the margins of a pass.

    Args:
        model: a Qwen3Model whose layers pass `packed` on to our attention, see `checkpoint.load_model`.
        label_direction: float32 [width], see `LoadedModel.direction`.
        device: where the model is moved.

    Attributes:
        source: "plain" for the layers of `qwen3`, "transformers" for those of transformers.
    """

    def __init__(self, model: Any, label_direction: torch.Tensor, device: torch.device) -> None:
        self.source = "plain" if isinstance(model, qwen3.Qwen3Model) else "transformers"
        self._model: Any = model.to(device)
        self._label_direction = label_direction.to(device)
        self._device = device

    @torch.inference_mode()
    def margins(self, packed: PackedPass, layout: Layout) -> torch.Tensor:
        """Margins, float32 [num_documents], on the device."""

        def padded(values: Any) -> torch.Tensor:
            return pad(torch.from_numpy(values), (0, layout.padding)).to(self._device, non_blocking=True)

        last_positions = torch.from_numpy(packed.last_positions).to(self._device, non_blocking=True)
        hidden = self._model.embed_tokens(padded(packed.token_ids))[None]
        position_embeddings = self._model.rotary_emb(hidden, padded(packed.position_ids)[None])
        *layers, final_layer = self._model.layers
        for layer in layers:
            hidden = layer(hidden, position_embeddings=position_embeddings, packed=layout)
        hidden = _at_last_positions(final_layer, hidden, last_positions, position_embeddings, layout)
        last: torch.Tensor = self._model.norm(hidden[0].float())
        margins: torch.Tensor = last @ self._label_direction
        return margins


def _at_last_positions(
    layer: Any,
    hidden: torch.Tensor,
    last_positions: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    layout: Layout,
) -> torch.Tensor:
    """What a decoder layer returns at a few positions: [1, positions, width] instead of [1, tokens, width].

    After the attention of the final layer, no token depends on another one. The feed-forward part, most of a layer's
    arithmetic, is therefore computed only where the margin is read.
    """
    attended, _ = layer.self_attn(
        hidden_states=layer.input_layernorm(hidden),
        attention_mask=None,
        position_embeddings=position_embeddings,
        packed=layout,
    )
    hidden = hidden[:, last_positions] + attended[:, last_positions]
    transformed: torch.Tensor = layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden + transformed
