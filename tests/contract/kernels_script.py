"""Runs under Triton's interpreter (TRITON_INTERPRET=1), which computes on a CPU; prints the largest differences.

Arguments: the model's folder with two layers, and with one for the engine's own trial on Turing, which takes longest.
A process of its own, since Triton decides when a kernel is defined. In float16, since the interpreter has no bfloat16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from qwen3_ranker_plugins.engines.attention.gpu_kernels import Attend
from qwen3_ranker_plugins.engines.attention.layout import PackedPass, pack
from qwen3_ranker_plugins.engines.attention.triton_nvidia import attend
from qwen3_ranker_plugins.engines.attention.varlen import find_long_segments, to_device
from qwen3_ranker_plugins.engines.attention.work_items import list_work_items, tokens_per_item
from qwen3_ranker_plugins.engines.packed import engine as engine_module
from qwen3_ranker_plugins.engines.packed import kernels
from qwen3_ranker_plugins.engines.packed import options as options_module
from qwen3_ranker_plugins.engines.packed.checkpoint import load_model
from qwen3_ranker_plugins.engines.packed.decoder import Decoder, take_weights
from qwen3_ranker_plugins.engines.packed.engine import PackedEngine
from qwen3_ranker_plugins.engines.packed.float8 import Float8Decoder
from qwen3_ranker_plugins.engines.packed.options import PackedOptions
from qwen3_ranker_plugins.engines.packed.size_classes import SizeClassRunner
from qwen3_ranker_plugins.models import read_spec
from qwen3_ranker_plugins.prompt import EncodedRequest, PromptEncoder, load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.contract import plain_kernels

CPU = torch.device("cpu")
EPSILON = 1e-6
# The interpreter takes milliseconds for each token, and the lengths that matter are in `packed_pass`.
SHORT_TEMPLATE = "compact"


def packed_pass() -> PackedPass:
    """Documents shorter and longer than a work item and a block of keys, and a request without a prefix."""

    def request(prefix: int, lengths: list[int]) -> EncodedRequest:
        return EncodedRequest([1] * prefix, [[2] * length for length in lengths], [0] * len(lengths))

    return pack([request(75, [3, 20, 20, 27, 40, 150]), request(0, [5, 9, 70]), request(130, [200])])


def expected_attention(
    products: torch.Tensor, packed: PackedPass, cosines: torch.Tensor, sines: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor], heads: int, kv_heads: int,
) -> torch.Tensor:  # fmt: skip
    """With a matrix of all scores, in float32, straight from the rule who sees whom."""
    tokens, head_dim = packed.num_tokens, len(norms[0])
    query, key, value = (
        part.unflatten(1, (-1, head_dim))
        for part in products[:tokens].float().split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    )
    angles = cosines[:tokens], sines[:tokens]
    query, key = (
        plain_kernels.rotate(states, *angles, norm, EPSILON) for states, norm in zip((query, key), norms, strict=True)
    )
    key, value = (states.repeat_interleave(heads // kv_heads, dim=1) for states in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * head_dim**-0.5
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

    tokens = packed.num_tokens + 37  # padding, which is in no work item
    products = random(tokens, (heads + 2 * kv_heads) * head_dim)
    norms = 1 + 0.1 * random(head_dim), 1 + 0.1 * random(head_dim)
    positions = torch.zeros(tokens)
    positions[: packed.num_tokens] = torch.from_numpy(packed.position_ids).float()
    angles = positions[:, None] * 10000.0 ** -torch.linspace(0, 1, head_dim // 2)
    cosines, sines = angles.cos(), angles.sin()
    expected = expected_attention(products, packed, cosines, sines, norms, heads, kv_heads)
    segment_start = torch.from_numpy(np.pad(packed.segment_start, (0, 37)))
    kinds: tuple[tuple[ModuleType, Attend], ...] = (kernels, attend), (plain_kernels, plain_kernels.attend)
    differences = []
    for shortest in (None, 100):
        listed = list_work_items(packed, tokens_per_item(heads, kv_heads), shortest)
        items = torch.from_numpy(np.concatenate([listed, np.zeros((3, 5), dtype=np.int32)]))
        for module, attention in kinds:
            states, output, others = products.clone(), None, None
            shape = {"heads": heads, "kv_heads": kv_heads, "epsilon": EPSILON}
            if shortest is not None:
                found_long = find_long_segments(packed, shortest)
                if found_long is None or len(found_long.query_bounds) != 2 * 2:
                    raise AssertionError("two documents are long")
                long = to_device(found_long, CPU)
                keys, values = module.gather_keys(states, long.keys, cosines, sines, norms[1], **shape)
                module.rotate_queries(states, long.queries, cosines, sines, norms[0], heads=heads, epsilon=EPSILON)
                query = states[:, : heads * head_dim].unflatten(1, (heads, head_dim))
                varlen = plain_kernels.varlen_kernel(shortest)
                output, others = varlen.attend(query, keys, values, long.sequences).flatten(1), long.others
            module.rotate_keys(states, cosines, sines, norms[1], tokens=others, **shape)
            found = attention(states, items, segment_start, cosines, sines, norms[0], output=output, **shape)
            differences.append(float((found[: packed.num_tokens].float() - expected).abs().max()))
    return max(differences)


def norm_and_gate_difference() -> float:
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(*shape, generator=generator).half() for shape in ((37, 96), (96,)))
    pairs = [
        (kernels.rms_norm(states, weight, EPSILON), plain_kernels.rms_norm(states, weight, EPSILON)),
        (kernels.gated(states), plain_kernels.gated(states)),
    ]
    return max(float((found.float() - expected.float()).abs().max()) for found, expected in pairs)


def float8_difference() -> float:
    """The share of numbers that are not what torch rounds to.

    Some are not: the interpreter forgets the carry where a mantissa is rounded up to the next power of two.
    """
    generator = torch.Generator().manual_seed(0)
    states, addend, weight = (torch.randn(*s, generator=generator).half() for s in ((37, 96), (37, 96), (96,)))
    added = states + addend
    expected = [
        plain_kernels.rms_norm(states.float(), weight, EPSILON),
        plain_kernels.gated(states.float()),
        plain_kernels.rms_norm(added.float(), weight, EPSILON),
    ]
    found = [
        kernels.rms_norm_float8(states.clone(), weight, EPSILON),
        kernels.gated_float8(states),
        kernels.rms_norm_float8(states, weight, EPSILON, addend),
    ]
    if not torch.equal(states, added):
        raise AssertionError("the addend was not added to the states")
    shares = [
        (narrow.float() != (exact / scales).to(torch.float8_e4m3fn).float()).float().mean()
        for (narrow, scales), exact in zip(found, expected, strict=True)
    ]
    return float(max(shares))


def margins_difference(folder: Path, kind: type[Decoder]) -> float:
    """A model, layers and all, against the engine in float32."""
    tokenizer = load_tokenizer(folder)
    engine = PackedEngine(folder, device="cpu", dtype="float32")
    weights = take_weights(
        load_model(folder, read_spec(folder), load_tokenizer(folder), torch.float16).decoder, engine._direction, CPU
    )
    options = PackedOptions(compile=True, size_classes=8, cuda_graphs=False)
    varlen = plain_kernels.varlen_kernel(20)
    runner = SizeClassRunner(kind(weights, kernels, attend, varlen), CPU, options, token_budget=512)
    encoder = PromptEncoder(tokenizer, SHORT_TEMPLATE)
    requests = [
        encoder.encode("what is the capital of France?", ["Paris", "Berlin is in Germany", "a"], "Find it"),
        encoder.encode("close a file", ["The with statement closes a file when its block ends"], "Find it"),
    ]
    expected = np.concatenate([margins.values for margins in engine.score(requests)])
    return float(np.abs(runner.run(pack(requests)).numpy() - expected).max())


def turing_margins_difference(folder: Path) -> float:
    """The engine as on a T4: the tiles for Turing, its trial of the kernels, and what it computes afterwards."""
    engine_module.capability = lambda _device: (7, 5)  # type: ignore[assignment]
    options_module.can_compile = lambda: True
    options = PackedOptions(compile=True, size_classes=8, cuda_graphs=False, warm_up=False)
    engine = PackedEngine(folder, device="cpu", dtype="float16", token_budget=512, options=options)
    if "fallback" in engine.describe().as_dict():
        raise AssertionError(engine.describe().as_dict()["fallback"])
    encoder = PromptEncoder(load_tokenizer(folder), SHORT_TEMPLATE)
    request = encoder.encode("close a file", ["The with statement closes a file.", "Paris"], "Find it")
    engine_module.capability = lambda _device: None  # type: ignore[assignment]
    expected = PackedEngine(folder, device="cpu", dtype="float32").score([request])[0].values
    return float(np.abs(engine.score([request])[0].values - expected).max())


if __name__ == "__main__":
    shapes = (2, 1, 128), (4, 1, 32), (2, 2, 64)  # one, two and four query heads share a kv head
    differences = {
        "attention": {str(shape): attention_difference(*shape) for shape in shapes},
        "norm and gate": norm_and_gate_difference(),
        "float8": float8_difference(),
        "margins": margins_difference(Path(sys.argv[1]), Decoder),
        "float8 margins": margins_difference(Path(sys.argv[1]), Float8Decoder),
        "margins on Turing": turing_margins_difference(Path(sys.argv[2])),
    }
    sys.stdout.write(json.dumps(differences) + "\n")
