"""`fused.FusedProducts` by quack-kernels, whose products for Hopper are written in CUTLASS' Python DSL.

Its kernels overlap the epilogue of one tile with the products of the next, and share tiles between two neighbouring
thread blocks, which Triton cannot do. They compile in seconds at their first call and run for any number of rows.
"""

from __future__ import annotations

import torch
from quack.gemm_config import GemmConfig
from quack.gemm_interface import gemm_norm_act, gemm_rms


def hopper(tile_m: int, tile_n: int, *, pingpong: bool, cluster: tuple[int, int] = (2, 1)) -> GemmConfig:
    """How a product is computed: tiles of [tile_m, tile_n] outputs.

    Args:
        tile_m, tile_n: rows and columns of a tile.
        pingpong: whether two groups of warps have a tile each, and compute their products in turns.
        cluster: thread blocks, along rows and columns, that load tiles together.
    """
    return GemmConfig(
        tile_m=tile_m,
        tile_n=tile_n,
        pingpong=pingpong,
        cluster_m=cluster[0],
        cluster_n=cluster[1],
        device_capacity=9,
        is_dynamic_persistent=False,
    )


#: Function -> how its product is computed.
CONFIGS = {
    "scaled": hopper(128, 256, pingpong=False),
    "gated": hopper(128, 192, pingpong=True),
    "added": hopper(128, 256, pingpong=False),
}


def scaled(states: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """See `FusedProducts`."""
    return gemm_norm_act(states, weight.t(), scales, activation=None, tuned=False, config=CONFIGS["scaled"])[1]


def gated(states: torch.Tensor, scales: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """See `FusedProducts`."""
    return gemm_norm_act(states, gate_up.t(), scales, activation="swiglu", tuned=False, config=CONFIGS["gated"])[1]


def added(
    states: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `FusedProducts`."""
    return gemm_rms(states, weight.t(), residual, eps=epsilon, tuned=False, config=CONFIGS["added"])
