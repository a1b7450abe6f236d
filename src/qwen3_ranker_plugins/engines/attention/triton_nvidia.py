"""Shared-prefix attention as a Triton kernel for NVIDIA GPUs of compute capability 7.5 and more (Turing on).

Made for short documents, where FlexAttention wastes most of its work: a title of 27 tokens fills a fifth of an aligned
tile of 128 keys, and every query head computes the whole tile. In this kernel

- the rows of a work item are a few neighbouring tokens of one request, for each query head that shares a kv head, so
  that keys and values are loaded once for all of these heads;
- the prefix's keys and the keys of the item's own segments are gathered as if they were one range, so that only the
  last block of keys is not full;
- queries are normalised and rotated when they are loaded, which saves a pass through memory;
- any number of tokens runs through the same compiled code.

Softmax is computed block by block with running maxima, as in FlashAttention (Dao et al. 2022, arXiv 2205.14135), in
float32, and rounded once. The launch parameters for Ampere and later were measured on an H100; docs/performance.md
lists the alternatives. Those for Turing were chosen from what `tools/compile_kernels.py` reports, not measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .work_items import FIELDS, ROWS, tokens_per_item

_LOG2_E = 1.4426950408889634


class Tiles(NamedTuple):
    """How the kernel is launched.

    Attributes:
        rows: rows of a work item's matrix of queries, see `work_items.tokens_per_item`.
        keys: keys in a block.
        warps: warps in a thread block.
        stages: pipeline stages of the loop over blocks of keys.
    """

    rows: int
    keys: int
    warps: int
    stages: int


_AMPERE = Tiles(ROWS, 32, 4, 3)
# Triton does not compute products on Turing's tensor cores. There a thread holds both factors of a product in
# registers. With Ampere's tiles, kilobytes of them would be spilled to memory; with these tiles, they fit.
_TURING = Tiles(32, 16, 4, 2)


def tiles_for(capability: tuple[int, int]) -> Tiles:
    """How to launch the kernel on GPUs of a compute capability, such as (7, 5)."""
    return _AMPERE if capability >= (8, 0) else _TURING


def attend(
    products: torch.Tensor,
    work_items: torch.Tensor,
    segment_start: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    query_norm: torch.Tensor,
    *,
    heads: int,
    kv_heads: int,
    epsilon: float,
    output: torch.Tensor | None = None,
    tiles: Tiles = _AMPERE,
) -> torch.Tensor:
    """Attention of a packed row.

    Args:
        products: [tokens, (heads + 2 * kv_heads) * head_dim]: queries straight from the matrix product, keys that are
            already normalised and rotated, and values.
        work_items: int32 [items, FIELDS], see `work_items.list_work_items`. An item whose tokens end where they begin
            has no effect.
        segment_start: int32 [tokens], see `PackedPass`.
        cosines, sines: float32 [tokens, head_dim / 2], of the rotary embeddings.
        query_norm: [head_dim], weight of the queries' RMSNorm.
        heads, kv_heads, epsilon: as in the model's configuration.
        output: where the result is written; None for a new tensor.
        tiles: see `tiles_for`; the work items must have been listed for the same number of rows.

    Returns:
        [tokens, heads * head_dim]; rows without a work item are not written.
    """
    head_dim = len(query_norm)
    if output is None:
        output = products.new_empty(len(products), heads * head_dim)
    _attend[(kv_heads, len(work_items))](
        products, output, work_items, segment_start, cosines, sines, query_norm, head_dim**-0.5 * _LOG2_E, epsilon,
        STRIDE=products.shape[1], HEADS=heads, KV_HEADS=kv_heads, HALF=head_dim // 2, GROUP=heads // kv_heads,
        FIELDS=FIELDS, TOKENS=tokens_per_item(heads, kv_heads, tiles.rows), BLOCK=tiles.keys, STAGES=tiles.stages,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return output


@triton.jit
def rotated(places, token, real, cosines, sines, norm, epsilon, HALF: tl.constexpr):
    """RMSNorm and rotary embeddings of heads: the two halves of each head, float32 [heads, HALF].

    Args:
        places: pointers to the first halves, [heads, HALF].
        token: row of `cosines` and `sines` for each head.
        real: which heads exist, [heads, 1].
    """
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


@triton.jit
def _attend(
    products, output, work_items, segment_start, cosines, sines, norm, scale, epsilon,
    STRIDE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, GROUP: tl.constexpr,
    FIELDS: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    item = work_items + tl.program_id(1) * FIELDS
    first, end = tl.load(item), tl.load(item + 1)
    if first >= end:
        return
    prefix_start, prefix_end, own_start = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4)
    DIM: tl.constexpr = 2 * HALF
    kind = products.dtype.element_ty

    row = tl.arange(0, TOKENS * GROUP)
    token = first + row // GROUP
    real = (token < end)[:, None]
    half = tl.arange(0, HALF)
    head = kv_head * GROUP + row % GROUP
    places = products + token.to(tl.int64)[:, None] * STRIDE + head[:, None] * DIM + half[None, :]
    low, high = rotated(places, token, real, cosines, sines, norm, epsilon, HALF)
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
        # A key after the prefix is visible to the tokens of its own segment that do not precede it.
        seen = in_prefix[None, :] | ((key[None, :] >= segment[:, None]) & (key[None, :] <= token[:, None]))
        scores = tl.where(seen, scores, float("-inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        # A row that has seen no key yet, which happens only without a prefix, would subtract minus infinity from
        # minus infinity.
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
