"""The decoder's kernels in plain torch: what the Triton kernels are compared with, and what runs where there is no GPU.

`attend` follows the list of work items literally, one after another, with a matrix of all scores for each.
"""

from __future__ import annotations

import torch
from torch.nn.functional import silu

from qwen3_ranker_plugins.engines.attention.varlen import Sequences, VarlenKernel


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = states.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    return (wide * scale * weight.float()).to(states.dtype)


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(gate_up.dtype)


def gated_product(states: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    gate, up = (states @ matrix.t()).float().unflatten(1, (-1, 2)).unbind(2)
    return (silu(gate) * up).to(states.dtype)


def rotate_keys(
    products: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, key_norm: torch.Tensor, *,
    heads: int, kv_heads: int, epsilon: float, tokens: torch.Tensor | None = None,
) -> None:  # fmt: skip
    head_dim = len(key_norm)
    keys = products[:, heads * head_dim : (heads + kv_heads) * head_dim]
    rows = torch.arange(len(products)) if tokens is None else tokens.long()
    rotated = rotate(keys[rows].unflatten(1, (kv_heads, head_dim)), cosines[rows], sines[rows], key_norm, epsilon)
    keys[rows] = rotated.flatten(1).to(keys.dtype)


def rotate_queries(
    products: torch.Tensor, tokens: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor,
    query_norm: torch.Tensor, *, heads: int, epsilon: float,
) -> None:  # fmt: skip
    rotate_keys(products, cosines, sines, query_norm, heads=0, kv_heads=heads, epsilon=epsilon, tokens=tokens)


def gather_keys(
    products: torch.Tensor, tokens: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor,
    key_norm: torch.Tensor, *, heads: int, kv_heads: int, epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    rows, head_dim = tokens.long(), len(key_norm)
    _, keys, values = (
        part.unflatten(1, (-1, head_dim))
        for part in products[rows].split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    )
    return rotate(keys, cosines[rows], sines[rows], key_norm, epsilon).to(keys.dtype), values


def varlen_kernel(shortest: int) -> VarlenKernel:
    """Follows the sequences literally, one after another."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        output = torch.full(query.shape, torch.nan, dtype=query.dtype)
        copies = query.shape[1] // key.shape[1]
        key, value = (states.float().repeat_interleave(copies, dim=1) for states in (key, value))
        bounds = sequences.query_bounds.tolist(), sequences.key_bounds.tolist()
        for number, queries in enumerate(sequences.query_lengths.tolist()):
            first, start, end = bounds[0][number], bounds[1][number], bounds[1][number + 1]
            if queries == 0:
                assert start == end
                continue
            assert queries <= sequences.most_queries
            assert queries <= end - start <= sequences.most_keys
            seen = torch.ones(queries, end - start, dtype=torch.bool).tril(end - start - queries)
            scores = torch.einsum("qhd,khd->hqk", query[first : first + queries].float(), key[start:end])
            weights = (scores * query.shape[2] ** -0.5).masked_fill(~seen, -torch.inf).softmax(dim=-1)
            output[first : first + queries] = torch.einsum("hqk,khd->qhd", weights, value[start:end]).to(output.dtype)
        return output

    return VarlenKernel("plain torch", shortest, attend)


def rotate(
    states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, norm: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """RMSNorm and rotary embeddings of [tokens, heads, head_dim], in float32."""
    low, high = rms_norm(states.float(), norm, epsilon).chunk(2, dim=-1)
    cosines, sines = cosines[:, None], sines[:, None]
    return torch.cat([low * cosines - high * sines, high * cosines + low * sines], dim=-1)


def attend(
    products: torch.Tensor, work_items: torch.Tensor, segment_start: torch.Tensor, cosines: torch.Tensor,
    sines: torch.Tensor, query_norm: torch.Tensor, *, heads: int, kv_heads: int, epsilon: float,
    output: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    head_dim = len(query_norm)
    query, key, value = (
        part.unflatten(1, (-1, head_dim))
        for part in products.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    )
    query = rotate(query, cosines, sines, query_norm, epsilon)
    key, value = (states.float().repeat_interleave(heads // kv_heads, dim=1) for states in (key, value))
    # Rows without a work item are the padding's, which must not reach any margin.
    if output is None:
        output = torch.full_like(products[:, : heads * head_dim], torch.nan)
    rows = output.unflatten(1, (heads, head_dim))
    for first, end, prefix_start, prefix_end, own_start in work_items.tolist():
        if first == end:
            continue
        tokens = torch.arange(first, end)[:, None]
        keys = torch.cat([torch.arange(prefix_start, prefix_end), torch.arange(own_start, end)])
        in_prefix = torch.arange(len(keys)) < prefix_end - prefix_start
        seen = in_prefix | ((keys >= segment_start[first:end, None]) & (keys <= tokens))
        scores = torch.einsum("qhd,khd->hqk", query[first:end], key[keys]) * head_dim**-0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        rows[first:end] = torch.einsum("hqk,khd->qhd", weights, value[keys]).to(rows.dtype)
    return output
