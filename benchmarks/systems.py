"""Shared by the scripts here: random weights, documents, queries, and the copied vLLM scripts."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WORDS = (
    "women men cotton short sleeve sports running shoes waterproof jacket summer new style loose casual kids dress "
    "leather bag wireless headphones charger phone case 5000mAh stainless steel bottle kitchen yoga pants high waist"
).split()
#: label -> (documents, (fewest words, most words)).
CASES = {
    "1000 titles": (1000, (10, 22)),
    "400 titles": (400, (10, 22)),
    "100 titles": (100, (10, 22)),
    "100 chunks": (100, (150, 240)),
}
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "4B": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
}
WARMUP = 3
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

#: (query, documents) -> P(yes) of each.
Scores = Callable[[str, list[str]], list[float]]


def run_apart(command: list[str], log: Path, timeout: float, environment: dict[str, str]) -> str | None:
    """Run a command in a process group of its own, which is killed at the end with everything that it started.

    Args:
        command: program and arguments.
        log: file for both output streams.
        timeout: seconds after which it is killed.
        environment: variables besides those of this process.

    Returns:
        Why it failed; None if it ended with exit code 0.
    """
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603
            command,
            env={**os.environ, **environment},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"not done after {timeout:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"exit code {code}" if code else None


def write_model(folder: Path, shape: str, device: str, tokenizer: Path | None) -> None:
    """Random weights with the real tokenizer, from a folder or rebuilt as the tests do it."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151669,
        tie_word_embeddings=True,
        max_position_embeddings=40960,
        rope_theta=1_000_000,
        dtype="bfloat16",
        **SHAPES[shape],
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    if tokenizer is not None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / name, folder)
    else:
        from tests.qwen3_tokenizer import write_qwen3_tokenizer

        write_qwen3_tokenizer(folder)


