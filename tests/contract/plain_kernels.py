"""The decoder's kernels in plain torch: what the Triton kernels are compared with, and what runs where there is no GPU.

`attend` follows the list of work items literally, one after another, with a matrix of all scores for each.
"""

from __future__ import annotations

import torch
from torch.nn.functional import silu


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = states.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    return (wide * scale * weight.float()).to(states.dtype)


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(gate_up.dtype)


def rotate_keys(
    products: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, key_norm: torch.Tensor, *,
    heads: int, kv_heads: int, epsilon: float,
) -> None:  # fmt: skip
    head_dim = len(key_norm)
    keys = products[:, heads * head_dim : (heads + kv_heads) * head_dim]
    rotated = rotate(keys.unflatten(1, (kv_heads, head_dim)), cosines, sines, key_norm, epsilon)
    keys.copy_(rotated.flatten(1))


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
) -> torch.Tensor:  # fmt: skip
    head_dim = len(query_norm)
    query, key, value = (
        part.unflatten(1, (-1, head_dim))
        for part in products.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    )
    query = rotate(query, cosines, sines, query_norm, epsilon)
    key, value = (states.float().repeat_interleave(heads // kv_heads, dim=1) for states in (key, value))
    # Rows without a work item are the padding's, which must not reach any margin.
    output = torch.full_like(query, torch.nan)
    for first, end, prefix_start, prefix_end, own_start in work_items.tolist():
        if first == end:
            continue
        tokens = torch.arange(first, end)[:, None]
        keys = torch.cat([torch.arange(prefix_start, prefix_end), torch.arange(own_start, end)])
        in_prefix = torch.arange(len(keys)) < prefix_end - prefix_start
        seen = in_prefix | ((keys >= segment_start[first:end, None]) & (keys <= tokens))
        scores = torch.einsum("qhd,khd->hqk", query[first:end], key[keys]) * head_dim**-0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        output[first:end] = torch.einsum("hqk,khd->qhd", weights, value[keys])
    return output.flatten(1).to(products.dtype)
