"""What lies between a decoder's products, as Triton kernels for NVIDIA GPUs: norm, gate, shared-prefix attention.

They know no size classes: any number of tokens runs through the same code. FlexAttention, which it takes the place of,
works on aligned tiles of keys, of which titles of 27 tokens fill a fifth, once for every query head, and wants
queries that were normalised and turned before, which is a pass through memory. Here

- a program has a few neighbouring tokens of one request, with all query heads that share a kv head as its rows, so that
  keys and values are loaded once for them;
- its keys are the request's prefix and then the tokens from where its first segment begins: two ranges that are
  gathered as if they were one, so that only the last of its blocks is not full;
- queries are normalised and turned where they are loaded.

Softmax is computed block by block with running maxima, as in FlashAttention (Dao et al. 2022, arXiv 2205.14135).
Everything is computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from .work_items import FIELDS, tokens_of_a_program

_BLOCK_KEYS = 32
_WARPS, _STAGES = 4, 3
_TURNED_ROWS = 32
_NORMED_NUMBERS, _GATED_NUMBERS = 4096, 1024  # of a program
_LOG2_E = 1.4426950408889634


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
        states: to which `addend` of the same shape is added first, in place.

    Returns:
        float8 (e4m3) [rows, width], and by what each row is to be multiplied, float32 [rows, 1].
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


def gated_float8(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`gated`, rounded to float8; returns what `rms_norm_float8` does."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(rows, width, dtype=torch.float8_e4m3fn)
    scales = gate_up.new_empty(rows, 1, dtype=torch.float32)
    columns = triton.next_power_of_2(width)
    _gated_float8[(rows,)](gate_up, output, scales, WIDTH=width, COLUMNS=columns, num_warps=max(4, columns // 512))
    return output, scales


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of the columns of [rows, 2 * width] times the second half: [rows, width]."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(rows, width)
    _gated[(rows, triton.cdiv(width, _GATED_NUMBERS))](gate_up, output, WIDTH=width, COLUMNS=_GATED_NUMBERS)
    return output


def attend(
    products: torch.Tensor,
    programs: torch.Tensor,
    segment_start: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    query_norm: torch.Tensor,
    key_norm: torch.Tensor,
    *,
    heads: int,
    kv_heads: int,
    epsilon: float,
    options: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Attention of a packed row from its fused product.

    Args:
        products: [tokens, (heads + 2 * kv_heads) * head_dim], queries, keys and values as the product gives them; the
            keys are normalised and turned in place.
        programs: int32 [programs, FIELDS], see `programs.plan`; those whose tokens end where they begin do nothing.
        segment_start: int32 [tokens], see `PackedPass`.
        cosines, sines: float32 [tokens, head_dim / 2], of the rotary embeddings.
        query_norm, key_norm: [head_dim].
        heads, kv_heads, epsilon: as in the model's configuration.
        options: of the launch, for measurements: tokens, block_keys, num_warps, num_stages.

    Returns:
        [tokens, heads * head_dim]; rows that no program has are not written.
    """
    head_dim, group = len(query_norm), heads // kv_heads
    output = products.new_empty(len(products), heads * head_dim)
    launch: dict[str, Any] = {
        "tokens": tokens_of_a_program(heads, kv_heads),
        "block_keys": _BLOCK_KEYS,
        "num_warps": _WARPS,
        "num_stages": _STAGES,
    } | dict(options or {})
    turned = len(products) * kv_heads
    _turn_keys[(triton.cdiv(turned, _TURNED_ROWS),)](
        products, cosines, sines, key_norm, turned, epsilon,
        STRIDE=products.shape[1], FIRST=heads * head_dim, KV_HEADS=kv_heads, HALF=head_dim // 2, ROWS=_TURNED_ROWS,
    )  # fmt: skip
    _attend[(kv_heads, len(programs))](
        products, output, programs, segment_start, cosines, sines, query_norm, head_dim**-0.5 * _LOG2_E, epsilon,
        STRIDE=products.shape[1], HEADS=heads, KV_HEADS=kv_heads, HALF=head_dim // 2, GROUP=group, FIELDS=FIELDS,
        TOKENS=launch["tokens"], BLOCK=launch["block_keys"], STAGES=launch["num_stages"],
        num_warps=launch["num_warps"], num_stages=launch["num_stages"],
    )  # fmt: skip
    return output


