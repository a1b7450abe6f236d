"""Runs under Triton's interpreter (TRITON_INTERPRET=1), which computes on a CPU; prints the largest differences.

A process of its own, since Triton decides when a kernel is defined. In float16, since the interpreter has no bfloat16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
from qwen3_ranker_plugins.engines.attention import kernels
from qwen3_ranker_plugins.engines.attention.layout import PackedPass, pack
from qwen3_ranker_plugins.engines.attention.work_items import plan, tokens_of_a_program
from qwen3_ranker_plugins.engines.packed.decoder import Decoder, DecoderWeights, gated, rms_norm, take_weights
from qwen3_ranker_plugins.engines.packed.engine import PackedEngine, _load
from qwen3_ranker_plugins.engines.packed.float8 import Float8Decoder
from qwen3_ranker_plugins.engines.packed.options import PackedOptions
from qwen3_ranker_plugins.engines.packed.runner import CompiledPasses
from qwen3_ranker_plugins.prompt import EncodedRequest, PromptEncoder, load_tokenizer

CPU = torch.device("cpu")
EPSILON = 1e-6


class OnCpu(Decoder):
    """Takes the kernels without a GPU."""

    def takes_kernels(self, weights: DecoderWeights) -> bool:
        return True


class Float8OnCpu(OnCpu, Float8Decoder):
    """The same with float8 products."""


def packed_pass() -> PackedPass:
    """Documents shorter and longer than a program and a block of keys, and a request without a prefix."""

    def request(prefix: int, lengths: list[int]) -> EncodedRequest:
        return EncodedRequest([1] * prefix, [[2] * length for length in lengths], [0] * len(lengths))

    return pack([request(75, [3, 20, 20, 27, 40, 150]), request(0, [5, 9, 70]), request(130, [200])])


def expected_attention(
    products: torch.Tensor, packed: PackedPass, cosines: torch.Tensor, sines: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor], heads: int, kv_heads: int,
) -> torch.Tensor:  # fmt: skip
    """With a matrix of all scores, in float32."""
    tokens, head_dim = packed.num_tokens, len(norms[0])
    query, key, value = (
        part.view(tokens, -1, head_dim)
        for part in products[:tokens].float().split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    )

    def turned(states: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        low, high = rms_norm(states, norm, EPSILON).chunk(2, dim=-1)
        cosine, sine = cosines[:tokens, None], sines[:tokens, None]
        return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)

    key, value = (states.repeat_interleave(heads // kv_heads, dim=1) for states in (turned(key, norms[1]), value))
    scores = torch.einsum("qhd,khd->hqk", turned(query, norms[0]), key) * head_dim**-0.5
    place = torch.arange(tokens)
    start, prefix_start, prefix_end = (
        torch.from_numpy(bounds)[:, None] for bounds in (packed.segment_start, packed.prefix_start, packed.prefix_end)
    )
    seen = (place >= start) | ((place >= prefix_start) & (place < prefix_end))
    scores = scores.masked_fill(~(seen & (place <= place[:, None])), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value).reshape(tokens, -1)


def attention_difference(heads: int, kv_heads: int, head_dim: int) -> float:
    packed, generator = packed_pass(), torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).half()

    tokens = packed.num_tokens + 37  # padding, which no program has
    products = random(tokens, (heads + 2 * kv_heads) * head_dim)
    norms = 1 + 0.1 * random(head_dim), 1 + 0.1 * random(head_dim)
    positions = torch.zeros(tokens)
    positions[: packed.num_tokens] = torch.from_numpy(packed.position_ids).float()
    angles = positions[:, None] * 10000.0 ** -torch.linspace(0, 1, head_dim // 2)
    cosines, sines = angles.cos(), angles.sin()
    expected = expected_attention(products, packed, cosines, sines, norms, heads, kv_heads)
    programs = np.concatenate([plan(packed, tokens_of_a_program(heads, kv_heads)), np.zeros((3, 5), dtype=np.int32)])
    found = kernels.attend(
        products, torch.from_numpy(programs), torch.from_numpy(np.pad(packed.segment_start, (0, 37))),
        cosines, sines, *norms, heads=heads, kv_heads=kv_heads, epsilon=EPSILON,
    )  # fmt: skip
    return float((found[: packed.num_tokens].float() - expected).abs().max())


def pieces_difference() -> float:
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(*shape, generator=generator).half() for shape in ((37, 96), (96,)))
    pairs = [
        (kernels.rms_norm(states, weight, EPSILON), rms_norm(states, weight, EPSILON)),
        (kernels.gated(states), gated(states)),
    ]
    return max(float((found.float() - expected.float()).abs().max()) for found, expected in pairs)


def float8_difference() -> float:
    """The share of numbers that are not what torch rounds to.

    Some are not: the interpreter forgets the carry where a mantissa is rounded up to the next power of two.
    """
    generator = torch.Generator().manual_seed(0)
    states, addend, weight = (torch.randn(*s, generator=generator).half() for s in ((37, 96), (37, 96), (96,)))
    added = states + addend
    pairs = [
        (kernels.rms_norm_float8(states.clone(), weight, EPSILON), rms_norm(states.float(), weight, EPSILON)),
        (kernels.gated_float8(states), gated(states.float())),
        (kernels.rms_norm_float8(states, weight, EPSILON, addend), rms_norm(added.float(), weight, EPSILON)),
    ]
    if not torch.equal(states, added):
        raise AssertionError("the addend was not added to the states")
    shares = [
        (narrow.float() != (expected / scales).to(torch.float8_e4m3fn).float()).float().mean()
        for (narrow, scales), expected in pairs
    ]
    return float(max(shares))


def margins_difference(folder: Path, kind: type[OnCpu]) -> float:
    """The bundled model, layers and all, against the engine in float32."""
    tokenizer = load_tokenizer(folder)
    engine = PackedEngine(folder, device="cpu", dtype="float32")
    decoder = kind(take_weights(_load(folder, torch.float16).model, engine._label_direction, CPU))
    passes = CompiledPasses(decoder, CPU, PackedOptions(compile=True).resolved("cpu", "float32"), token_budget=512)
    encoder = PromptEncoder(tokenizer)
    requests = [
        encoder.encode("what is the capital of France?", ["Paris", "Berlin is in Germany", "a"], DEFAULT_INSTRUCTION),
        encoder.encode("close a file", ["The with statement closes a file when its block ends"], DEFAULT_INSTRUCTION),
    ]
    expected = np.concatenate([margins.values for margins in engine.score(requests)])
    return float(np.abs(passes.margins(pack(requests)).numpy() - expected).max())


if __name__ == "__main__":
    shapes = (4, 2, 64), (2, 1, 128), (4, 1, 32), (2, 2, 32)
    differences = {
        "attention": {str(shape): attention_difference(*shape) for shape in shapes},
        "pieces": pieces_difference(),
        "float8": float8_difference(),
        "margins": margins_difference(Path(sys.argv[1]), OnCpu),
        "float8 margins": margins_difference(Path(sys.argv[1]), Float8OnCpu),
    }
    sys.stdout.write(json.dumps(differences) + "\n")
