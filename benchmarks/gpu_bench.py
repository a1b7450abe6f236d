"""Everything that is to be known about the packed engine on a GPU, in one command; writes JSON and Markdown.

    python benchmarks/gpu_bench.py OUTPUT --commit "$(git rev-parse HEAD)"                       # all parts
    python benchmarks/gpu_bench.py OUTPUT --commit ... --parts goals profile                     # some of them
    python benchmarks/gpu_bench.py OUTPUT --commit try --device cpu --shape tiny --scale 20 --repeat 2   # tries it out

OUTPUT is a folder: `gpu_bench.json`, `gpu_bench.md`, and `cache`, which keeps compiled code for the next command. Each
part runs in a process of its own, with a time limit; one that fails is named with the end of what it wrote, and the
rest goes on. A part that is not asked for keeps what the folder's JSON has of it, so that a session may go part by
part.

Weights are random: right for speed and for agreement between implementations, they say nothing about quality. Every
time is the median of `--repeat` calls, each with a query that no other call has. Beside it is the largest difference of
a margin to transformers in float32, one prompt after the other (part `reference`, which always runs first).
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu_vllm, gpu_vllm_systems
from benchmarks.gpu_report import markdown, with_differences
from benchmarks.gpu_vllm_systems import SHAPES, WORDS, query, write_model

#: label -> (documents, words of one)
CASES = {
    "10 titles": (10, (10, 22)),
    "100 titles": (100, (10, 22)),
    "1000 titles": (1000, (10, 22)),
    "100 chunks": (100, (150, 240)),
}
CHECKED = 20  # documents of a case whose margins are compared
ALTERNATIVES = (
    "none",
    "launches",
    "flex",
    "whole-layer",
    "whole-model",
    "row-chunks",
    "narrow-tiles",
    "float8",
    "varlen",
    "shared-beginning",
)
PARTS = {
    "reference": 120,
    "goals": 240,
    "float8": 120,
    "eager": 120,
    "concurrent": 300,
    "memory": 180,
    "cold": 500,
    "profile": 120,
    "padded": 120,
    "cross-encoder": 120,
    **{f"alternative {name}": 150 for name in ALTERNATIVES},
    "alternative whole-model": 500,  # compiles all layers at once
    "vllm copied_generate": 240,
    "vllm copied_llm_score": 240,
    "vllm vllm_generate": 240,
    "vllm vllm_score": 240,
    "vllm vllm_packed": 240,
}

Rows = dict[str, dict[str, Any]]


def documents_of(label: str, scale: int) -> list[str]:
    """The same in every process."""
    count, words = CASES[label]
    rng = np.random.default_rng([count, words[0]])
    return texts(rng, max(2, count // scale), words)


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
    """The packed engine; compiled unless told otherwise, size classes as they come."""
    from qwen3_ranker_plugins import Reranker

    compiled = {"compile": True, "warm_up": False, "compile_cache": str(arguments.output / "cache")}
    return Reranker(
        arguments.model,
        engine="packed",
        device=arguments.device,
        engine_options=compiled | options if options.get("compile", True) else options,
    )


def margins_of(ranker: Any, label: str, documents: list[str]) -> list[float]:
    """Margins of the first documents, in a call with all of them."""
    by_index = {hit.index: hit.margin for hit in ranker.rerank(query(label, 0), documents)}
    return [by_index[index] for index in range(min(CHECKED, len(documents)))]


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


def part_goals(arguments: Namespace) -> Rows:
    """The compiled path, from strings to an ordered result, and the parts of that time."""
    with reranker(arguments) as ranker:
        return packed_rows(arguments, ranker) | {"about": {"describe": ranker.describe().as_dict()}}


def part_float8(arguments: Namespace) -> Rows:
    """The same with most products in float8."""
    with reranker(arguments, float8=True) as ranker:
        return packed_rows(arguments, ranker) | {"about": {"describe": ranker.describe().as_dict()}}


def part_eager(arguments: Namespace) -> Rows:
    """The engine without `compile`."""
    with reranker(arguments, compile=False) as ranker:
        return packed_rows(arguments, ranker)


def packed_rows(arguments: Namespace, ranker: Any) -> Rows:
    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.engines.attention.flex import padded_length
    from qwen3_ranker_plugins.engines.attention.layout import pack

    engine = ranker._lease.engine  # noqa: SLF001
    rows = {}
    for label in CASES:
        documents = documents_of(label, arguments.scale)
        warm_around(ranker, ranker.rerank(query(label, 0), documents).usage.computed_tokens)
        row = milliseconds(lambda n, d=documents, k=label: ranker.rerank(query(k, n), d), arguments.repeat)
        encode = lambda n, d=documents, k=label: ranker._encoder.encode(query(k, n), d, DEFAULT_INSTRUCTION)  # noqa: E731, SLF001
        request = encode(1)
        packed = pack([request])

        def run_pass(_number: int, packed: Any = packed) -> None:
            engine._forward(packed)  # noqa: SLF001
            synchronize(arguments)

        row["tokenization_ms"] = milliseconds(encode, arguments.repeat)["median_ms"]
        row["packing_ms"] = milliseconds(lambda _, r=request: pack([r]), arguments.repeat)["median_ms"]
        row["pass_ms"] = milliseconds(run_pass, arguments.repeat)["median_ms"]
        classes = 4 if engine._compiled is None else engine._compiled.per_octave  # noqa: SLF001
        row["padded_tokens"] = padded_length(request.num_tokens, classes)
        rows[label] = row | {"margins": margins_of(ranker, label, documents)}
    return rows


def warm_around(ranker: Any, tokens: int) -> None:
    """Compile for passes of about so many tokens, and for all parts of a request that comes in parts."""
    from qwen3_ranker_plugins.engines.packed.buffers import row_length
    from qwen3_ranker_plugins.reranker import PARTS

    engine = ranker._lease.engine  # noqa: SLF001
    if engine._compiled is not None:  # noqa: SLF001
        parts = [end - start for start, end in pairwise((0.0, *PARTS))]
        shares = [1.0, *parts] if engine.capabilities.encodes_meanwhile and tokens > 5000 else [1.0]
        sizes = [int(tokens * share * factor) for share in shares for factor in (0.98, 1.0, 1.02)]
        classes = engine._compiled.per_octave  # noqa: SLF001
        engine._compiled.warm_up([row_length(size, 1, classes) for size in sizes])  # noqa: SLF001


def part_concurrent(arguments: Namespace) -> Rows:
    """Eight queries with 100 titles each at once, against one query with all 800."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    documents = texts(np.random.default_rng(8), max(16, 800 // arguments.scale), CASES["100 titles"][1])
    share = len(documents) // 8
    # Half the size classes, since all of them up to 800 titles have to be compiled.
    with reranker(arguments, size_classes=4) as ranker, ThreadPoolExecutor(8) as pool:
        barrier = Barrier(8)

        def one(number: int, of_eight: int) -> None:
            barrier.wait()
            ranker.rerank(query(f"concurrent {of_eight}", number), documents[share * of_eight : share * (of_eight + 1)])

        def all_at_once(number: int) -> None:
            list(pool.map(one, [number] * 8, range(8)))

        warm(ranker, documents, share)
        passes: list[int] = []
        together = milliseconds(all_at_once, arguments.repeat)
        ranker.on_pass(lambda report: passes.append(report.documents))
        all_at_once(0)
        alone = milliseconds(lambda n: ranker.rerank(query("alone", n), documents), arguments.repeat)
    ratio = round(together["median_ms"] / alone["median_ms"], 3)
    return {"8 x 100 titles": together | {"ratio": ratio, "documents_of_passes": passes}, "1 x 800 titles": alone}


