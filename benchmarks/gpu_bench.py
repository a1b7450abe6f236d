"""Write the tables of docs/performance.md for a GPU: the packed engine compared with transformers on padded prompts.

    python benchmarks/gpu_bench.py OUTPUT --commit "$(git rev-parse HEAD)"                       # all parts
    python benchmarks/gpu_bench.py OUTPUT --commit ... --parts packed profile                    # some of them
    python benchmarks/gpu_bench.py OUTPUT --commit try --device cpu --shape tiny --scale 20 --repeat 2   # a try-out

OUTPUT is a folder, in which `gpu_bench.json` and `gpu_bench.md` are written. Each part runs in its own process with a
time limit. If a part fails, it is reported with the end of its log, and the other parts run. Parts that are not
requested keep their results in the JSON file.

Weights are random, which is valid for speed and for agreement between implementations, but not for quality. A time is
the median of `--repeat` calls, each with a query that no other call has. Each row also has the largest difference of a
margin to transformers in float32, one prompt at a time (part `reference`, which always runs first).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_vllm, systems
from benchmarks.gpu_report import markdown, with_differences
from benchmarks.systems import SHAPES, WORDS, query, write_model

#: label -> (documents, (fewest words, most words) of a document)
CASES = {
    "10 titles": (10, (10, 22)),
    "100 titles": (100, (10, 22)),
    "1000 titles": (1000, (10, 22)),
    "100 chunks": (100, (150, 240)),
}
CHECKED = 20  # documents of a case whose margins are compared

Rows = dict[str, dict[str, Any]]


def documents_of(label: str, scale: int) -> list[str]:
    """The same in every process."""
    count, words = CASES[label]
    return texts(np.random.default_rng([count, words[0]]), max(2, count // scale), words)


def texts(rng: np.random.Generator, count: int, words: tuple[int, int]) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=rng.integers(*words, endpoint=True))) for _ in range(count)]


def milliseconds(call: Callable[[int], object], repeat: int) -> dict[str, Any]:
    """Times of `call(number)`, after three calls that are not counted."""
    times = []
    for number in range(-3, repeat):
        started = time.perf_counter()
        call(number + 1000)
        if number >= 0:
            times.append(1000 * (time.perf_counter() - started))
    return {"median_ms": round(statistics.median(times), 2), "times_ms": [round(each, 2) for each in times]}


def synchronize(arguments: Namespace) -> None:
    if arguments.device == "cuda":
        import torch

        torch.cuda.synchronize()


def reranker(arguments: Namespace, **options: Any) -> Any:
    from qwen3_ranker_plugins import Reranker

    return Reranker(arguments.model, engine="packed", device=arguments.device, engine_options=options)


def part_reference(arguments: Namespace) -> Rows:
    """Margins in float32, and the tokens of each case."""
    import torch
    from transformers import AutoModelForCausalLM

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="sdpa")
    model, tokenizer = model.to(arguments.device), load_tokenizer(arguments.model)
    rows = {}
    for label in CASES:
        documents = documents_of(label, arguments.scale)
        request = PromptEncoder(tokenizer).encode(query(label, 0), documents, DEFAULT_INSTRUCTION)
        margins = []
        for index in range(min(CHECKED, len(documents))):
            ids = torch.tensor([request.prompt(index)], device=arguments.device)
            with torch.inference_mode():
                logits = model(ids, logits_to_keep=1).logits[0, -1]
            margins.append(float(logits[tokenizer.yes_id] - logits[tokenizer.no_id]))
        rows[label] = {"documents": len(documents), "packed_tokens": request.num_tokens, "margins": margins}
    return rows


def part_packed(arguments: Namespace, **options: Any) -> Rows:
    """The packed engine, from strings to an ordered result, and the parts of that time."""
    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.engines.attention.layout import pack

    rows: Rows = {}
    with reranker(arguments, **options) as ranker:
        engine, encoder = ranker._lease.engine, ranker._encoder  # noqa: SLF001
        for label in CASES:
            documents = documents_of(label, arguments.scale)
            row = milliseconds(lambda n, d=documents, k=label: ranker.rerank(query(k, n), d), arguments.repeat)
            encode = lambda n, d=documents, k=label: encoder.encode(query(k, n), d, DEFAULT_INSTRUCTION)  # noqa: E731
            request = encode(1)
            packed = pack([request])

            def run_pass(_number: int, packed: Any = packed) -> None:
                engine.forward(packed)
                synchronize(arguments)

            row["tokenization_ms"] = milliseconds(encode, arguments.repeat)["median_ms"]
            row["packing_ms"] = milliseconds(lambda _, r=request: pack([r]), arguments.repeat)["median_ms"]
            row["pass_ms"] = milliseconds(run_pass, arguments.repeat)["median_ms"]
            by_index = {hit.index: hit.margin for hit in ranker.rerank(query(label, 0), documents)}
            rows[label] = row | {"margins": [by_index[index] for index in range(min(CHECKED, len(documents)))]}
        return rows | {"about": {"describe": ranker.describe().as_dict()}}


def part_float8(arguments: Namespace) -> Rows:
    """The same with most products in float8."""
    return part_packed(arguments, float8=True)


def part_layers(arguments: Namespace) -> Rows:
    """The same through the model's own layers, with FlexAttention on a GPU."""
    return part_packed(arguments, compile=False)


