"""The decoder's kernels except attention, in Triton for NVIDIA GPUs: norms, gate, rotary embeddings of the keys.

Everything is computed in float32 and rounded once. Any number of rows runs through the same compiled code.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..attention.triton_nvidia import rotated

# How many numbers, or rows, one thread block computes.
_NORMED_NUMBERS, _GATED_NUMBERS = 4096, 1024
_ROTATED_ROWS = 32


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm of each row of [rows, width]."""
    rows, width = states.shape
    output = torch.empty_like(states)
    columns = triton.next_power_of_2(width)
    at_once = max(1, _NORMED_NUMBERS // columns)
    _rms_norm[(triton.cdiv(rows, at_once),)](
        states, weight, output, rows, epsilon, WIDTH=width, COLUMNS=columns, ROWS=at_once
    )
    return output


def rms_norm_float8(
    states: torch.Tensor, weight: torch.Tensor, epsilon: float, addend: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of each row of [rows, width], rounded to float8.

    Args:
        states: changed in place if there is an addend.
        weight: [width].
        epsilon: as in the model's configuration.
        addend: added to `states` first, of the same shape; None for none.

    Returns:
        float8 (e4m3) [rows, width], and the factor of each row, float32 [rows, 1].
    """
    rows, width = states.shape
    output = torch.empty_like(states, dtype=torch.float8_e4m3fn)
    scales = states.new_empty(rows, 1, dtype=torch.float32)
    columns = triton.next_power_of_2(width)
    at_once = max(1, _NORMED_NUMBERS // columns)
    _rms_norm_float8[(triton.cdiv(rows, at_once),)](
        *(states, states if addend is None else addend, weight, output, scales, rows, epsilon),
        ADDS=addend is not None, WIDTH=width, COLUMNS=columns, ROWS=at_once,
    )  # fmt: skip
    return output, scales


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of the columns of [rows, 2 * width] times the second half: [rows, width]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(rows, width)
    _gated[(rows, triton.cdiv(width, _GATED_NUMBERS))](gate_up, output, WIDTH=width, COLUMNS=_GATED_NUMBERS)
    return output


def gated_float8(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as `gated`, rounded to float8; returns what `rms_norm_float8` does."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(rows, width, dtype=torch.float8_e4m3fn)
    scales = gate_up.new_empty(rows, 1, dtype=torch.float32)
    columns = triton.next_power_of_2(width)
    _gated_float8[(rows,)](gate_up, output, scales, WIDTH=width, COLUMNS=columns, num_warps=max(4, columns // 512))
    return output, scales


def rotate_keys(
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
    """RMSNorm and rotary embeddings of the keys, in place.

    Args:
        products: [tokens, (heads + 2 * kv_heads) * head_dim]: queries, keys and values.
        cosines, sines: float32 [tokens, head_dim / 2].
        key_norm: [head_dim].
        heads, kv_heads, epsilon: as in the model's configuration.
        tokens: int32, the rows to change; None for all.
    """
    _rotate_heads(products, tokens, cosines, sines, key_norm, heads, kv_heads, epsilon)


def rotate_queries(
    products: torch.Tensor,
    tokens: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    query_norm: torch.Tensor,
    *,
    heads: int,
    epsilon: float,
) -> None:
    """RMSNorm and rotary embeddings of the queries of some tokens, in place; arguments as for `rotate_keys`."""
    _rotate_heads(products, tokens, cosines, sines, query_norm, 0, heads, epsilon)


def _rotate_heads(
    products: torch.Tensor, tokens: torch.Tensor | None, cosines: torch.Tensor, sines: torch.Tensor,
    norm: torch.Tensor, before: int, heads: int, epsilon: float,
) -> None:  # fmt: skip
    """RMSNorm and rotary embeddings of `heads` heads of `products`, which follow the first `before` heads, in place."""
    rows, head_dim = len(products if tokens is None else tokens) * heads, len(norm)
    _rotate[(triton.cdiv(rows, _ROTATED_ROWS),)](
        products, products if tokens is None else tokens, cosines, sines, norm, rows, epsilon,
        LISTED=tokens is not None, STRIDE=products.shape[1], FIRST=before * head_dim, HEADS=heads, HALF=head_dim // 2,
        ROWS=_ROTATED_ROWS,
    )  # fmt: skip


def gather_keys(
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
    """The keys of some tokens, normalised and rotated, and their values: each [len(tokens), kv_heads, head_dim].

    Args:
        products: as they are before `rotate_keys`; not changed.
        tokens: int32; a token may occur several times.
        cosines, sines, key_norm, heads, kv_heads, epsilon: as for `rotate_keys`.
    """
    rows, head_dim = len(tokens) * kv_heads, len(key_norm)
    keys, values = products.new_empty(2, len(tokens), kv_heads, head_dim).unbind()
    _gather_keys[(triton.cdiv(rows, _ROTATED_ROWS),)](
        products, tokens, keys, values, cosines, sines, key_norm, rows, epsilon,
        STRIDE=products.shape[1], FIRST=heads * head_dim, HEADS=kv_heads, HALF=head_dim // 2, ROWS=_ROTATED_ROWS,
    )  # fmt: skip
    return keys, values


@triton.jit
def _block_of_rows(rows, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """(rows of [rows, WIDTH] that this thread block computes, offsets of their numbers, which of these exist)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    there = (row < rows)[:, None] & (column < WIDTH)[None, :]
    return row, row.to(tl.int64)[:, None] * WIDTH + column[None, :], there


@triton.jit
def _normed(wide, weight, epsilon, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / WIDTH + epsilon)[:, None]
    column = tl.arange(0, COLUMNS)
    return wide * scale * tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["rows"])
def _rms_norm(
    states, weight, output, rows, epsilon, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    _, places, there = _block_of_rows(rows, WIDTH, COLUMNS, ROWS)
    wide = tl.load(states + places, mask=there, other=0.0).to(tl.float32)
    normed = _normed(wide, weight, epsilon, WIDTH, COLUMNS)
    tl.store(output + places, normed.to(output.dtype.element_ty), mask=there)


@triton.jit
def _gated(gate_up, output, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < WIDTH
    gate = tl.load(gate_up + row * (2 * WIDTH) + column, mask=there, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * (2 * WIDTH) + WIDTH + column, mask=there, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(output + row * WIDTH + column, product.to(output.dtype.element_ty), mask=there)


@triton.jit
def _to_float8(rows):
    """(rows in float8, factor of each row)."""
    scale = tl.maximum(tl.max(tl.abs(rows), 1) / 448.0, 1e-12)
    return (rows / scale[:, None]).to(tl.float8e4nv), scale


@triton.jit(do_not_specialize=["rows"])
def _rms_norm_float8(
    states, addend, weight, output, scales, rows, epsilon,
    ADDS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, places, there = _block_of_rows(rows, WIDTH, COLUMNS, ROWS)
    wide = tl.load(states + places, mask=there, other=0.0).to(tl.float32)
    if ADDS:
        kind = states.dtype.element_ty
        total = (wide + tl.load(addend + places, mask=there, other=0.0).to(tl.float32)).to(kind)
        tl.store(states + places, total, mask=there)
        wide = total.to(tl.float32)
    narrow, multiplier = _to_float8(_normed(wide, weight, epsilon, WIDTH, COLUMNS))
    tl.store(output + places, narrow, mask=there)
    tl.store(scales + row, multiplier, mask=row < rows)


@triton.jit
def _gated_float8(gate_up, output, scales, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    column = tl.arange(0, COLUMNS)[None, :]
    there = column < WIDTH
    places = row[:, None] * (2 * WIDTH) + column
    gate = tl.load(gate_up + places, mask=there, other=0.0).to(tl.float32)
    up = tl.load(gate_up + WIDTH + places, mask=there, other=0.0).to(tl.float32)
    narrow, multiplier = _to_float8(gate / (1.0 + tl.exp(-gate)) * up)
    tl.store(output + row[:, None] * WIDTH + column, narrow, mask=there)
    tl.store(scales + row, multiplier)


@triton.jit(do_not_specialize=["rows"])
def _rotate(
    products, tokens, cosines, sines, norm, rows, epsilon, LISTED: tl.constexpr,
    STRIDE: tl.constexpr, FIRST: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A row is a head of a token; the heads of a token begin at column FIRST."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    token, head = row // HEADS, row % HEADS
    if LISTED:
        token = tl.load(tokens + token, mask=row < rows, other=0)
    real = (row < rows)[:, None]
    places = products + token.to(tl.int64)[:, None] * STRIDE + FIRST + head[:, None] * (2 * HALF) + column[None, :]
    low, high = rotated(places, token, real, cosines, sines, norm, epsilon, HALF)
    kind = products.dtype.element_ty
    tl.store(places, low.to(kind), mask=real)
    tl.store(places + HALF, high.to(kind), mask=real)


@triton.jit(do_not_specialize=["rows"])
def _gather_keys(
    products, tokens, keys, values, cosines, sines, norm, rows, epsilon,
    STRIDE: tl.constexpr, FIRST: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A row is a kv head of a token; the keys of a token begin at column FIRST."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    token, head = tl.load(tokens + row // HEADS, mask=row < rows, other=0), row % HEADS
    real = (row < rows)[:, None]
    places = products + token.to(tl.int64)[:, None] * STRIDE + FIRST + head[:, None] * (2 * HALF) + column[None, :]
    low, high = rotated(places, token, real, cosines, sines, norm, epsilon, HALF)
    kind = products.dtype.element_ty
    target = row.to(tl.int64)[:, None] * (2 * HALF) + column[None, :]
    tl.store(keys + target, low.to(kind), mask=real)
    tl.store(keys + target + HALF, high.to(kind), mask=real)
    places += HEADS * 2 * HALF
    tl.store(values + target, tl.load(places, mask=real), mask=real)
    tl.store(values + target + HALF, tl.load(places + HALF, mask=real), mask=real)
