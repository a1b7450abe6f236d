"""Time the packed engine on a GPU with random weights in the shape of Qwen3-Reranker-0.6B, and check its margins.

    python scripts/gpu_packed.py OUTPUT.json --commit "$(git rev-parse HEAD)"

Random weights are right for speed and for agreement between implementations, and say nothing about quality. Every time
is the median of ten calls with a new query each, documents as strings in, ordered results out. The margins of some
documents are compared with transformers' own forward pass (SDPA, float32), one prompt after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION, Reranker
from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer
from scripts.gpu_vllm_systems import WORDS, write_model


def texts(rng: np.random.Generator, count: int, words: tuple[int, int]) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=rng.integers(*words, endpoint=True))) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True, help="what is measured; the GPU host may have no repository")
    arguments = parser.parse_args()
    output: Path = arguments.output
    rng = np.random.default_rng(0)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, "0.6B", "cuda", None)
        with Reranker(folder, device="cuda") as reranker:
            for label, count, words in (
                ("10 titles", 10, (10, 22)),
                ("100 titles", 100, (10, 22)),
                ("1000 titles", 1000, (10, 22)),
                ("100 chunks", 100, (150, 240)),
            ):
                documents = texts(rng, count, words)
                for n in range(3):
                    reranker.rerank(f"warm-up {n}", documents)
                times = []
                for n in range(10):
                    query = f"{n} " + " ".join(rng.choice(WORDS, size=4))
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                    result = reranker.rerank(query, documents)
                    times.append(1000 * (time.perf_counter() - started))
                rows.append(
                    {
                        "case": label,
                        "median_ms": round(statistics.median(times), 2),
                        "times_ms": [round(each, 2) for each in times],
                        "computed_tokens": result.usage.computed_tokens,
                        "largest_margin_difference": difference(folder, reranker, documents[:20]),
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
            about = reranker.describe()
    about["peak_memory_gib"] = str(round(torch.cuda.max_memory_allocated() / 2**30, 2))
    output.write_text(json.dumps({"about": about, "commit": arguments.commit, "rows": rows}, indent=1) + "\n")
    print(json.dumps(about))


def difference(folder: Path, reranker: Reranker, documents: list[str]) -> float:
    """Largest difference of a margin to one-prompt-at-a-time float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").cuda()
    tokenizer = load_tokenizer(folder)
    request = PromptEncoder(tokenizer).encode("query", documents, DEFAULT_INSTRUCTION)
    expected = []
    with torch.inference_mode():
        for index in range(len(documents)):
            logits = model(torch.tensor([request.prompt(index)], device="cuda"), logits_to_keep=1).logits[0, -1]
            expected.append(float(logits[tokenizer.yes_id] - logits[tokenizer.no_id]))
    by_index = {hit.index: hit.margin for hit in reranker.rerank("query", documents)}
    return max(abs(by_index[index] - margin) for index, margin in enumerate(expected))


if __name__ == "__main__":
    main()
