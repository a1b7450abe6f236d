"""A library's product that applies the feed-forward part's gate before it writes, and the GPUs that use it.

The gate's kernel reads the product with the gate and up projections and writes half as much. Inside the product, the
gate costs almost nothing: on an H200, 1000 titles take 45 ms instead of 49 (docs/performance.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import silu

from ...pip_command import installed_version, pip_install

if TYPE_CHECKING:
    from .decoder import DecoderWeights

_logger = logging.getLogger(__name__)

# Rows of the product that is compared with plain torch, and the largest difference, relative to the largest number.
# Both round to bfloat16, whose steps are 0.004 of a number: the product before the gate, and the result.
_TRIAL_ROWS = 256
_TOLERANCE = 0.02


@dataclass(frozen=True)
class GatedProduct:
    """A library's product.

    Attributes:
        name: as `EngineDescription` shows it.
        compute: (states [rows, width], matrix [2 * feed_forward, width]) -> [rows, feed_forward]: the SiLU of every
            even output times the odd output that follows it. The matrix is `interleaved`.
    """

    name: str
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def choose_product(weights: DecoderWeights, capability: tuple[int, int]) -> GatedProduct | None:
    """The product for a GPU of a compute capability; None if there is none, or if it fails a trial.

    That is the one of quack-kernels (extra `flash`) on Hopper in bfloat16, the only combination that was measured. If
    it cannot be imported, compiled or run, or computes something else, a warning says why.
    """
    if capability[0] != 9 or weights.embedding.dtype != torch.bfloat16:
        return None
    installed = installed_version("quack-kernels")
    if installed is None:
        return None
    try:
        product = quack_kernels()
        check(product, weights.layers[0].gate_up)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - it compiles at its first call, which fails in many ways
        _logger.warning(
            "quack-kernels %s cannot be used (%s: %s), so passes take longer, with the same margins: run %s --upgrade, "
            "or pip uninstall quack-kernels",
            *(installed, type(error).__name__, error, pip_install("flash")),
        )
        return None
    return product


def quack_kernels() -> GatedProduct:
    """The product of quack-kernels, which is written in CUTLASS' Python DSL.

    Its kernel overlaps the gate of one tile with the products of the next. It compiles at its first call, in a few
    seconds, and runs for any number of rows. Tiles of 128 x 192 were the fastest of five sizes on an H200.

    Raises:
        ImportError: quack-kernels or a module that it needs is not installed.
    """
    from quack.gemm_config import GemmConfig
    from quack.gemm_interface import gemm_act

    config = GemmConfig(
        tile_m=128, tile_n=192, pingpong=True, cluster_m=2, cluster_n=1, device_capacity=9, is_dynamic_persistent=False
    )

    def compute(states: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = gemm_act(
            states, matrix.t(), activation="swiglu", store_preact=False, tuned=False, config=config
        )[1]
        return gated

    return GatedProduct("quack-kernels", compute)


def check(product: GatedProduct, gate_up: torch.Tensor) -> None:
    """Compare a product of random states with plain torch.

    Args:
        product: to be checked.
        gate_up: [2 * feed_forward, width], as `LayerWeights` has it; not changed.

    Raises:
        ArithmeticError: they differ.
    """
    generator = torch.Generator(gate_up.device).manual_seed(0)
    shape = (_TRIAL_ROWS, gate_up.shape[1])
    states = torch.randn(shape, device=gate_up.device, generator=generator).to(gate_up.dtype)
    gate, up = (states @ gate_up.t()).float().chunk(2, dim=1)
    due = silu(gate) * up
    difference = (product.compute(states, interleaved(gate_up)).float() - due).abs().max() / due.abs().max()
    if not difference <= _TOLERANCE:  # also if it is not a number
        raise ArithmeticError(f"its results differ from plain torch's by {float(difference):.3g} of the largest one")


def interleaved(gate_up: torch.Tensor) -> torch.Tensor:
    """The rows of a matrix whose first half is the gate's, as a row of the gate, a row of the other half, and so on."""
    return torch.stack(gate_up.chunk(2), dim=1).flatten(0, 1)


def interleave_gates(weights: DecoderWeights) -> None:
    """Reorder the rows of every `gate_up` in place, as a `GatedProduct` needs them."""
    for layer in weights.layers:
        layer.gate_up.copy_(interleaved(layer.gate_up))