@triton.jit
def _rows_of_program(rows, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """(which rows of [rows, WIDTH] a program has, where their numbers are, and which of those are there)."""
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
    _, places, there = _rows_of_program(rows, WIDTH, COLUMNS, ROWS)
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
    """(rows in float8, by what each is to be multiplied)."""
    scale = tl.maximum(tl.max(tl.abs(rows), 1) / 448.0, 1e-12)
    return (rows / scale[:, None]).to(tl.float8e4nv), scale


@triton.jit(do_not_specialize=["rows"])
def _rms_norm_float8(
    states, addend, weight, output, scales, rows, epsilon,
    ADDS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, places, there = _rows_of_program(rows, WIDTH, COLUMNS, ROWS)
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


@triton.jit
def _turned(places, token, real, cosines, sines, norm, epsilon, HALF: tl.constexpr):
    """The halves of heads whose first halves are at `places`, after RMSNorm and rotary embeddings, in float32."""
    column = tl.arange(0, HALF)
    low = tl.load(places, mask=real, other=0.0).to(tl.float32)
    high = tl.load(places + HALF, mask=real, other=0.0).to(tl.float32)
    angle = token[:, None] * HALF + column[None, :]
    cosine = tl.load(cosines + angle, mask=real, other=0.0)
    sine = tl.load(sines + angle, mask=real, other=0.0)
    scale = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + epsilon)[:, None]
    low = low * scale * tl.load(norm + column).to(tl.float32)[None, :]
    high = high * scale * tl.load(norm + HALF + column).to(tl.float32)[None, :]
    return low * cosine - high * sine, high * cosine + low * sine


@triton.jit(do_not_specialize=["turned"])
def _turn_keys(
    products, cosines, sines, norm, turned, epsilon,
    STRIDE: tl.constexpr, FIRST: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """RMSNorm of each head of the keys and rotary embeddings, in float32, rounded once, in place."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HALF)
    token, head = row // KV_HEADS, row % KV_HEADS
    real = (row < turned)[:, None]
    places = products + token.to(tl.int64)[:, None] * STRIDE + FIRST + head[:, None] * (2 * HALF) + column[None, :]
    low, high = _turned(places, token, real, cosines, sines, norm, epsilon, HALF)
    kind = products.dtype.element_ty
    tl.store(places, low.to(kind), mask=real)
    tl.store(places + HALF, high.to(kind), mask=real)


@triton.jit
def _attend(
    products, output, programs, segment_start, cosines, sines, norm, scale, epsilon,
    STRIDE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, GROUP: tl.constexpr,
    FIELDS: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    mine = programs + tl.program_id(1) * FIELDS
    first, end = tl.load(mine), tl.load(mine + 1)
    if first >= end:
        return
    prefix_start, prefix_end, own_start = tl.load(mine + 2), tl.load(mine + 3), tl.load(mine + 4)
    DIM: tl.constexpr = 2 * HALF
    kind = products.dtype.element_ty

    row = tl.arange(0, TOKENS * GROUP)
    token = first + row // GROUP
    real = (token < end)[:, None]
    half = tl.arange(0, HALF)
    head = kv_head * GROUP + row % GROUP
    places = products + token.to(tl.int64)[:, None] * STRIDE + head[:, None] * DIM + half[None, :]
    low, high = _turned(places, token, real, cosines, sines, norm, epsilon, HALF)
    query_low, query_high = (low * scale).to(kind), (high * scale).to(kind)
    segment = tl.load(segment_start + token, mask=token < end, other=0)

    largest = tl.full([TOKENS * GROUP], float("-inf"), tl.float32)
    total = tl.zeros([TOKENS * GROUP], tl.float32)
    sums = tl.zeros([TOKENS * GROUP, DIM], tl.float32)
    column = tl.arange(0, DIM)
    keys = products + HEADS * DIM + kv_head * DIM
    values = keys + KV_HEADS * DIM
    prefix_length = prefix_end - prefix_start
    for start in tl.range(0, prefix_length + end - own_start, BLOCK, num_stages=STAGES):
        number = start + tl.arange(0, BLOCK)
        in_prefix = number < prefix_length
        key = tl.where(in_prefix, prefix_start + number, own_start + number - prefix_length)
        there = key < end
        offset = key.to(tl.int64) * STRIDE
        key_low = tl.load(keys + offset[None, :] + half[:, None], mask=there[None, :], other=0.0)
        key_high = tl.load(keys + HALF + offset[None, :] + half[:, None], mask=there[None, :], other=0.0)
        scores = tl.dot(query_high, key_high, tl.dot(query_low, key_low))
        # A key behind the prefix is seen by the tokens of its own segment that do not come before it.
        seen = in_prefix[None, :] | ((key[None, :] >= segment[:, None]) & (key[None, :] <= token[:, None]))
        scores = tl.where(seen, scores, float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        # Where a row has seen nothing yet, which happens without a prefix only, minus infinity would be subtracted
        # from itself.
        base = tl.where(now == float("-inf"), 0.0, now)
        shrink = tl.exp2(largest - base)
        weights = tl.exp2(scores - base[:, None])
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(values + offset[:, None] + column[None, :], mask=there[:, None], other=0.0)
        sums = tl.dot(weights.to(kind), value, sums * shrink[:, None])
        largest = now
    sums = sums / total[:, None]
    places = output + token.to(tl.int64)[:, None] * (HEADS * DIM) + head[:, None] * DIM + column[None, :]
    tl.store(places, sums.to(kind), mask=real)
