"""Qwen3's decoder with fused weights, over the buffers of a size class.

The vendor's library computes the matrix products. Our own kernels compute what lies between them: the norm, the rotary
embeddings, shared-prefix attention and the gate of the feed-forward part. `addmm_` adds a product to the residual as it
computes it, which saves writing and reading the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.nn.functional import embedding, rms_norm

from ..attention.work_items import ROWS, tokens_per_item

if TYPE_CHECKING:
    from ..attention.gpu_kernels import Attend
    from ..attention.varlen import LongTensors, VarlenKernel
    from .buffers import PassBuffers
    from .gated_product import GatedProduct


class LayerWeights(NamedTuple):
    """One decoder layer. Matrices are [outputs, inputs], as in the checkpoint.

    Attributes:
        input_norm, feed_forward_norm: [width].
        query_key_value: [(heads + 2 * kv_heads) * head_dim, width].
        query_norm, key_norm: [head_dim].
        output: [width, heads * head_dim].
        gate_up: [2 * feed_forward, width], the rows of the gate first.
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
    """The whole model except its output matrix.

    Attributes:
        embedding: [vocabulary, width].
        layers: in order.
        norm: [width], the final norm.
        label_direction: float32 [width], see `LoadedModel.direction`.
        inverse_frequencies: float32 [head_dim / 2], of the rotary embeddings.
        rotary_scaling: factor of the cosines and sines of the rotary embeddings.
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


class Kernels(Protocol):
    """What the decoder computes between its matrix products; the module `kernels` implements it for NVIDIA GPUs."""

    def rms_norm(self, states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """RMSNorm of each row of [rows, width]."""

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """SiLU of the first half of the columns of [rows, 2 * width] times the second half: [rows, width]."""

    def rotate_keys(
        self,
        products: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        key_norm: torch.Tensor,
        *,
        heads: int,
        kv_heads: int,
        epsilon: float,
        tokens: torch.Tensor | None = None,
    ) -> None:
        """RMSNorm and rotary embeddings of the keys, in place; arguments as in `kernels.rotate_keys`."""

    def rotate_queries(
        self,
        products: torch.Tensor,
        tokens: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        query_norm: torch.Tensor,
        *,
        heads: int,
        epsilon: float,
    ) -> None:
        """The same for the queries of some tokens; arguments as in `kernels.rotate_queries`."""

    def gather_keys(
        self,
        products: torch.Tensor,
        tokens: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        key_norm: torch.Tensor,
        *,
        heads: int,
        kv_heads: int,
        epsilon: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and values of some tokens; arguments and result as in `kernels.gather_keys`."""


