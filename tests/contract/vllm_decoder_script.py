"""Runs vLLM's CPU build with our decoder in its model class, whose kernels are in plain torch; prints JSON lines.

A process of its own, since vLLM's engine runs in it instead of in a worker process. Argument: the model's folder. The
second line is of a decoder with other weights, which the comparison with vLLM's layers must refuse.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.engines import create_engine, engine_module
from qwen3_ranker_plugins.engines.packed import options as packed_options
from qwen3_ranker_plugins.engines.packed import size_classes
from qwen3_ranker_plugins.engines.packed.decoder import Decoder, DecoderWeights
from qwen3_ranker_plugins.engines.packed.options import PackedOptions
from qwen3_ranker_plugins.engines.vllm.packed import decoder as decoder_module
from tests.contract import plain_kernels
from tests.contract.in_this_process import use_no_worker_processes

#: The long document has more tokens than the kernel for long documents needs.
REQUESTS = [
    ("what is the capital of France?", ["Paris", "Berlin is in Germany", "a", "It closes a file. " * 12, "Paris"]),
    ("close a file", ["It closes a file.", "Paris"]),
]


def plain_runner(weights: DecoderWeights, *, token_budget: int, **_: bool) -> Any:
    options = PackedOptions(compile=True, size_classes=8, cuda_graphs=False)
    decoder = Decoder(weights, plain_kernels, plain_kernels.attend, plain_kernels.varlen_kernel(40))
    return size_classes.SizeClassRunner(decoder, weights.embedding.device, options, token_budget)


def try_another_norm(model: Any) -> None:
    weights = model._runner.decoder.weights
    model._untried, model._runner = replace(weights, norm=20 * weights.norm), None


if __name__ == "__main__":
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    use_no_worker_processes()
    packed_options.obstacle = lambda *_: None
    decoder_module.runner_of = plain_runner
    resolved = engine_module("vllm_packed").resolve(
        "vllm_packed", RerankerSettings(sys.argv[1], "vllm_packed", "cpu", "float32")
    )
    engine: Any = create_engine(resolved.config)
    requests = [resolved.encoder.encode(query, documents, DEFAULT_INSTRUCTION) for query, documents in REQUESTS]
    for action in (None, try_another_norm):
        if action is not None:
            engine._worker.runner.engine.apply_model(action)
        margins = [float(value) for each in engine.score(requests) for value in each.values]
        facts = engine._worker.runner.facts()
        kept = {name: facts[name] for name in ("layers", "fallback") if name in facts}
        sys.stdout.write(json.dumps({"margins": margins, "facts": kept}) + "\n")
    engine.close()
