"""The decoder with products that compute what follows them before they write their result.

Three kinds of products take the place of a product and of the kernels around it:

- the gate and up projections multiply the SiLU of one half with the other, so that the halves are never written;
- a product that is added to the residual also adds up the squares of each row of the sum;
- from these, the scale of the next RMSNorm is known. A product of normalised rows is the product of the rows, scaled
  row by row afterwards: the weight of the norm is a factor of the matrix's columns, which is multiplied into the
  matrix once.

So no norm and no gate reads or writes the states. The last layer stays as it is, because it has few rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import embedding

from ..attention.work_items import ROWS
from .decoder import Decoder, DecoderWeights, Kernels, LayerWeights

if TYPE_CHECKING:
    from ..attention.gpu_kernels import Attend
    from ..attention.varlen import VarlenKernel
    from .buffers import PassBuffers


class FusedProducts(Protocol):
    """The products; the module `quack_products` implements them for Hopper."""

    def scaled(self, states: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[rows, inputs] times a matrix [outputs, inputs], each row times its scale, float32 [rows]."""

    def gated(self, states: torch.Tensor, scales: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
        """The SiLU of every even output of `scaled` times the odd output that follows it: [rows, outputs / 2]."""

    def added(
        self, states: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual plus the product with a matrix, and the scale of an RMSNorm of each row of this sum."""


class FusedDecoder(Decoder):
    """Computes the margins of a pass.

    Args:
        weights: the norms' weights are multiplied into copies of the matrices.
        kernels: for the device of the weights.
        attend: for the device of the weights.
        products: for the device of the weights.
        varlen, rows: see `Decoder`.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        kernels: Kernels,
        attend: Attend,
        products: FusedProducts,
        varlen: VarlenKernel | None = None,
        rows: int = ROWS,
    ) -> None:
        super().__init__(replace(weights, layers=weights.layers[-1:]), kernels, attend, varlen, rows)
        self._products = products
        self._layers = [_folded(layer) for layer in weights.layers[:-1]]

    def __call__(self, buffers: PassBuffers) -> torch.Tensor:
        """See `Decoder`."""
        hidden = embedding(buffers.token_ids, self.weights.embedding)
        rotary = self._rotary_embeddings(buffers)
        products, epsilon = self._products, self.weights.epsilon
        scales = hidden.float().square().mean(dim=1).add_(epsilon).rsqrt_()
        for layer in self._layers:
            attended = self._attend_products(
                products.scaled(hidden, scales, layer.query_key_value), layer, rotary, buffers
            )
            hidden, scales = products.added(attended, layer.output, hidden, epsilon)
            gated = products.gated(hidden, scales, layer.gate_up)
            hidden, scales = products.added(gated, layer.down, hidden, epsilon)
        return self._margins(hidden, self.weights.layers[-1], rotary, buffers)


def interleaved(gate_up: torch.Tensor) -> torch.Tensor:
    """The rows of a matrix whose first half is the gate's, as a row of the gate, a row of the other half, and so on."""
    return torch.stack(gate_up.chunk(2), dim=1).flatten(0, 1)


def _folded(layer: LayerWeights) -> LayerWeights:
    """A layer whose products take states without norm."""

    def times(matrix: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        return (matrix.float() * norm.float()).to(matrix.dtype)

    return layer._replace(
        query_key_value=times(layer.query_key_value, layer.input_norm),
        gate_up=interleaved(times(layer.gate_up, layer.feed_forward_norm)),
    )
