"""Qwen3's decoder over a static row: fused weights, pieces of our own between the matrix products.

The products are the vendor's library's, called as they are. Between them lie three pieces that all layers share: the
norm, the way from the fused q/k/v product through rotary embeddings and attention, and the gate of the feed-forward
part. In half precision on an NVIDIA GPU they are Triton kernels (`kernels`); elsewhere torch compiles them, with
FlexAttention for each length. The residual is added inside the products that precede it (`addmm_`), which saves writing
and reading what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import embedding, silu

from ...errors import UnsupportedModelError
from ..attention.work_items import tokens_of_a_program
from ..devices import capability
from .options import kernels_run

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from .buffers import StaticRow

# RMSNorm and the gate are compiled for any number of rows; the number that they are compiled with is what their
# kernels are tuned for.
_TUNED_FOR = 4096


class LayerWeights(NamedTuple):
    """One decoder layer. Matrices are [outputs, inputs], as the checkpoint has them.

    Attributes:
        input_norm, feed_forward_norm: [width].
        query_key_value: [(heads + 2 * kv_heads) * head_dim, width].
        query_norm, key_norm: [head_dim].
        output: [width, heads * head_dim].
        gate_up: [2 * feed_forward, width].
        down: [width, feed_forward].
    """

    input_norm: torch.Tensor
    query_key_value: torch.Tensor
    query_norm: torch.Tensor
    key_norm: torch.Tensor
    output: torch.Tensor
    feed_forward_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


@dataclass(frozen=True)
class DecoderWeights:
    """All of the model but its output matrix.

    Attributes:
        embedding: [vocabulary, width].
        layers: in order.
        norm: [width], the final norm.
        label_direction: float32 [width], see `PackedEngine`.
        inverse_frequencies: float32 [head_dim / 2], of the rotary embeddings.
        rotary_scaling: factor of their cosines and sines.
        heads, kv_heads, head_dim, epsilon: as in the model's configuration.
    """

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    label_direction: torch.Tensor
    inverse_frequencies: torch.Tensor
    rotary_scaling: float
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float


def take_weights(model: Any, label_direction: torch.Tensor, device: torch.device) -> DecoderWeights:
    """Move the weights out of transformers' Qwen3Model, which keeps no layers: nothing is in memory twice.

    Raises:
        UnsupportedModelError: it has biases, or another activation than SiLU.
    """
    config = model.config
    if config.hidden_act != "silu" or config.attention_bias:
        raise UnsupportedModelError(
            f"the compiled path has no biases and SiLU only, the model has hidden_act={config.hidden_act!r} and "
            f"attention_bias={config.attention_bias}: leave engine_options['compile'] out"
        )
    layers = []
    while len(model.layers):
        layers.append(_fused(model.layers.pop(0), device))
    return DecoderWeights(
        embedding=model.embed_tokens.weight.detach().to(device),
        layers=tuple(layers),
        norm=model.norm.weight.detach().to(device),
        label_direction=label_direction.to(device),
        inverse_frequencies=model.rotary_emb.inv_freq.float().to(device),
        rotary_scaling=float(model.rotary_emb.attention_scaling),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        epsilon=config.rms_norm_eps,
    )


def _fused(layer: Any, device: torch.device) -> LayerWeights:
    attention, feed_forward = layer.self_attn, layer.mlp

    def moved(*modules: Any) -> torch.Tensor:
        weights = [module.weight.detach() for module in modules]
        return (torch.cat(weights) if len(weights) > 1 else weights[0]).to(device)

    return LayerWeights(
        input_norm=moved(layer.input_layernorm),
        query_key_value=moved(attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=moved(attention.q_norm),
        key_norm=moved(attention.k_norm),
        output=moved(attention.o_proj),
        feed_forward_norm=moved(layer.post_attention_layernorm),
        gate_up=moved(feed_forward.gate_proj, feed_forward.up_proj),
        down=moved(feed_forward.down_proj),
    )


class Decoder:
    """Margins of a static row.

    Args:
        weights: see `take_weights`.
        backend: of torch.compile; tests count with one of their own.

    Attributes:
        allows_kernels: whether to take our own kernels where they can be used.
        kernel_options: of FlexAttention, or of `kernels.attend`; None leaves them to either.
        tokens_per_program: what rows have to be made for, see `StaticRow`; None if pieces are compiled.
    """

    allows_kernels = True
    kernel_options: Mapping[str, Any] | None = None

    def __init__(self, weights: DecoderWeights, backend: str | Callable[..., Any] = "inductor") -> None:
        self.weights = weights
        self.tokens_per_program: int | None = None
        if self.takes_kernels(weights):
            from ..attention import kernels

            tokens = tokens_of_a_program(weights.heads, weights.kv_heads)
            self.tokens_per_program = (self.kernel_options or {}).get("tokens", tokens)
            self._kernels = kernels
            self._normed, self._gated = kernels.rms_norm, kernels.gated
            return
        # Not dynamic, so that a second model in the process has kernels of its own width; the rows are marked.
        self._normed = torch.compile(rms_norm, fullgraph=True, dynamic=False, backend=backend)
        self._gated = torch.compile(gated, fullgraph=True, dynamic=False, backend=backend)
        # Only fast, and only small in memory, when compiled. `fullgraph` makes dynamo raise where it would otherwise
        # go on uncompiled, with a matrix of all scores.
        self._attended = torch.compile(attended, fullgraph=True, dynamic=False, backend=backend)

    def takes_kernels(self, weights: DecoderWeights) -> bool:
        """Whether our own kernels do what lies between the products."""
        return self.allows_kernels and kernels_support(weights)

    @property
    def pieces(self) -> str:
        """What lies between the products, for people."""
        return "ours, compiled by torch" if self.tokens_per_program is None else "ours, with our kernels"

    def compile_for_any_length(self) -> None:
        """Compile what does not depend on the size class."""
        if self.tokens_per_program is not None:
            return
        first = self.weights.layers[0]
        hidden = first.input_norm.new_zeros(_TUNED_FOR, len(first.input_norm))
        gate_up = first.input_norm.new_zeros(_TUNED_FOR, len(first.gate_up))
        for tensor in (hidden, gate_up):
            torch._dynamo.mark_dynamic(tensor, 0)  # noqa: SLF001 - this is how torch documents it
        self._normed(hidden, first.input_norm, self.weights.epsilon)
        self._gated(gate_up)

    def __call__(self, row: StaticRow) -> torch.Tensor:
        """Margins, float32 [documents that the row has room for]. Nothing in here waits for the device."""
        hidden = embedding(row.token_ids, self.weights.embedding)
        rotation = self._rotation(row)
        *layers, final_layer = self.weights.layers
        for layer in layers:
            seen = self._attention(hidden, layer, rotation, row)
            hidden = self._feed_forward(self._add_product(hidden, seen, layer.output), layer)
        return self._margins(hidden, final_layer, rotation, row)

    def _margins(
        self, hidden: torch.Tensor, layer: LayerWeights, rotation: tuple[torch.Tensor, torch.Tensor], row: StaticRow
    ) -> torch.Tensor:
        """The final layer and what follows; behind its attention no token looks at another one."""
        seen = self._attention(hidden, layer, rotation, row)
        hidden, seen = (states.index_select(0, row.last_positions) for states in (hidden, seen))
        hidden = self._feed_forward(self._add_product(hidden, seen, layer.output), layer)
        last = rms_norm(hidden.float(), self.weights.norm, self.weights.epsilon)
        return last @ self.weights.label_direction

    def _rotation(self, row: StaticRow) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines, and sines that are negative in the first half, each float32 [tokens, 1, head_dim].

        For our own kernels, cosines and sines are [tokens, head_dim / 2].
        """
        angles = row.position_ids[:, None, None] * self.weights.inverse_frequencies
        cosines, sines = angles.cos() * self.weights.rotary_scaling, angles.sin() * self.weights.rotary_scaling
        if self.tokens_per_program is not None:
            return cosines[:, 0], sines[:, 0]
        return torch.cat([cosines, cosines], dim=-1), torch.cat([-sines, sines], dim=-1)

    def _attention(
        self, hidden: torch.Tensor, layer: LayerWeights, rotation: tuple[torch.Tensor, torch.Tensor], row: StaticRow
    ) -> torch.Tensor:
        """What each token gathers from those that it sees: [tokens, heads * head_dim]."""
        normed = self._normed(hidden, layer.input_norm, self.weights.epsilon)
        return self._gathered(self._product(normed, layer.query_key_value), layer, rotation, row)

    def _gathered(
        self, products: torch.Tensor, layer: LayerWeights, rotation: tuple[torch.Tensor, torch.Tensor], row: StaticRow
    ) -> torch.Tensor:
        """The same from the product with q/k/v, [tokens, (heads + 2 * kv_heads) * head_dim]."""
        weights = self.weights
        seen: torch.Tensor
        if self.tokens_per_program is not None:
            seen = self._kernels.attend(
                *(products, row.programs, row.segment_start, *rotation, layer.query_norm, layer.key_norm),
                heads=weights.heads,
                kv_heads=weights.kv_heads,
                epsilon=weights.epsilon,
                options=self.kernel_options,
            )
            return seen
        by_head = products.view(1, len(products), -1, weights.head_dim)
        # Cut here and not in the compiled piece: the compiler for CPUs loses where in the product the values begin.
        query, key, value = torch.split(by_head, [weights.heads, weights.kv_heads, weights.kv_heads], dim=2)
        seen = self._attended(
            *(query, key, value, *rotation, layer.query_norm, layer.key_norm),
            *(row.mask, weights.epsilon, self.kernel_options),
        )
        return seen

    def _feed_forward(self, hidden: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        normed = self._normed(hidden, layer.feed_forward_norm, self.weights.epsilon)
        return self._add_product(hidden, self._gated(self._product(normed, layer.gate_up)), layer.down)

    def _product(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return states @ weight.t()

    def _add_product(self, hidden: torch.Tensor, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The residual with a product added to it, in place."""
        return hidden.addmm_(states, weight.t())


def kernels_support(weights: DecoderWeights) -> bool:
    """Whether our own kernels can compute such attention: a dtype and a GPU for them, and powers of two that fit."""
    dtype = str(weights.embedding.dtype).removeprefix("torch.")
    return (
        kernels_run(dtype, capability(weights.embedding.device))
        and weights.heads // weights.kv_heads in (1, 2, 4, 8)
        and weights.head_dim in (32, 64, 128)
    )


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm over the last dimension, in float32, rounded once."""
    wide = states.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    return (wide * scale * weight.float()).to(states.dtype)


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of the columns times the second half, in float32, rounded once."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(gate_up.dtype)


def attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    query_norm: torch.Tensor,
    key_norm: torch.Tensor,
    mask: BlockMask,
    epsilon: float,
    kernel_options: Any = None,
) -> torch.Tensor:
    """Shared-prefix attention.

    Args:
        query: [1, tokens, heads, head_dim], as the product gives it.
        key, value: [1, tokens, kv_heads, head_dim].
        cosines, sines: see `Decoder._rotation`.
        query_norm, key_norm: [head_dim].
        mask: over the tokens.
        epsilon: of the norms.
        kernel_options: of FlexAttention.

    Returns:
        [tokens, heads * head_dim].
    """
    _, tokens, heads, head_dim = query.shape
    query = rotated(query, query_norm, cosines, sines, epsilon)
    key = rotated(key, key_norm, cosines, sines, epsilon)
    # In memory a token's heads stay neighbours, in the output as well, so that nothing is copied on the way.
    output = flex_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        block_mask=mask,
        scale=head_dim**-0.5,
        enable_gqa=heads != key.shape[2],
        kernel_options=kernel_options,
    )
    seen: torch.Tensor = output.transpose(1, 2).reshape(tokens, -1)
    return seen


def rotated(
    states: torch.Tensor, norm: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """RMSNorm of each head, then rotary embeddings, in float32, rounded once: [1, tokens, heads, head_dim]."""
    normed = rms_norm(states.float(), norm, epsilon)
    # The halves change places by a roll, not by a concatenation, which the compiler would make of four loads.
    turned = normed * cosines + normed.roll(normed.shape[-1] // 2, dims=-1) * sines
    return turned.to(states.dtype)
