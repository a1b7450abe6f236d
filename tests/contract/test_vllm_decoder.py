"""Our decoder inside vLLM: with kernels in plain torch where there is no GPU, and with our kernels on one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.engines import missing_modules
from tests.warm_python import WarmPython

from .conftest import needs_vllm
from .vllm_decoder_script import REQUESTS

SLOW, TIMEOUT, ON_CPU = needs_vllm


@SLOW
@TIMEOUT
@ON_CPU
def test_vllms_weights_in_our_decoder(tiny: Path, warm_python: WarmPython) -> None:
    """And vLLM's own layers, with the reason, if our decoder's margins differ from theirs."""
    script = Path(__file__).with_name("vllm_decoder_script.py")
    done = warm_python.run([sys.executable, script, tiny])
    assert done.returncode == 0, done.stderr
    ours, refused = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert ours["facts"] == {"layers": "ours, with our kernels and plain torch for documents of 40 tokens or more"}
    assert refused["facts"]["layers"] == "vLLM's"
    assert refused["facts"]["fallback"].startswith("our decoder cannot be used on this GPU: its margins differ by ")
    with Reranker(tiny, device="cpu") as reranker:
        expected = np.concatenate([reranker.score(*request) for request in REQUESTS])
    for found in (ours, refused):
        np.testing.assert_allclose(1 / (1 + np.exp(-np.array(found["margins"]))), expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
@TIMEOUT
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.skipif(bool(missing_modules("vllm_packed")), reason="vLLM is not installed")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own code, which differ by release
@pytest.mark.parametrize("eager", [False, True])
def test_our_kernels_inside_vllm(tiny: Path, eager: bool) -> None:
    options = {"tensor_parallel_size": 1, "enforce_eager": eager, "max_num_batched_tokens": 16384}
    lists = [
        *REQUESTS,
        ("close a file", [f"document {number} about files " * (number % 90 + 1) for number in range(150)]),
    ]
    with (
        Reranker(tiny, device="cpu", dtype="float32") as exact,
        Reranker(tiny, engine="vllm_packed", dtype="bfloat16", engine_options=options) as reranker,
    ):
        assert reranker.describe().details["layers"].startswith("ours, with our kernels")
        for query, documents in lists:
            expected, found = (each.rerank(query, documents) for each in (exact, reranker))
            right = {hit.index: hit.margin for hit in expected}
            np.testing.assert_allclose(
                [hit.margin for hit in found], [right[hit.index] for hit in found], rtol=0, atol=0.3
            )
