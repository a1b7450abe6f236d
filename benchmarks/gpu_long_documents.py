"""Measure the attention of long documents on one GPU: our kernel alone, FlashAttention 4, torch's FlashAttention 2.

    python benchmarks/gpu_long_documents.py OUTPUT.json --commit "$(git rev-parse HEAD)" [--tokenizer FOLDER]
    python benchmarks/gpu_long_documents.py OUTPUT.json --commit try --device cpu --shape tiny --scale 50 --repeat 1

Each path runs in its own process with a time limit. If one fails, it is reported with the end of its log, and the
others run; results from before a failure are kept. Weights are random. The script measures for each path:

- calls of `rerank`, medians of `--repeat`, each with a query that no other call has, and the largest difference of a
  margin to transformers in float32, one prompt at a time (a sample), and to our kernel alone (all documents);
- passes of documents of one length, which show from which length on a path outweighs the cost of copying the prefix;
- the kernels of a pass of long documents, by the device's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu_bench import synchronize
from benchmarks.systems import SHAPES, WORDS, query, write_model

if TYPE_CHECKING:
    import torch

    from qwen3_ranker_plugins.engines.attention.varlen import Sequences, VarlenKernel

#: label -> (documents, words of each) groups. A word has 1.15 tokens.
CASES: dict[str, list[tuple[int, int]]] = {
    "4 x 8000 tokens": [(4, 6970)],
    "50 x 6240 tokens": [(50, 5440)],
    "100 x 1900 tokens": [(100, 1660)],
    "100 x 390 tokens": [(100, 325)],
    "1000 titles": [(1000, 16)],
    "mixed": [(300, 16), (40, 325), (20, 1660), (4, 5440)],
}
#: The paths, and from how many tokens on documents take it in calls.
PATHS: dict[str, tuple[int | None, ...]] = {
    "ours": (None,),
    "FlashAttention 4": (768, 512),
    "torch": (768,),
    "vllm_score": (None,),  # another engine, to compare with
}
LENGTHS = (64, 128, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 4096, 8000)
CHECKED = 4  # documents of each group of a case that are computed in float32
LIMITS = {"reference": 60, "ours": 90, "FlashAttention 4": 130, "torch": 90, "vllm_score": 200}  # seconds


def documents_of(label: str, scale: int) -> list[str]:
    """The same in every process; a document's words vary by a twentieth."""
    rng = np.random.default_rng(list(label.encode()))
    return [
        " ".join(rng.choice(WORDS, size=words + int(rng.integers(-words // 20, words // 20 + 1))))
        for count, words in CASES[label]
        for _ in range(max(1, count // scale))
    ]


def checked(label: str, scale: int) -> list[int]:
    """Indices of the documents that are computed in float32."""
    found, start = [], 0
    for count, _ in CASES[label]:
        count = max(1, count // scale)  # noqa: PLW2901
        found += range(start, start + min(CHECKED, count))
        start += count
    return found


def reference(arguments: Namespace, keep: Callable[..., None]) -> None:
    """Margins in float32, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    from qwen3_ranker_plugins import DEFAULT_INSTRUCTION
    from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer

    torch.backends.cuda.matmul.allow_tf32 = False
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, attn_implementation="sdpa")
    model, tokenizer = model.to(arguments.device), load_tokenizer(arguments.model)
    for label in CASES:
        documents = documents_of(label, arguments.scale)
        request = PromptEncoder(tokenizer).encode(query(label, 0), documents, DEFAULT_INSTRUCTION)
        margins = {}
        for index in checked(label, arguments.scale):
            ids = torch.tensor([request.prompt(index)], device=arguments.device)
            with torch.inference_mode():
                logits = model(ids, logits_to_keep=1).logits[0, -1]
            margins[index] = float(logits[tokenizer.yes_id] - logits[tokenizer.no_id])
        keep("margins", label, margins)
        keep("tokens", label, request.num_tokens)


def path(arguments: Namespace, keep: Callable[..., None]) -> None:
    """One path: calls, passes of one length, kernels."""
    from qwen3_ranker_plugins import Reranker

    name = arguments.one
    packed = name != "vllm_score"
    with Reranker(arguments.model, engine="packed" if packed else name, device=arguments.device) as ranker:
        keep("describe", ranker.describe().as_dict())
        for shortest in PATHS[name]:
            if packed:
                choose(ranker, name, shortest)
            for label in CASES:
                if shortest == 512 and label not in ("100 x 390 tokens", "mixed"):
                    continue
                documents, times = documents_of(label, arguments.scale), []
                for number in range(-1, arguments.repeat):
                    started = time.perf_counter()
                    ranker.rerank(query(label, number + 10), documents)
                    if number >= 0:
                        times.append(round(1000 * (time.perf_counter() - started), 2))
                hits = ranker.rerank(query(label, 0), documents)
                margins = [hit.margin for hit in sorted(hits, key=lambda hit: hit.index)]
                row = {"median_ms": statistics.median(times), "times_ms": times, "margins": margins}
                keep("calls", f"{label} @ {shortest}", row)
        if not packed:
            return
        choose(ranker, name, 2)
        engine = ranker._lease.engine  # noqa: SLF001
        for length in LENGTHS:
            keep("passes", str(length), pass_ms(arguments, engine, length))
        for length in (384, 1830, 6240):
            keep("profile", str(length), profile_of(arguments, engine, length))


def choose(ranker: Any, name: str, shortest: int | None) -> None:
    """Make the engine's decoder compute documents of at least `shortest` tokens on a path."""
    from qwen3_ranker_plugins.engines.attention.varlen_kernels import flash_attention_4

    kernels: dict[str, Callable[[], VarlenKernel] | None]
    kernels = {"ours": None, "FlashAttention 4": flash_attention_4, "torch": torch_flash_attention}
    runner = ranker._lease.engine._runner  # noqa: SLF001
    if runner is None:  # a CPU
        if kernels[name] is not None:
            raise RuntimeError(f"{name} needs a GPU")
        return
    make = kernels[name]
    kernel = None if make is None else replace(make(), shortest=shortest)
    runner.decoder._varlen = kernel  # noqa: SLF001
    for length in [length for length in runner._buffers if length not in runner._graphs]:  # noqa: SLF001
        del runner._buffers[length]  # noqa: SLF001
    started = time.perf_counter()
    runner.warm_up()
    print(f"{name} from {shortest} tokens on: {time.perf_counter() - started:.1f} s to compile", flush=True)


def torch_flash_attention() -> VarlenKernel:
    """FlashAttention 2 as torch has it built in. Its operator, because that takes fewer kv heads in all releases."""
    import torch

    from qwen3_ranker_plugins.engines.attention.varlen import VarlenKernel

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        bounds = sequences.query_bounds, sequences.key_bounds, sequences.most_queries, sequences.most_keys
        output: torch.Tensor = torch.ops.aten._flash_attention_forward(query, key, value, *bounds, 0.0, True, False)[0]  # noqa: SLF001
        return output

    return VarlenKernel("torch's FlashAttention 2", 512, attend)


def one_length(arguments: Namespace, engine: Any, length: int) -> Any:
    """A full pass of documents of a length, with a prefix of 80 tokens."""
    from qwen3_ranker_plugins.engines.attention.layout import pack
    from qwen3_ranker_plugins.prompt import EncodedRequest

    rng = np.random.default_rng(length)
    count = max(1, (engine.capabilities.token_budget // arguments.scale - 80) // length)
    documents = [rng.integers(0, 100000, size=length).tolist() for _ in range(count)]
    return pack([EncodedRequest(rng.integers(0, 100000, size=80).tolist(), documents, [0] * count)])


def pass_ms(arguments: Namespace, engine: Any, length: int) -> dict[str, Any]:
    """The median time of a pass, and its tokens."""
    packed, times = one_length(arguments, engine, length), []
    for number in range(-2, arguments.repeat):
        started = time.perf_counter()
        engine.forward(packed)
        synchronize(arguments)
        if number >= 0:
            times.append(1000 * (time.perf_counter() - started))
    return {"median_ms": round(statistics.median(times), 2), "tokens": packed.num_tokens}


def profile_of(arguments: Namespace, engine: Any, length: int) -> list[tuple[float, str]]:
    """(milliseconds, kernel) of a pass, the longest first."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if arguments.device != "cuda":
        return []
    packed = one_length(arguments, engine, length)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(3):
            engine.forward(packed)
        torch.cuda.synchronize()
    spent = [
        (round(event.self_device_time_total / 3000, 3), event.key[:100])
        for event in profiled.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(spent, reverse=True)[:14]


def run(arguments: Namespace, name: str, results: dict[str, Any]) -> None:
    """Run a part in a process of its own; what it kept is in `results`, and why it failed."""
    part = arguments.output.with_suffix(".part.jsonl")
    part.write_text("")
    command = [sys.executable, __file__, str(arguments.output), "--commit", arguments.commit, "--one", name]
    for option in ("model", "shape", "device", "scale", "repeat"):
        command += [f"--{option}", str(getattr(arguments, option))]
    limit = min(LIMITS[name], arguments.ends - time.monotonic())
    started = time.monotonic()
    log = arguments.output.with_suffix(".part.log")
    why = ""
    if limit < 10:
        why = f"not run, the {arguments.seconds} seconds are over"
    else:
        with log.open("w") as stream:
            try:
                done = subprocess.run(command, check=False, stdout=stream, stderr=subprocess.STDOUT, timeout=limit)  # noqa: S603
                why = f"exit code {done.returncode}" if done.returncode else ""
            except subprocess.TimeoutExpired:
                why = f"longer than {limit:.0f} s"
    kept: dict[str, Any] = {}
    for line in part.read_text(encoding="utf-8").splitlines():
        *keys, value = json.loads(line)
        place = kept
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
    part.unlink()
    results[name] = kept | {"seconds": round(time.monotonic() - started, 1)}
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    if why:
        results[name] |= {"failed": why, "log": tail[-30:]}
    print(
        f"{name}: {why or 'done'} after {results[name]['seconds']} s",
        *tail[-30 if why else -4 :],
        sep="\n    ",
        flush=True,
    )
    arguments.output.write_text(json.dumps({"about": about(arguments), "results": results}) + "\n", encoding="utf-8")


def compare(results: dict[str, Any]) -> None:
    """Replace the margins of calls by their largest differences to float32 and to our kernel alone."""
    exact = results.get("reference", {}).pop("margins", {})
    calls = {name: each.get("calls", {}) for name, each in results.items()}
    ours = {key.rpartition(" @ ")[0]: row["margins"] for key, row in calls.get("ours", {}).items()}
    for rows in calls.values():
        for key, row in rows.items():
            label, margins = key.rpartition(" @ ")[0], row.pop("margins")
            right = exact.get(label, {}).items()
            row["to_float32"] = max((abs(margins[int(index)] - margin) for index, margin in right), default=None)
            row["to_ours"] = float(np.abs(np.subtract(margins, ours[label])).max()) if label in ours else None


def table(results: dict[str, Any]) -> str:
    """The results in lines for people."""
    lines = ["", "case @ shortest | path | ms | to float32 | to our kernel"]
    for name in PATHS:
        for key, row in results.get(name, {}).get("calls", {}).items():
            values = ("-" if row[kind] is None else f"{row[kind]:.4f}" for kind in ("to_float32", "to_ours"))
            lines.append(" | ".join([key, name, f"{row['median_ms']:.1f}", *values]))
    lines += ["", "ms of a pass of documents of one length | tokens | " + " | ".join(PATHS)]
    for length in map(str, LENGTHS):
        found = [results.get(name, {}).get("passes", {}).get(length) for name in PATHS]
        tokens = next((str(each["tokens"]) for each in found if each), "-")
        lines.append(" | ".join([length, tokens, *("-" if each is None else str(each["median_ms"]) for each in found)]))
    for name in PATHS:
        for length, kernels in results.get(name, {}).get("profile", {}).items():
            lines += ["", f"{name}, documents of {length} tokens: ms by kernel"]
            lines += [f"    {spent:8.3f}  {kernel}" for spent, kernel in kernels]
    failed = [f"FAILED {name}: {each['failed']}" for name, each in results.items() if "failed" in each]
    return "\n".join([*lines, "", *failed])


def about(arguments: Namespace) -> dict[str, Any]:
    """What was measured."""
    import torch

    wanted = ("torch", "triton", "transformers", "flash-attn-4", "nvidia-cutlass-dsl", "quack-kernels")
    return {
        "device": torch.cuda.get_device_name(0) if arguments.device == "cuda" else "cpu",
        "versions": {each.name: each.version for each in distributions() if each.name in wanted},
        "commit": arguments.commit,
        "shape": arguments.shape,
    }


def parse() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a JSON file")
    parser.add_argument("--commit", required=True, help="what is measured; the GPU host may have no repository")
    parser.add_argument("--model", type=Path, help="folder of an earlier run's model, or where to write one")
    parser.add_argument("--tokenizer", type=Path, help="folder of Qwen3's tokenizer; else package dashscope is needed")
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--scale", type=int, default=1, help="divides the numbers of documents")
    parser.add_argument("--seconds", type=int, default=350, help="begin no part after this time")
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS), help="the paths to run")
    parser.add_argument("--one", choices=["reference", *PATHS], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    arguments.ends = time.monotonic() + arguments.seconds
    if arguments.one:
        with arguments.output.with_suffix(".part.jsonl").open("a", encoding="utf-8") as stream:

            def keep(*keys_and_value: Any) -> None:
                stream.write(json.dumps(keys_and_value) + "\n")
                stream.flush()

            (reference if arguments.one == "reference" else path)(arguments, keep)
        return
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.model = arguments.model or Path(tempfile.gettempdir()) / f"qwen3-random-{arguments.shape}"
    if not (arguments.model / "config.json").exists():
        arguments.model.mkdir(parents=True, exist_ok=True)
        write_model(arguments.model, arguments.shape, arguments.device, arguments.tokenizer)
    results: dict[str, Any] = {}
    for name in ("ours", "FlashAttention 4", "reference", "torch", "vllm_score"):
        if name == "reference" or name in arguments.paths:
            run(arguments, name, results)
    compare(results)
    arguments.output.write_text(
        json.dumps({"about": about(arguments), "results": results}, indent=1) + "\n", encoding="utf-8"
    )
    print(table(results))


if __name__ == "__main__":
    main()
