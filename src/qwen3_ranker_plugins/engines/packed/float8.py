"""The decoder with float8 products: twice the arithmetic a second on Hopper and Ada, at the price of coarser margins.

Activations and weights are e4m3 with one scale for each row: of tokens, and of outputs. The kernels in front of a
product round to float8 themselves, so that nothing is read or written for that. In half precision stay the output
product of the attention, whose rows come from several programs, and the final layer, from which margins are read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import embedding

from .decoder import Decoder, DecoderWeights, LayerWeights

if TYPE_CHECKING:
    from .buffers import StaticRow

_LARGEST = 448.0  # of e4m3


class _Narrow(NamedTuple):
    """A matrix in float8 [outputs, inputs], and by what each output is to be multiplied, float32 [1, outputs]."""

    matrix: torch.Tensor
    scales: torch.Tensor


class _NarrowLayer(NamedTuple):
    """What a layer has in float8; the rest of it, where matrices that are here are empty."""

    query_key_value: _Narrow
    gate_up: _Narrow
    down: _Narrow
    rest: LayerWeights


class Float8Decoder(Decoder):
    """Margins of a static row, most products in float8.

    Args:
        weights: in bfloat16, and such that our own kernels can be used. Of the layers but the last, those matrices that
            are used in float8 are not kept.
    """

    def __init__(self, weights: DecoderWeights) -> None:
        super().__init__(replace(weights, layers=weights.layers[-1:]))
        self._layers = [_narrow_layer(layer) for layer in weights.layers[:-1]]

    @property
    def pieces(self) -> str:
        """See `Decoder`."""
        return f"{super().pieces}, float8"

    def __call__(self, row: StaticRow) -> torch.Tensor:
        """See `Decoder`."""
        hidden = embedding(row.token_ids, self.weights.embedding)
        rotation = self._rotation(row)
        kernels, epsilon = self._kernels, self.weights.epsilon
        product: torch.Tensor | None = None  # of the layer before, to be added to the residual
        for layer in self._layers:
            states = kernels.rms_norm_float8(hidden, layer.rest.input_norm, epsilon, product)
            products = _product(states, layer.query_key_value, hidden.dtype)
            seen = self._gathered(products, layer.rest, rotation, row)
            hidden = self._add_product(hidden, seen, layer.rest.output)
            states = kernels.rms_norm_float8(hidden, layer.rest.feed_forward_norm, epsilon)
            states = kernels.gated_float8(_product(states, layer.gate_up, hidden.dtype))
            product = _product(states, layer.down, hidden.dtype)
        if product is not None:
            hidden = hidden.add_(product)
        return self._margins(hidden, self.weights.layers[-1], rotation, row)


def _narrow_layer(layer: LayerWeights) -> _NarrowLayer:
    empty = layer.output.new_empty(0)
    return _NarrowLayer(
        query_key_value=to_float8(layer.query_key_value),
        gate_up=to_float8(layer.gate_up),
        down=to_float8(layer.down),
        rest=layer._replace(query_key_value=empty, gate_up=empty, down=empty),
    )


def to_float8(matrix: torch.Tensor) -> _Narrow:
    """A matrix [outputs, inputs], each output with the scale that makes its largest number the largest of e4m3."""
    scales = (matrix.float().abs().amax(dim=1, keepdim=True) / _LARGEST).clamp(min=1e-12)
    return _Narrow((matrix.float() / scales).to(torch.float8_e4m3fn), scales.t().contiguous())


def _product(states: tuple[torch.Tensor, torch.Tensor], weight: _Narrow, dtype: torch.dtype) -> torch.Tensor:
    """[rows, outputs] of float8 [rows, inputs] and the rows' scales."""
    product: torch.Tensor = torch._scaled_mm(  # noqa: SLF001 - torch before 2.10 has no public name for it
        states[0], weight.matrix.t(), states[1], weight.scales, out_dtype=dtype, use_fast_accum=True
    )
    return product