def part_concurrent(arguments: Namespace) -> Rows:
    """Eight queries with 100 titles each at once, compared with one query with all 800."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    documents = texts(np.random.default_rng(8), max(16, 800 // arguments.scale), CASES["100 titles"][1])
    share = len(documents) // 8
    with reranker(arguments) as ranker, ThreadPoolExecutor(8) as pool:
        barrier = Barrier(8)

        def one(number: int, of_eight: int) -> None:
            barrier.wait()
            ranker.rerank(query(f"concurrent {of_eight}", number), documents[share * of_eight : share * (of_eight + 1)])

        def all_at_once(number: int) -> None:
            list(pool.map(one, [number] * 8, range(8)))

        together = milliseconds(all_at_once, arguments.repeat)
        passes: list[int] = []
        ranker.on_pass(lambda report: passes.append(report.documents))
        all_at_once(0)
        alone = milliseconds(lambda n: ranker.rerank(query("alone", n), documents), arguments.repeat)
    ratio = round(together["median_ms"] / alone["median_ms"], 3)
    return {"8 x 100 titles": together | {"ratio": ratio, "documents_of_passes": passes}, "1 x 800 titles": alone}


def part_memory(arguments: Namespace) -> Rows:
    """10,000 documents of 500 tokens in one call: seconds, and the largest memory."""
    documents = texts(np.random.default_rng(9), max(8, 10_000 // arguments.scale), (425, 445))
    with reranker(arguments) as ranker:
        ranker.rerank("first", documents[: max(2, len(documents) // 100)])
        if arguments.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        result = ranker.rerank("the query", documents)
        seconds = time.perf_counter() - started
        peak = None
        if arguments.device == "cuda":
            peak = {
                "allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
                "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
            }
    tokens = result.usage.computed_tokens
    return {
        f"{len(documents)} documents": {
            "seconds": round(seconds, 2),
            "tokens_per_document": round(tokens / len(documents)),
            "tokens_per_second": round(tokens / seconds),
            "peak": peak,
        }
    }


def part_profile(arguments: Namespace) -> Rows:
    """Milliseconds of a pass on the device, by kernel."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.engines.attention.layout import pack

    on_gpu = arguments.device == "cuda"
    rows = {}
    with reranker(arguments, **({"cuda_graphs": False} if on_gpu else {})) as ranker:
        engine = ranker._lease.engine  # noqa: SLF001
        for label in ("100 titles", "1000 titles", "100 chunks"):
            documents = documents_of(label, arguments.scale)
            packed = pack([ranker._encoder.encode(query(label, 1), documents, DEFAULT_INSTRUCTION)])  # noqa: SLF001
            for _ in range(3):
                engine.forward(packed)
            synchronize(arguments)
            with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
                for _ in range(3):
                    engine.forward(packed)
                synchronize(arguments)
            rows[label] = split_by_kind(
                {
                    event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 3000
                    for event in profiled.key_averages()
                    if not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA
                }
            )
    return rows