def warm(ranker: Any, documents: list[str], share: int) -> None:
    """All passes that arrivals in any order may make: so many of the eight requests share one."""
    passes = ranker._lease.engine._compiled  # noqa: SLF001
    for sharing in range(1, 9):
        ranker.rerank_many([_request(number, documents, share) for number in range(sharing)])
    tokens = ranker.rerank("tokens", documents).usage.computed_tokens
    passes.warm_up([length for length in passes.lengths if length <= 1.1 * tokens + 1000])


def _request(number: int, documents: list[str], share: int) -> Any:
    from qwen3_ranker_plugins import Request

    return Request(query("warm", number), documents[share * number : share * (number + 1)])


def part_memory(arguments: Namespace) -> Rows:
    """10,000 documents of 500 tokens in one call.

    Expected of the 0.6B shape: weights 1.2 GiB, and for a pass of 32768 tokens 0.9 GiB at the widest place, where the
    feed-forward part holds the residual (2 kB a token), its norm (2), gate and up (12) and their product (6). Graphs of
    up to 8192 tokens have a quarter of that once more.
    """
    documents = texts(np.random.default_rng(9), max(8, 10_000 // arguments.scale), (425, 445))
    with reranker(arguments) as ranker:
        ranker.rerank("first", documents)  # compiles, for the last and shorter pass as well
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
            "computed_tokens": tokens,
            "tokens_per_document": round(tokens / len(documents)),
            "tokens_per_second": round(tokens / seconds),
            "peak": peak,
        }
    }


