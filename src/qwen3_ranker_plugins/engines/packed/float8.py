"""The decoder with float8 products: twice the arithmetic throughput on Hopper and Ada, but less exact margins.

Activations and weights are e4m3, with one scale for each row: of activations for each token, of weights for each
output. The kernel that precedes a product rounds its result to float8, so that rounding needs no reads and writes of
its own. Two parts stay in half precision: the output product of the attention, because several work items write each
of its rows, and the final layer, from which margins are read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch.nn.functional import embedding

from ..attention.work_items import ROWS
from .decoder import Decoder, DecoderWeights, Kernels, LayerWeights

if TYPE_CHECKING:
    from ..attention.gpu_kernels import Attend
    from ..attention.varlen import VarlenKernel
    from .buffers import PassBuffers

_LARGEST = 448.0  # the largest number of e4m3


class Float8Kernels(Kernels, Protocol):
    """What the decoder needs in addition to `Kernels`; arguments and results as in the module `kernels`."""

    def rms_norm_float8(
        self, states: torch.Tensor, weight: torch.Tensor, epsilon: float, addend: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """RMSNorm of each row, rounded to float8."""

    def gated_float8(self, gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`gated`, rounded to float8."""


class _Float8Matrix(NamedTuple):
    """A matrix in float8 [outputs, inputs], and the factor of each output, float32 [1, outputs]."""

    matrix: torch.Tensor
    scales: torch.Tensor


class _Float8Layer(NamedTuple):
    """The matrices of a layer that are in float8, and the layer's other weights, with these matrices left empty."""

    query_key_value: _Float8Matrix
    gate_up: _Float8Matrix
    down: _Float8Matrix
    rest: LayerWeights


class Float8Decoder(Decoder):
    """Computes the margins of a pass, with most products in float8.

    Args:
        weights: in bfloat16. The matrices that are used in float8 are not kept.
        kernels: for the device of the weights.
        attend: for the device of the weights.
        varlen, rows: see `Decoder`.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        kernels: Float8Kernels,
        attend: Attend,
        varlen: VarlenKernel | None = None,
        rows: int = ROWS,
    ) -> None:
        super().__init__(replace(weights, layers=weights.layers[-1:]), kernels, attend, varlen, rows)
        self._float8_kernels = kernels
        self._layers = [_float8_layer(layer) for layer in weights.layers[:-1]]

    @property
    def description(self) -> str:
        """See `Decoder`."""
        return f"{super().description}, float8"

    def __call__(self, buffers: PassBuffers) -> torch.Tensor:
        """See `Decoder`."""
        hidden = embedding(buffers.token_ids, self.weights.embedding)
        rotary = self._rotary_embeddings(buffers)
        kernels, epsilon = self._float8_kernels, self.weights.epsilon
        down: torch.Tensor | None = None  # product of the previous layer, still to be added to the residual
        for layer in self._layers:
            states = kernels.rms_norm_float8(hidden, layer.rest.input_norm, epsilon, down)
            products = _product(states, layer.query_key_value, hidden.dtype)
            attended = self._attend_products(products, layer.rest, rotary, buffers)
            hidden = hidden.addmm_(attended, layer.rest.output.t())
            states = kernels.rms_norm_float8(hidden, layer.rest.feed_forward_norm, epsilon)
            states = kernels.gated_float8(_product(states, layer.gate_up, hidden.dtype))
            down = _product(states, layer.down, hidden.dtype)
        if down is not None:
            hidden = hidden.add_(down)
        return self._margins(hidden, self.weights.layers[-1], rotary, buffers)


def _float8_layer(layer: LayerWeights) -> _Float8Layer:
    empty = layer.output.new_empty(0)
    return _Float8Layer(
        query_key_value=_to_float8(layer.query_key_value),
        gate_up=_to_float8(layer.gate_up),
        down=_to_float8(layer.down),
        rest=layer._replace(query_key_value=empty, gate_up=empty, down=empty),
    )


def _to_float8(matrix: torch.Tensor) -> _Float8Matrix:
    """A matrix [outputs, inputs] in float8; each output's largest number becomes the largest number of e4m3."""
    scales = (matrix.float().abs().amax(dim=1, keepdim=True) / _LARGEST).clamp(min=1e-12)
    return _Float8Matrix((matrix.float() / scales).to(torch.float8_e4m3fn), scales.t().contiguous())


def _product(states: tuple[torch.Tensor, torch.Tensor], weight: _Float8Matrix, dtype: torch.dtype) -> torch.Tensor:
    """[rows, outputs] in `dtype`, from float8 [rows, inputs] and the scale of each row, float32 [rows, 1]."""
    product: torch.Tensor = torch._scaled_mm(  # noqa: SLF001 - torch before 2.10 has no public name for it
        states[0], weight.matrix.t(), states[1], weight.scales, out_dtype=dtype, use_fast_accum=True
    )
    return product