def take_weights(model: Any, label_direction: torch.Tensor, device: torch.device) -> DecoderWeights:
    """Move the weights out of a Qwen3Model. It loses its layers one by one, so that no weight is in memory twice."""
    config = model.config
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
    """Computes the margins of a pass.

    Args:
        weights: see `take_weights`.
        kernels: for the device of the weights.
        attend: for the device of the weights.
        varlen: computes the attention of long documents; None leaves them to `attend` as well.
        rows: number of rows of a work item's matrix of queries, as `attend` expects it.
        gated_product: computes the feed-forward part's gate inside its first product. If it is given, the matrices
            `gate_up` are interleaved, see `interleave_gates`.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        kernels: Kernels,
        attend: Attend,
        varlen: VarlenKernel | None = None,
        rows: int = ROWS,
        gated_product: GatedProduct | None = None,
    ) -> None:
        self.weights = weights
        self._kernels, self._attend, self._varlen, self._rows = kernels, attend, varlen, rows
        self._gated_product = gated_product

    @property
    def tokens_per_item(self) -> int:
        """Maximum number of tokens of a work item, which `PassBuffers` needs to know."""
        return tokens_per_item(self.weights.heads, self.weights.kv_heads, self._rows)

    @property
    def shortest_long(self) -> int | None:
        """Minimum number of tokens of a long document, see `PassBuffers`; None if no document counts as long."""
        return None if self._varlen is None else self._varlen.shortest

    @property
    def description(self) -> str:
        """Which layers run, as `EngineDescription` shows it."""
        parts = ["ours, with our kernels"]
        if self._gated_product is not None:
            parts.append(f"gates inside the products of {self._gated_product.name}")
        if self._varlen is not None:
            parts.append(f"{self._varlen.name} for documents of {self._varlen.shortest} tokens or more")
        return " and ".join(parts) if len(parts) < 3 else f"{parts[0]}, {parts[1]} and {parts[2]}"

    def __call__(self, buffers: PassBuffers) -> torch.Tensor:
        """Margins, float32 [documents that the buffers have room for]. Nothing in here waits for the device."""
        hidden = embedding(buffers.token_ids, self.weights.embedding)
        rotary = self._rotary_embeddings(buffers)
        *layers, final_layer = self.weights.layers
        for layer in layers:
            attended = self._attention(hidden, layer, rotary, buffers)
            hidden = self._feed_forward(hidden.addmm_(attended, layer.output.t()), layer)
        return self._margins(hidden, final_layer, rotary, buffers)

    def _margins(
        self,
        hidden: torch.Tensor,
        layer: LayerWeights,
        rotary: tuple[torch.Tensor, torch.Tensor],
        buffers: PassBuffers,
    ) -> torch.Tensor:
        """The final layer and what follows it. After its attention, only the last token of each document is needed."""
        attended = self._attention(hidden, layer, rotary, buffers, final=True)
        hidden, attended = (states.index_select(0, buffers.last_positions) for states in (hidden, attended))
        hidden = self._feed_forward(hidden.addmm_(attended, layer.output.t()), layer)
        norm = self.weights.norm
        last = rms_norm(hidden.float(), norm.shape, norm.float(), self.weights.epsilon)
        return last @ self.weights.label_direction

    def _rotary_embeddings(self, buffers: PassBuffers) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, each float32 [tokens, head_dim / 2]."""
        angles = buffers.position_ids[:, None] * self.weights.inverse_frequencies
        return angles.cos() * self.weights.rotary_scaling, angles.sin() * self.weights.rotary_scaling

    def _attention(
        self,
        hidden: torch.Tensor,
        layer: LayerWeights,
        rotary: tuple[torch.Tensor, torch.Tensor],
        buffers: PassBuffers,
        *,
        final: bool = False,
    ) -> torch.Tensor:
        """Norm, product with q/k/v, and attention: [tokens, heads * head_dim]."""
        normed = self._kernels.rms_norm(hidden, layer.input_norm, self.weights.epsilon)
        return self._attend_products(normed @ layer.query_key_value.t(), layer, rotary, buffers, final=final)

    def _attend_products(
        self,
        products: torch.Tensor,
        layer: LayerWeights,
        rotary: tuple[torch.Tensor, torch.Tensor],
        buffers: PassBuffers,
        *,
        final: bool = False,
    ) -> torch.Tensor:
        """Attention after the product with q/k/v: [tokens, heads * head_dim].

        Args:
            products: the product, [tokens, (heads + 2 * kv_heads) * head_dim]; changed in place.
            layer, rotary, buffers: as for `_attention`.
            final: whether this is the final layer. If so, only the last token of a long document has a defined row in
                the result.
        """
        weights, (cosines, sines), long = self.weights, rotary, buffers.long
        heads, kv_heads, epsilon = weights.heads, weights.kv_heads, weights.epsilon
        output, others, items = None, None, buffers.work_items
        if long is not None:
            output, others = self._attend_long(products, layer, rotary, long, final=final), long.others
            items = items[: buffers.num_items]  # thousands of thread blocks without work would take 0.04 ms a layer
        self._kernels.rotate_keys(
            products, cosines, sines, layer.key_norm, heads=heads, kv_heads=kv_heads, epsilon=epsilon, tokens=others
        )
        return self._attend(
            products, items, buffers.segment_start, cosines, sines, layer.query_norm,
            heads=heads, kv_heads=kv_heads, epsilon=epsilon, output=output,
        )  # fmt: skip

    def _attend_long(
        self,
        products: torch.Tensor,
        layer: LayerWeights,
        rotary: tuple[torch.Tensor, torch.Tensor],
        long: LongTensors,
        *,
        final: bool,
    ) -> torch.Tensor:
        """Attention of the long documents: [tokens, heads * head_dim], in which other rows are undefined.

        Changes the queries of these documents in `products`, but not their keys.
        """
        weights, (cosines, sines) = self.weights, rotary
        heads, kv_heads, head_dim, epsilon = weights.heads, weights.kv_heads, weights.head_dim, weights.epsilon
        if self._varlen is None:
            raise ValueError("the buffers leave long documents out, but the decoder has no kernel for them")
        keys, values = self._kernels.gather_keys(
            products, long.keys, cosines, sines, layer.key_norm, heads=heads, kv_heads=kv_heads, epsilon=epsilon
        )
        queries = long.last_queries if final else long.queries
        self._kernels.rotate_queries(products, queries, cosines, sines, layer.query_norm, heads=heads, epsilon=epsilon)
        query = products[:, : heads * head_dim].view(-1, heads, head_dim)
        sequences = long.last_sequences if final else long.sequences
        return self._varlen.attend(query, keys, values, sequences).flatten(1)

    def _feed_forward(self, hidden: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
        normed = self._kernels.rms_norm(hidden, layer.feed_forward_norm, self.weights.epsilon)
        if self._gated_product is None:
            gated = self._kernels.gated(normed @ layer.gate_up.t())
        else:
            gated = self._gated_product.compute(normed, layer.gate_up)
        return hidden.addmm_(gated, layer.down.t())