COLD = """
import json, sys, time
started = time.perf_counter()
from qwen3_ranker_plugins import Reranker
model, device, budget, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
imported = time.perf_counter()
with Reranker(model, engine="packed", device=device, token_budget=budget, engine_options=options) as reranker:
    ready = time.perf_counter()
    reranker.rerank("a query", ["a document"] * 2 + ["another"])
    scored = time.perf_counter()
    compiled = reranker._lease.engine._compiled
    classes = 0 if compiled is None else len(compiled._rows)
print(json.dumps({"import_s": imported - started, "start_s": ready - imported, "first_request_s": scored - ready,
                  "size_classes": classes}))
"""


def part_cold(arguments: Namespace) -> Rows:
    """Starts: without `compile`, with an empty cache folder, and with what that start left in it."""
    rows = {}
    budget = None if arguments.device == "cuda" else 256
    with tempfile.TemporaryDirectory() as cache:
        options = {"compile": True, "size_classes": arguments.cold_classes, "compile_cache": cache}
        for label, given in (("eager", {"compile": False}), ("empty cache", options), ("full cache", options)):
            done = subprocess.run(  # noqa: S603
                [
                    sys.executable,
                    "-c",
                    COLD,
                    str(arguments.model),
                    arguments.device,
                    json.dumps(budget),
                    json.dumps(given),
                ],
                check=True,
                capture_output=True,
                text=True,
            )
            seconds = json.loads(done.stdout.splitlines()[-1])
            rows[label] = {name: round(value, 2) for name, value in seconds.items()}
            print(label, rows[label], flush=True)
    return rows


def part_profile(arguments: Namespace) -> Rows:
    """Where a pass spends the device's time, by kernel."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.engines.attention.layout import pack

    on_gpu = arguments.device == "cuda"
    rows = {}
    with reranker(arguments, **({"cuda_graphs": False} if on_gpu else {})) as ranker:
        for label in ("100 titles", "1000 titles", "100 chunks"):
            documents = documents_of(label, arguments.scale)
            packed = pack([ranker._encoder.encode(query(label, 1), documents, DEFAULT_INSTRUCTION)])  # noqa: SLF001
            engine = ranker._lease.engine  # noqa: SLF001
            for _ in range(3):
                engine._forward(packed)  # noqa: SLF001
            synchronize(arguments)
            with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
                for _ in range(3):
                    engine._forward(packed)  # noqa: SLF001
                synchronize(arguments)
            kernels = {
                event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 3000
                for event in profiled.key_averages()
                if not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA
            }
            rows[label] = split_by_kind(kernels)
    return rows


def split_by_kind(kernels: dict[str, float]) -> dict[str, Any]:
    """Milliseconds of linear layers, attention and the rest, by the names of kernels."""
    kinds = {"linear": 0.0, "attention": 0.0, "rest": 0.0}
    for name, spent in kernels.items():
        kinds[kind_of(name)] += spent
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:15]
    return {
        **{f"{kind}_ms": round(spent, 3) for kind, spent in kinds.items()},
        "kernels": [{"ms": round(spent, 3), "kind": kind_of(name), "name": name[:120]} for name, spent in longest],
    }


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    if any(part in name for part in ("flex_attention", "flash", "fmha", "_attend")):
        return "attention"
    if any(
        part in name for part in ("gemm", "nvjet", "cutlass", "cublas", "xmma", "aten::mm", "aten::addmm", "splitk")
    ):
        return "linear"
    return "rest"


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
            margins[order[start : start + 64]] = (
                (logits[:, tokenizer.yes_id] - logits[:, tokenizer.no_id]).cpu().numpy()
            )
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
    system = f"<|im_start|>system\n{gpu_vllm_systems.JUDGE}<|im_end|>\n"
    prefix = f"{system}<|im_start|>user\n<Instruct>: {DEFAULT_INSTRUCTION}\n\n"

    def score(text: str, documents: list[str]) -> np.ndarray:
        pairs = [
            (f"{prefix}<Query>: {text}\n\n", f"<Document>: {document}{gpu_vllm_systems.SUFFIX}")
            for document in documents
        ]
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


def part_vllm(arguments: Namespace, system: str) -> Rows:
    """One system of gpu_vllm.py, which has cases and queries of its own: its margins are compared in its own table."""
    seconds = PARTS[f"vllm {system}"]
    options = Namespace(
        commit=arguments.commit,
        device=arguments.device,
        shape=arguments.shape,
        repeat=arguments.repeat,
        scale=arguments.scale,
        timeout=seconds,
        seconds=seconds,
        ends=time.monotonic() + seconds,
    )
    result = gpu_vllm.run(system, gpu_vllm.TABLE[system], options, arguments.model)
    if "failed" in result:
        sys.exit(f"{system}: {result['failed']}")
    rows: Rows = result["rows"]
    for row in rows.values():
        row.pop("margins")
    return rows | {"about": {"start_seconds": result["start_seconds"], "facts": result["facts"]}}


def part_alternative(arguments: Namespace, name: str) -> Rows:
    """A pass of each case through another decoder; the time is the device's, from the row to the margins."""
    from benchmarks.gpu_alternatives import alternative_rows

    with reranker(arguments) as ranker:
        documents = {label: documents_of(label, arguments.scale) for label in CASES}
        return alternative_rows(name, ranker, documents, arguments.repeat)