def documents_of(label: str, scale: int) -> list[str]:
    """The documents of a case, the same in every process; `scale` divides their number."""
    count, words = CASES[label]
    rng = np.random.default_rng(list(label.encode()))
    return [
        " ".join(rng.choice(WORDS, size=rng.integers(*words, endpoint=True))) for _ in range(max(2, count // scale))
    ]


def query(label: str, number: int) -> str:
    """A query that no other call has."""
    words = np.random.default_rng([number, *label.encode()]).choice(WORDS, size=4)
    return f"{number} {' '.join(words)} {label}"


def copied_generate(folder: Path, *, eager: bool) -> Scores:
    """The widely copied script, with ids taken out of what transformers 5 returns."""
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
    llm = LLM(
        model=str(folder),
        max_model_len=10000,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.8,
        enforce_eager=eager,
    )
    suffix = tokenizer.encode(SUFFIX, add_special_tokens=False)
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    parameters = SamplingParams(temperature=0, max_tokens=1, logprobs=20, allowed_token_ids=[yes, no])

    def scores(text: str, documents: list[str]) -> list[float]:
        messages = [
            [
                {"role": "system", "content": JUDGE},
                {
                    "role": "user",
                    "content": f"<Instruct>: {DEFAULT_INSTRUCTION}\n\n<Query>: {text}\n\n<Document>: {document}",
                },
            ]
            for document in documents
        ]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=False, enable_thinking=False)
        prompts = [TokensPrompt(prompt_token_ids=each[:8192] + suffix) for each in ids["input_ids"]]
        result = []
        for output in llm.generate(prompts, parameters, use_tqdm=False):
            logprobs = output.outputs[0].logprobs[-1]
            true, false = (math.exp(logprobs[label].logprob if label in logprobs else -10) for label in (yes, no))
            result.append(true / (true + false))
        return result

    return scores


def copied_llm_score(folder: Path, *, eager: bool) -> Scores:
    """`LLM.score` as the model card of the converted checkpoint calls it: texts in the template's words."""
    from vllm import LLM

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION

    llm = LLM(
        model=str(folder),
        runner="pooling",
        max_model_len=10000,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.8,
        enforce_eager=eager,
        hf_overrides={
            "architectures": ["Qwen3ForSequenceClassification"],
            "classifier_from_token": ["no", "yes"],
            "is_original_qwen3_reranker": True,
        },
    )
    prefix = f"<|im_start|>system\n{JUDGE}<|im_end|>\n<|im_start|>user\n"

    def scores(text: str, documents: list[str]) -> list[float]:
        asked = f"{prefix}<Instruct>: {DEFAULT_INSTRUCTION}\n\n<Query>: {text}\n\n"
        outputs = llm.score(asked, [f"<Document>: {document}{SUFFIX}" for document in documents], use_tqdm=False)
        return [output.outputs.score for output in outputs]

    return scores


COPIED = {"copied_generate": copied_generate, "copied_llm_score": copied_llm_score}


def measure(
    engine: str, folder: Path, options: dict[str, Any], labels: list[str], repeat: int, scale: int, device: str
) -> dict[str, Any]:
    """Times of one system and the margins of the last call, in this process."""
    facts: dict[str, str] = {}
    started = time.perf_counter()
    reranker = None
    if engine in COPIED:
        # Compiling for a CPU takes a minute, and a CPU is only for trying this script out.
        scores = COPIED[engine](folder, eager=device == "cpu")
    else:
        from qwen3_ranker_plugins import Reranker

        reranker = Reranker(folder, engine=engine, engine_options=options, device=device)
        facts = reranker.describe().as_dict()
        scores = lambda text, documents: reranker.score(text, documents).tolist()  # noqa: E731
    loaded = time.perf_counter() - started
    rows = {}
    for label in labels:
        documents = documents_of(label, scale)
        for number in range(WARMUP):
            scores(query(label, 900 + number), documents)
        times = []
        for number in range(repeat):
            text = query(label, number)
            started = time.perf_counter()
            result = scores(text, documents)
            times.append(1000 * (time.perf_counter() - started))
        if reranker is not None:
            hits = reranker.rerank(query(label, repeat - 1), documents)
            margins = [hit.margin for hit in sorted(hits, key=lambda hit: hit.index)]
        else:
            margins = logits(result)
        rows[label] = {
            "times_ms": [round(each, 2) for each in times],
            "median_ms": round(statistics.median(times), 2),
            "pairs_per_second": round(len(documents) / statistics.median(times) * 1000),
            "margins": margins,
        }
    return {"start_seconds": round(loaded, 1), "facts": facts, "rows": rows}


def reference(folder: Path, labels: list[str], repeat: int, scale: int, device: str) -> dict[str, Any]:
    """Margins by transformers' own forward pass in float32, one prompt after the other, and what a pass has to hold.

    Of the first 100 documents of a case.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model, tokenizer = model.to(device), load_tokenizer(folder)
    rows = {}
    for label in labels:
        documents = documents_of(label, scale)
        request = PromptEncoder(tokenizer).encode(query(label, repeat - 1), documents, DEFAULT_INSTRUCTION)
        margins = []
        for index in range(min(100, len(documents))):
            with torch.inference_mode():
                found = model(torch.tensor([request.prompt(index)], device=device), logits_to_keep=1).logits[0, -1]
            margins.append(float(found[tokenizer.yes_id] - found[tokenizer.no_id]))
        segments = sum(map(len, request.segments))
        rows[label] = {
            "documents": len(documents),
            "prompt_tokens": len(request.prefix) * len(documents) + segments,
            "packed_tokens": len(request.prefix) + segments,
            "margins": margins,
        }
    return {"rows": rows}


def flops_per_token(shape: str) -> float:
    """Of the linear layers, which are nearly everything at these lengths."""
    size = SHAPES[shape]
    heads = size["num_attention_heads"] * size["head_dim"]
    key_value = size["num_key_value_heads"] * size["head_dim"]
    attention = size["hidden_size"] * (2 * heads + 2 * key_value)
    return 2.0 * size["num_hidden_layers"] * (attention + 3 * size["hidden_size"] * size["intermediate_size"])


def logits(scores: list[float]) -> list[float]:
    """The margins of probabilities, cut where a probability is 0 or 1."""
    clipped = np.clip(np.asarray(scores, dtype=np.float64), 1e-9, 1 - 1e-9)
    margins: list[float] = np.log(clipped / (1 - clipped)).tolist()
    return margins