def split_by_kind(kernels: dict[str, float]) -> dict[str, Any]:
    """Milliseconds of products, attention and the rest, by the names of kernels."""
    kinds = {"linear": 0.0, "attention": 0.0, "rest": 0.0}
    for name, spent in kernels.items():
        kinds[kind_of(name)] += spent
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:8]
    return {
        **{f"{kind}_ms": round(spent, 3) for kind, spent in kinds.items()},
        "kernels": [{"ms": round(spent, 3), "kind": kind_of(name), "name": name[:120]} for name, spent in longest],
    }


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    if any(part in name for part in ("flex_attention", "flash", "fmha", "_attend")):
        return "attention"
    products = ("gemm", "nvjet", "cutlass", "cublas", "xmma", "aten::mm", "aten::addmm", "splitk")
    return "linear" if any(part in name for part in products) else "rest"


def part_padded(arguments: Namespace) -> Rows:
    """Transformers on padded prompts, 64 at a time, shortest first; logits of the last position only."""
    import torch
    from transformers import AutoModelForCausalLM

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer

    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype, attn_implementation="sdpa")
    model, tokenizer = model.to(arguments.device), load_tokenizer(arguments.model)
    encoder = PromptEncoder(tokenizer)

    @torch.inference_mode()
    def score(text: str, documents: list[str]) -> np.ndarray:
        request = encoder.encode(text, documents, DEFAULT_INSTRUCTION)
        order = sorted(range(len(documents)), key=lambda index: request.lengths[index])
        margins = np.empty(len(documents), dtype=np.float32)
        for start in range(0, len(order), 64):
            prompts = [request.prompt(index) for index in order[start : start + 64]]
            width = max(map(len, prompts))
            ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
            mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            ids, mask, positions = (each.to(arguments.device, non_blocking=True) for each in (ids, mask, positions))
            output = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False)
            logits = output.logits[:, -1].float()
            found = logits[:, tokenizer.yes_id] - logits[:, tokenizer.no_id]
            margins[order[start : start + 64]] = found.cpu().numpy()
        return margins

    return peer_rows(arguments, score)


