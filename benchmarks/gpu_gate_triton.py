"""Triton kernels for `gpu_gate.py`: a gate inside a product, and rounding to float8."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

#: Rows and outputs of a tile, inputs of a step, warps, steps that are loaded ahead, thread blocks of a multiprocessor.
TILES = ((128, 128, 64, 8, 3, 1), (128, 64, 64, 4, 3, 2))


def gated_product(
    states: torch.Tensor,
    gate_up: torch.Tensor,
    tiles: tuple[int, int, int, int, int, int],
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The SiLU of every even output times the odd one after it, in bfloat16.

    Args:
        states: [rows, inputs], in bfloat16 or float8.
        gate_up: [outputs, inputs], of the same dtype; inputs and outputs are multiples of a tile's.
        tiles: one of TILES; a step has twice as many inputs in float8.
        scales: float32, of the rows and of the outputs; None for ones.
    """
    tile_m, tile_n, step, warps, stages, blocks = tiles
    step *= 2 // states.element_size()
    rows, inputs = states.shape
    output = states.new_empty(rows, len(gate_up) // 2, dtype=torch.bfloat16)
    programs = blocks * torch.cuda.get_device_properties(states.device).multi_processor_count
    row_scales, output_scales = (output, output) if scales is None else scales
    _gated_product[(programs,)](
        TensorDescriptor.from_tensor(states, [tile_m, step]), TensorDescriptor.from_tensor(gate_up, [2 * tile_n, step]),
        TensorDescriptor.from_tensor(output, [tile_m, tile_n]), row_scales, output_scales, rows,
        INPUTS=inputs, WIDTH=output.shape[1], TILE_M=tile_m, TILE_N=tile_n, STEP=step, GROUP=8, PROGRAMS=programs,
        SCALED=scales is not None, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return output


@triton.jit
def _gated_product(
    states, gate_up, output, row_scales, output_scales, rows,
    INPUTS: tl.constexpr, WIDTH: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, STEP: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr, SCALED: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """A thread block computes one tile after another; GROUP tiles with the same weights follow each other."""
    down, across = tl.cdiv(rows, TILE_M), WIDTH // TILE_N
    for tile in tl.range(tl.program_id(0), down * across, PROGRAMS, flatten=True):
        first = tile // (GROUP * across) * GROUP
        height = min(down - first, GROUP)
        m = (first + tile % (GROUP * across) % height) * TILE_M
        n = tile % (GROUP * across) // height * TILE_N
        sums = tl.zeros([TILE_M, 2 * TILE_N], tl.float32)
        for start in tl.range(0, INPUTS, STEP):
            sums = tl.dot(states.load([m, start]), gate_up.load([2 * n, start]).T, sums)
        if SCALED:
            row = m + tl.arange(0, TILE_M)
            sums *= tl.load(row_scales + row, mask=row < rows, other=0.0)[:, None]
            sums *= tl.load(output_scales + 2 * n + tl.arange(0, 2 * TILE_N))[None, :]
        gate, up = tl.split(sums.reshape(TILE_M, TILE_N, 2))
        output.store([m, n], (gate / (1.0 + tl.exp(-gate)) * up).to(tl.bfloat16))


def to_float8(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows rounded to float8, and the factor of each row, float32 [rows, 1]."""
    rows, width = states.shape
    output = torch.empty_like(states, dtype=torch.float8_e4m3fn)
    scales = states.new_empty(rows, 1, dtype=torch.float32)
    columns = triton.next_power_of_2(width)
    _to_float8[(rows,)](states, output, scales, WIDTH=width, COLUMNS=columns, num_warps=max(4, columns // 512))
    return output, scales


@triton.jit
def _to_float8(states, output, scales, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    there = column < WIDTH
    wide = tl.load(states + row * WIDTH + column, mask=there, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(wide), 0) / 448.0, 1e-12)
    tl.store(output + row * WIDTH + column, (wide / scale).to(tl.float8e4nv), mask=there)
    tl.store(scales + row, scale)
