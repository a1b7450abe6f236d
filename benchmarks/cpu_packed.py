"""Write the CPU table of docs/performance.md: the packed engine compared with transformers on padded prompts.

    python benchmarks/cpu_packed.py OUTPUT.json                      # the bundled model
    python benchmarks/cpu_packed.py OUTPUT.json --shape 0.6B        # random weights in the shape of Qwen3-Reranker-0.6B

Both have the same weights and dtype. Every repetition has a new query; the engine and the baseline score it in turn, so
that other load on the machine disturbs both. Times include tokenization. The baseline pads all prompts of a call on the
left to the length of the longest one, and computes logits for the last position only. `largest_margin_difference` is
the largest difference between the margins of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.systems import SHAPES, write_model
from qwen3_ranker_plugins import DEFAULT_INSTRUCTION, __version__
from qwen3_ranker_plugins.data.demo import load_demo_corpus
from qwen3_ranker_plugins.engines.packed.engine import PackedEngine
from qwen3_ranker_plugins.models import resolve_model
from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer

#: label, documents, tokens of a document (None: passages of the demo corpus as they are)
CASES = (
    ("10 passages of the demo", 10, None),
    ("64 titles", 64, (14, 32)),
    ("8 chunks", 8, (250, 270)),
    ("100 passages of 100 tokens", 100, (100, 100)),
)

Score = Callable[[str, list[str]], np.ndarray]


def packed(folder: Path, dtype: str, encoder: PromptEncoder) -> Score:
    engine = PackedEngine(folder, device="cpu", dtype=dtype, token_budget=1 << 20)
    return lambda query, documents: engine.score([encoder.encode(query, documents, DEFAULT_INSTRUCTION)])[0].values


def padded(folder: Path, dtype: str, encoder: PromptEncoder) -> Score:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    tokenizer = load_tokenizer(folder)
    labels = [tokenizer.yes_id, tokenizer.no_id]

    @torch.inference_mode()
    def score(query: str, documents: list[str]) -> np.ndarray:
        request = encoder.encode(query, documents, DEFAULT_INSTRUCTION)
        prompts = [request.prompt(index) for index in range(len(documents))]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        output = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False)
        logits = output.logits[:, -1, labels].float()
        difference: np.ndarray = (logits[:, 0] - logits[:, 1]).numpy()
        return difference

    return score


def documents_of(
    rng: np.random.Generator, encoder: PromptEncoder, count: int, tokens: tuple[int, int] | None
) -> list[str]:
    """Whole passages, or running text of the corpus with about so many tokens."""
    passages = [document.content for document in load_demo_corpus().documents.values()]
    if tokens is None:
        return [passages[index] for index in rng.choice(len(passages), size=count, replace=False)]
    words = " ".join(passages).split()
    lengths = [len(each) for each in encoder.tokenizer.encode_batch([" " + word for word in words])]
    documents = []
    for _ in range(count):
        wanted = int(rng.integers(*tokens, endpoint=True))
        start = int(rng.integers(len(words) - wanted))
        end = start + int(np.searchsorted(np.cumsum(lengths[start : start + wanted]), wanted, side="right"))
        documents.append(" ".join(words[start:end]))
    return documents


def measure(folder: Path, dtype: str, repetitions: int, cases: list[str]) -> list[dict[str, Any]]:
    encoder = PromptEncoder(load_tokenizer(folder), "standard", 8192)
    systems = {"packed": packed(folder, dtype, encoder), "padded": padded(folder, dtype, encoder)}
    rng = np.random.default_rng(0)
    rows = []
    for label, count, tokens_each in CASES:
        if label not in cases:
            continue
        documents = documents_of(rng, encoder, count, tokens_each)
        tokens = encoder.encode("query", documents, DEFAULT_INSTRUCTION)
        times: dict[str, list[float]] = {"packed": [], "padded": []}
        difference = 0.0
        for repetition in range(repetitions + 1):  # the first is a warm-up
            query = " ".join(rng.choice(documents[0].split(), size=6)) + f" {repetition}"
            margins = {}
            for name, score in systems.items():
                started = time.perf_counter()
                margins[name] = score(query, documents)
                if repetition:
                    times[name].append(time.perf_counter() - started)
            difference = max(difference, float(np.abs(margins["packed"] - margins["padded"]).max()))
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows.append(
            {
                "case": label,
                "dtype": dtype,
                "prompt_tokens": sum(len(tokens.prompt(index)) for index in range(count)),
                "packed_tokens": len(tokens.prefix) + sum(map(len, tokens.segments)),
                "packed_ms": round(1000 * medians["packed"], 1),
                "padded_ms": round(1000 * medians["padded"], 1),
                "packed_fastest_ms": round(1000 * min(times["packed"]), 1),
                "padded_fastest_ms": round(1000 * min(times["padded"]), 1),
                "ratio_of_medians": round(medians["padded"] / medians["packed"], 2),
                "median_of_ratios": round(
                    statistics.median(b / a for a, b in zip(times["packed"], times["padded"], strict=True)), 2
                ),
                "largest_margin_difference": round(difference, 6),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def processor() -> str:
    features = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in _flags()]
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {' '.join(features)}"


def _flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":")[1].split())
    return set()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--shape", choices=["bundled", *SHAPES], default="bundled")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--cases", nargs="+", default=[label for label, _, _ in CASES])
    parser.add_argument("--repetitions", type=int, default=11)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = resolve_model("bundled:tiny") if arguments.shape == "bundled" else Path(name)
        if arguments.shape != "bundled":
            write_model(folder, arguments.shape, "cpu", None)
        for dtype in arguments.dtypes:
            rows += measure(folder, dtype, arguments.repetitions, arguments.cases)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S607
    about = {
        "command": f"python benchmarks/cpu_packed.py {arguments.output} --shape {arguments.shape}",
        "date": datetime.now(UTC).date().isoformat(),
        "version": __version__,
        "commit": commit.stdout.strip(),
        "processor": processor(),
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "transformers": transformers.__version__,
        "model": arguments.shape,
        "repetitions": arguments.repetitions,
    }
    arguments.output.write_text(json.dumps({"about": about, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
