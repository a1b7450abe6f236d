"""The CUDA path's attention where there is no GPU: FlexAttention compiled for the CPU, on a whole padded pass."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
from qwen3_ranker_plugins.engines.attention.flex import FlexLayout, many_lengths
from qwen3_ranker_plugins.engines.attention.layout import pack, padded_length
from qwen3_ranker_plugins.engines.packed.checkpoint import load_model
from qwen3_ranker_plugins.engines.packed.engine import PackedEngine
from qwen3_ranker_plugins.engines.packed.model_layers import ModelLayers
from qwen3_ranker_plugins.models import read_spec
from qwen3_ranker_plugins.prompt import EncodedRequest, ModelTokenizer, PromptEncoder, load_tokenizer

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile for a CPU needs g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own code, which differ by release
def test_flex_attention_gives_the_margins_of_the_cpu_path(tiny: Path, tiny_tokenizer: ModelTokenizer) -> None:
    encoder = PromptEncoder(tiny_tokenizer)
    rng = np.random.default_rng(3)
    words = "the with statement closes a file when block ends exception".split()
    requests = [
        encoder.encode(query, [" ".join(rng.choice(words, size=n)) for n in lengths], DEFAULT_INSTRUCTION)
        for query, lengths in (("a", [1, 5, 90]), ("how to close a file " * 30, rng.integers(1, 90, size=12).tolist()))
    ]
    engine = PackedEngine(tiny, device="cpu")
    packed = pack(requests)
    layers = ModelLayers(
        load_model(tiny, read_spec(tiny), load_tokenizer(tiny), torch.float32).decoder, engine._direction, CPU
    )
    margins = layers.margins(packed, FlexLayout(packed, CPU))
    np.testing.assert_allclose(margins.numpy(), engine.forward(packed).numpy(), rtol=0, atol=1e-4)


def test_every_padded_length_is_compiled() -> None:
    """Past its limit of recompilations dynamo would go on uncompiled, with a matrix of all scores, and not say so."""
    compiled = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    attend = torch.compile(flex_attention, dynamic=False, fullgraph=True, backend=backend)
    lengths = sorted({padded_length(tokens) for tokens in range(1, 2049)})
    assert len(lengths) > 8
    with many_lengths():
        for length in lengths:
            packed = pack([EncodedRequest([1] * 20, [[1] * (length - 25)], [0])])
            mask = FlexLayout(packed, CPU).mask
            states = torch.zeros(1, 2, length, 16)
            attend(states, states, states, block_mask=mask)
    assert len(compiled) == len(lengths)