def run_part(arguments: Namespace, part: str) -> Rows:
    """In this process."""
    kind, _, name = part.partition(" ")
    if kind == "alternative":
        return part_alternative(arguments, name)
    if kind == "vllm":
        return part_vllm(arguments, name)
    simple: dict[str, Callable[[Namespace], Rows]] = {
        "reference": part_reference,
        "goals": part_goals,
        "float8": part_float8,
        "eager": part_eager,
        "concurrent": part_concurrent,
        "memory": part_memory,
        "cold": part_cold,
        "profile": part_profile,
        "padded": part_padded,
        "cross-encoder": part_cross_encoder,
    }
    return simple[part](arguments)


def run_in_process(arguments: Namespace, part: str) -> dict[str, Any]:
    """{"rows": ...} or {"failed": why}."""
    result = arguments.output / "part.json"
    command = [sys.executable, __file__, str(arguments.output), "--commit", arguments.commit, "--one", part]
    for name in ("model", "shape", "device", "scale", "repeat", "cold_classes"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    log = arguments.output / "part.log"
    started = time.perf_counter()
    with log.open("w") as stream:
        try:
            done = subprocess.run(  # noqa: S603
                command, check=False, stdout=stream, stderr=subprocess.STDOUT, timeout=PARTS[part]
            )
            why = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"longer than {PARTS[part]} s"
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
    parser.add_argument(
        "--parts", nargs="+", default=[], metavar="PART", help=f"some of: {', '.join(PARTS)}; or their first words"
    )
    parser.add_argument("--model", type=Path, help="a folder of an earlier run, or where to write one")
    parser.add_argument("--tokenizer", type=Path, help="folder of Qwen3's tokenizer; else package dashscope is needed")
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--scale", type=int, default=1, help="divides the numbers of documents")
    parser.add_argument(
        "--cold-classes", type=int, default=4, help="size classes between a length and its double, in `cold`"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    wanted = arguments.parts or list(PARTS)
    arguments.parts = [part for part in PARTS if part in wanted or part.partition(" ")[0] in wanted]
    if unknown := [name for name in wanted if not any(name in (part, part.partition(" ")[0]) for part in PARTS)]:
        parser.error(f"no such part: {', '.join(unknown)}")
    return arguments


def main() -> None:
    arguments = parse()
    arguments.output = arguments.output.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        rows = run_part(arguments, arguments.one)
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
        file.write_text(json.dumps(report), encoding="utf-8")  # whatever happens to the tables
        with_differences(report)
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


def about(arguments: Namespace) -> dict[str, Any]:
    import torch

    wanted = ("torch", "triton", "transformers", "tokenizers", "sentence-transformers", "vllm")
    return {
        "device": torch.cuda.get_device_name(0) if arguments.device == "cuda" else "cpu",
        "versions": {each.name: each.version for each in distributions() if each.name in wanted},
        "commit": arguments.commit,
        "shape": arguments.shape,
        "flops_per_token": gpu_vllm_systems.flops_per_token(arguments.shape),
        "floor_flops_per_second": gpu_vllm.FLOOR_FLOPS,
        "repeat": arguments.repeat,
        "scale": arguments.scale,
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.now(UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