def part_cross_encoder(arguments: Namespace) -> Rows:
    """sentence-transformers' CrossEncoder on the same weights: the two rows of the output matrix as a classifier."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForCausalLM, Qwen3ForSequenceClassification

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.prompt import load_tokenizer

    tokenizer = load_tokenizer(arguments.model)
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as name:
        language: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
        language.config.num_labels, language.config.pad_token_id = 1, 151643
        classifier: Any = Qwen3ForSequenceClassification(language.config).to(dtype)
        classifier.model.load_state_dict(language.model.state_dict())
        rows = language.get_output_embeddings().weight
        classifier.score.weight.data = (rows[tokenizer.yes_id] - rows[tokenizer.no_id])[None].detach().clone()
        classifier.save_pretrained(name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (Path(name) / file).write_bytes((arguments.model / file).read_bytes())
        cross_encoder = CrossEncoder(name, device=arguments.device, model_kwargs={"dtype": dtype}, max_length=8192)
    if cross_encoder.tokenizer.pad_token is None:
        cross_encoder.tokenizer.pad_token = "<|endoftext|>"  # noqa: S105
    system = f"<|im_start|>system\n{systems.JUDGE}<|im_end|>\n"
    prefix = f"{system}<|im_start|>user\n<Instruct>: {DEFAULT_INSTRUCTION}\n\n"

    def score(text: str, documents: list[str]) -> np.ndarray:
        pairs = [(f"{prefix}<Query>: {text}\n\n", f"<Document>: {each}{systems.SUFFIX}") for each in documents]
        scores = cross_encoder.predict(pairs, batch_size=64, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        return np.asarray(scores, dtype=np.float32)

    return peer_rows(arguments, score)


def peer_rows(arguments: Namespace, score: Callable[[str, list[str]], np.ndarray]) -> Rows:
    rows = {}
    for label in CASES:
        documents = documents_of(label, arguments.scale)
        row = milliseconds(lambda n, d=documents, k=label: score(query(k, n), d), arguments.repeat)
        rows[label] = row | {"margins": score(query(label, 0), documents)[:CHECKED].tolist()}
    return rows


#: part -> (function, seconds that it may take)
PARTS: dict[str, tuple[Callable[[Namespace], Rows], int]] = {
    "reference": (part_reference, 120),
    "packed": (part_packed, 240),
    "float8": (part_float8, 120),
    "layers": (part_layers, 180),
    "padded": (part_padded, 120),
    "cross-encoder": (part_cross_encoder, 120),
    "concurrent": (part_concurrent, 180),
    "memory": (part_memory, 180),
    "profile": (part_profile, 120),
}


def run_in_process(arguments: Namespace, part: str) -> dict[str, Any]:
    """{"rows": ...} or {"failed": why}."""
    result, log, limit = arguments.output / "part.json", arguments.output / "part.log", PARTS[part][1]
    command = [sys.executable, __file__, str(arguments.output), "--commit", arguments.commit, "--one", part]
    for name in ("model", "shape", "device", "scale", "repeat"):
        command += [f"--{name}", str(getattr(arguments, name))]
    started = time.perf_counter()
    with log.open("w") as stream:
        try:
            done = subprocess.run(command, check=False, stdout=stream, stderr=subprocess.STDOUT, timeout=limit)  # noqa: S603
            why = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"longer than {limit} s"
    seconds = round(time.perf_counter() - started, 1)
    if why:
        tail = log.read_text(errors="replace").strip().splitlines()[-25:]
        print(f"{part}: {why} after {seconds} s", *tail, sep="\n    ", file=sys.stderr, flush=True)
        return {"failed": why, "seconds": seconds, "log": tail}
    rows = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    medians = {label: row["median_ms"] for label, row in rows.items() if "median_ms" in row}
    print(f"{part} ({seconds} s)", medians or rows, flush=True)
    return {"rows": rows, "seconds": seconds, "commit": arguments.commit}


def parse() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a folder")
    parser.add_argument("--commit", required=True, help="what is measured; the GPU host may have no repository")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--model", type=Path, help="folder of an earlier run's model, or where to write one")
    parser.add_argument("--tokenizer", type=Path, help="folder of Qwen3's tokenizer; else package dashscope is needed")
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--scale", type=int, default=1, help="divides the numbers of documents")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    arguments.output = arguments.output.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        rows = PARTS[arguments.one][0](arguments)
        (arguments.output / "part.json").write_text(json.dumps(rows), encoding="utf-8")
        return
    arguments.model = arguments.model or Path(tempfile.gettempdir()) / f"qwen3-random-{arguments.shape}"
    if not (arguments.model / "config.json").exists():
        arguments.model.mkdir(parents=True, exist_ok=True)
        write_model(arguments.model, arguments.shape, arguments.device, arguments.tokenizer)
    file = arguments.output / "gpu_bench.json"
    results = json.loads(file.read_text(encoding="utf-8"))["results"] if file.exists() else {}
    if "reference" not in {*results, *arguments.parts}:
        arguments.parts.insert(0, "reference")
    for part in arguments.parts:
        results[part] = run_in_process(arguments, part)
        report = {"about": about(arguments), "results": results}
        with_differences(report)
        file.write_text(json.dumps(report) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


def about(arguments: Namespace) -> dict[str, Any]:
    import torch

    wanted = ("torch", "triton", "transformers", "tokenizers", "sentence-transformers")
    return {
        "device": torch.cuda.get_device_name(0) if arguments.device == "cuda" else "cpu",
        "versions": {each.name: each.version for each in distributions() if each.name in wanted},
        "commit": arguments.commit,
        "shape": arguments.shape,
        "flops_per_token": systems.flops_per_token(arguments.shape),
        "floor_flops_per_second": gpu_vllm.FLOOR_FLOPS,
        "repeat": arguments.repeat,
        "scale": arguments.scale,
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.now(UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
