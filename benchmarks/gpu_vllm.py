"""Write the tables of docs/engines.md: our engines compared with the copied vLLM scripts, on equal weights and queries.

    export PYTHONPATH=src:.
    python benchmarks/gpu_vllm.py OUTPUT.json --commit "$(git rev-parse HEAD)"      # the table
    python benchmarks/gpu_vllm.py OUTPUT.json --commit ... --sweep                  # settings of two engines
    python benchmarks/gpu_vllm.py OUTPUT.json --commit ... --profile                # the parts of 1000 titles
    python benchmarks/gpu_vllm.py OUTPUT.json --commit ... --tensor-parallel 2      # margins on one GPU and on two
    python benchmarks/gpu_vllm.py OUTPUT.json --commit ... --resume                 # what an earlier run lacks
    python benchmarks/gpu_vllm.py OUTPUT.json --commit try --device cpu --shape tiny --scale 50 --repeat 2   # a try-out

The systems run one after the other, each in its own process. A time is the median of `--repeat` calls from texts to
scores, each with a query that no other call has. If a system fails, or takes more than `--timeout` seconds, the results
say so, and the next one runs; after `--seconds` no system is started. OUTPUT.json, OUTPUT.margins.json and OUTPUT.md
are written after each system, so that an interrupted run keeps its results, and `--resume` adds what is missing or
failed. Exit code 1: something failed.

If a copied script fails, it is tried once more with vLLM's engine core in the script's own process instead of a forked
one, so that there is a number to compare with; the result says so.

The arithmetic floor is that of the linear layers over the packed tokens (each query computed once), at 798 TFLOP/s
(measured on one H100). Weights are random, which is valid for speed and for agreement between implementations, but not
for quality.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.systems import CASES, COPIED, SHAPES, flops_per_token, measure, reference, run_apart, write_model


@dataclass(frozen=True)
class System:
    """One row.

    Attributes:
        engine: of the package, or a copied script, or "reference", or "profile:ENGINE".
        options: of the engine.
        environment: variables of its process.
        labels: the cases that it is timed on.
    """

    engine: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = tuple(CASES)


# The most important first: a run that is cut short has them.
TABLE = {
    "packed": System("packed"),
    "vllm_packed": System("vllm_packed", {"tensor_parallel_size": 1}),
    "vllm_score": System("vllm_score", {"tensor_parallel_size": 1}),
    "copied_llm_score": System("copied_llm_score"),
    "copied_generate": System("copied_generate"),
    "vllm_generate": System("vllm_generate", {"tensor_parallel_size": 1}),
    "packed, float8": System("packed", {"float8": True}),
    "vllm_packed, fp8": System("vllm_packed", {"tensor_parallel_size": 1, "quantization": "fp8"}),
    "packed, transformers' layers": System("packed", {"compile": False}),
}
#: Settings that may matter, one at a time.
SWEPT: dict[str, dict[str, Any]] = {
    "vllm_score": {},
    "vllm_score, engine core in its own process": {"multiprocessing": True},
    "vllm_score, asynchronous scheduling": {"engine_kwargs": {"async_scheduling": True}},
    "vllm_packed": {},
    "vllm_packed, engine core in its own process": {"multiprocessing": True},
    "vllm_packed, eager": {"enforce_eager": True},
    "vllm_packed, 16384 tokens a step": {"max_num_batched_tokens": 16384},
    "vllm_score, 8192 tokens a step": {"max_num_batched_tokens": 8192},
    "vllm_score, 65536 tokens a step": {"max_num_batched_tokens": 65536},
    "vllm_score, 512 documents a step": {"max_num_seqs": 512},
    "vllm_score, 256 documents at once": {"infer_batch_size": 256},
    "vllm_score, blocks of 16": {"block_size": 16},
    "vllm_score, no prefix caching": {"enable_prefix_caching": False},
    "vllm_score, eager": {"enforce_eager": True},
    "vllm_score, unsorted": {"sort_by_doc_length": False},
    "vllm_score, V2 model runner off": {},
}
PROFILED = ("vllm_score", "vllm_packed")
FLOOR_FLOPS = 798e12
_LOG_LINES = 25
_ERRORS_SHOWN = 3
#: What vLLM puts in front of a line of its log: process, level, time and place.
_LOG_PREFIX = re.compile(r"^(?:\(\w+ pid=\d+\)\s*)?(?:([A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s*)?")
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    # Read by CPU builds only, which would take most of the machine's memory.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # As vLLM sets it, but before anything else is imported: looking for a GPU must not keep vLLM from forking.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
_IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def sweep() -> dict[str, System]:
    rows = {}
    for name, options in SWEPT.items():
        engine, off = name.partition(",")[0], {"VLLM_USE_V2_MODEL_RUNNER": "0"} if "V2" in name else {}
        rows[name] = System(engine, {"tensor_parallel_size": 1, **options}, off, ("1000 titles", "100 chunks"))
    return rows


def tensor_parallel(count: int, device: str) -> dict[str, System]:
    """The engines on one GPU and on several. On a CPU "several" are as many processes, each with a core.

    Nothing is compiled: margins are what this is about, and a machine of several GPUs is dear.
    """
    rows = {"packed": System("packed")}
    for engine in ("vllm_packed", "vllm_score"):
        several: dict[str, Any] = {"tensor_parallel_size": count, "enforce_eager": True}
        environment = {}
        if device == "cpu":
            several = {
                "enforce_eager": True,
                "engine_kwargs": {"tensor_parallel_size": count, "distributed_executor_backend": "mp"},
            }
            environment = {"VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(count)))}
        rows[f"{engine}, 1 GPU"] = System(engine, {"tensor_parallel_size": 1, "enforce_eager": True})
        rows[f"{engine}, {count} GPUs"] = System(engine, several, environment)
    return rows


def run(name: str, system: System, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One system in a process of its own; a copied script that fails there also without vLLM's engine core in another.

    Returns:
        Its result, or "failed" (why) and "log" (its errors and last lines).
    """
    result = _run_once(name, system, arguments, folder)
    if system.engine not in COPIED or not result.get("failed", "").startswith("exit code"):
        return result
    again = _run_once(name, replace(system, environment=system.environment | _IN_PROCESS), arguments, folder)
    if "failed" in again:
        return {**result, "log": [*result["log"], "", "The engine core in the process:", *again["log"]]}
    facts = {"note": "engine core in the process", "in a process of its own": result["failed"]}
    return {**again, "facts": again["facts"] | facts}


def _run_once(name: str, system: System, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """It writes its result to a file: vLLM logs to standard output."""
    left = arguments.ends - time.monotonic()
    if left < 1:
        print(f"{name}: not run, the {arguments.seconds} seconds are over", flush=True)
        return {"failed": f"not run: the {arguments.seconds} seconds were over", "log": []}
    with tempfile.TemporaryDirectory() as scratch:
        output, log = Path(scratch) / "result.json", Path(scratch) / "log"
        task = {"engine": system.engine, "options": system.options, "labels": system.labels}
        command = [sys.executable, __file__, str(output), "--commit", arguments.commit, "--one", json.dumps(task)]
        command += ["--model", str(folder), "--device", arguments.device, "--shape", arguments.shape]
        command += ["--repeat", str(arguments.repeat), "--scale", str(arguments.scale)]
        failed = run_apart(command, log, min(arguments.timeout, left), _ENVIRONMENT | system.environment)
        if failed is None:
            result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
            print(name, {label: row.get("median_ms") for label, row in result.get("rows", {}).items()}, flush=True)
            return result
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = errors_of(lines)
        reason = f"{failed}: {'; '.join(errors[:_ERRORS_SHOWN])}" if errors else failed
        kept = [*errors, "", "The last lines:", *lines[-_LOG_LINES:]] if errors else lines[-_LOG_LINES:]
        print(f"{name}: {reason}", *kept, sep="\n    ", flush=True)
        return {"failed": reason, "log": kept}


def errors_of(lines: Iterable[str]) -> list[str]:
    """The distinct lines of a log that name an error, as they came: the first is the cause of the others.

    Without what vLLM puts in front of them, and without what it only warns of.
    """
    errors: dict[str, None] = {}
    for line in lines:
        prefix = _LOG_PREFIX.match(line)
        text = line[prefix.end() :].strip() if prefix else line.strip()
        if prefix and prefix[1] not in (None, "ERROR", "CRITICAL"):
            continue
        if re.search(r"\b\w*(?:Error|Exception)\b(?:: |$)|\bFatal Python error: ", text):
            errors[text] = None
    return list(errors)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True, help="what is measured; the GPU host may have no repository")
    parser.add_argument("--model", type=Path, help="a folder of an earlier run")
    parser.add_argument("--tokenizer", type=Path, help="folder of Qwen3's tokenizer; else package dashscope is needed")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="by default a GPU if there is one")
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--scale", type=int, default=1, help="divides the numbers of documents")
    parser.add_argument("--systems", nargs="*", help="only these rows of the table or the sweep")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--tensor-parallel", type=int)
    parser.add_argument("--timeout", type=float, default=240, help="seconds for one system")
    parser.add_argument("--resume", action="store_true", help="keep what OUTPUT.json has, and run the other systems")
    parser.add_argument("--seconds", type=float, default=570, help="after which no further system is begun")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        # A process that has asked for a GPU must not fork, and copied scripts let vLLM fork its engine core.
        arguments.output.write_text(json.dumps(one(arguments, **arguments.one)), encoding="utf-8")
        return 0
    import torch

    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    # Whoever ends this program, also ends what it has started: that would keep the GPU's memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.ends = time.monotonic() + arguments.seconds
    if arguments.profile:
        systems = {f"profile of {engine}": System(f"profile:{engine}") for engine in PROFILED}
    elif arguments.tensor_parallel:
        systems = tensor_parallel(arguments.tensor_parallel, arguments.device)
    else:
        systems = sweep() if arguments.sweep else TABLE
    if unknown := set(arguments.systems or ()) - set(systems):
        parser.error(f"no such system: {', '.join(sorted(unknown))}; there are {', '.join(systems)}")
    order = ["reference", *systems]
    results = earlier(arguments) if arguments.resume else {}
    systems = {"reference": System("reference")} | {
        name: system for name, system in systems.items() if arguments.systems is None or name in arguments.systems
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or Path(scratch) / "model"
        if not (folder / "config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_model(folder, arguments.shape, arguments.device, arguments.tokenizer)
        for name, system in systems.items():
            if name not in results:
                results[name] = run(name, system, arguments, folder)
            results = {each: results[each] for each in [*order, *results] if each in results}
            text = report(arguments, results)
    print(text)
    return int(any("failed" in result for result in results.values()))


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all results of a file have in common."""
    import torch

    wanted = ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu")
    return {
        "device": torch.cuda.get_device_name(0) if arguments.device == "cuda" else "cpu",
        "versions": {each.name: each.version for each in distributions() if each.name in wanted},
        "commit": arguments.commit,
        "shape": arguments.shape,
        "repeat": arguments.repeat,
        "scale": arguments.scale,
        "date": datetime.now(UTC).date().isoformat(),
        "floor_flops_per_second": FLOOR_FLOPS,
    }


def earlier(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The results of an earlier run that did not fail, with their margins; none if there was no run.

    Ends the program if that run was of something else, so that a table never mixes two.
    """
    if not arguments.output.exists():
        return {}
    found = json.loads(arguments.output.read_text(encoding="utf-8"))
    now = about(arguments)
    if different := {key for key in now if key != "date" and now[key] != found["about"].get(key)}:
        said = ", ".join(f"{key} {found['about'].get(key)!r}, now {now[key]!r}" for key in sorted(different))
        sys.exit(f"--resume: {arguments.output} is of something else ({said}): give another OUTPUT")
    margins = json.loads(margins_path(arguments).read_text(encoding="utf-8"))
    results: dict[str, dict[str, Any]] = {
        name: result for name, result in found["results"].items() if "failed" not in result
    }
    for name, result in results.items():
        for label, row in result.get("rows", {}).items():
            row["margins"] = margins[name][label]
    return results


def margins_path(arguments: argparse.Namespace) -> Path:
    """Where the margins are, which would hide everything else in the results."""
    path: Path = arguments.output
    return path.with_suffix(".margins.json")


def one(arguments: argparse.Namespace, engine: str, options: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """What a process of its own does."""
    folder, repeat, scale, device = arguments.model, arguments.repeat, arguments.scale, arguments.device
    if engine == "reference":
        return reference(folder, labels, repeat, scale, device)
    if engine.startswith("profile:"):
        from benchmarks.gpu_vllm_profile import profile

        return profile(engine.removeprefix("profile:"), folder, scale, device)
    return measure(engine, folder, options, labels, repeat, scale, device)


def report(arguments: argparse.Namespace, results: dict[str, dict[str, Any]]) -> str:
    """Write the results, their margins, and the Markdown, which is returned."""
    truth = results["reference"].get("rows", {})
    shown: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        rows = {label: dict(row) for label, row in result.get("rows", {}).items()}
        for label, row in rows.items():
            if name != "reference":
                _compare(name, label, row, truth.get(label), results, arguments.shape)
        shown[name] = {**result, "rows": rows} if rows else result
    common = about(arguments)
    text = _markdown(common, shown)
    margins: dict[str, dict[str, list[float]]] = {}
    for name, result in shown.items():
        for label, row in result.get("rows", {}).items():
            margins.setdefault(name, {})[label] = [round(margin, 5) for margin in row.pop("margins")]
    arguments.output.write_text(json.dumps({"about": common, "results": shown}) + "\n", encoding="utf-8")
    margins_path(arguments).write_text(json.dumps(margins) + "\n", encoding="utf-8")
    arguments.output.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def _compare(
    name: str,
    label: str,
    row: dict[str, Any],
    truth: dict[str, Any] | None,
    results: dict[str, dict[str, Any]],
    shape: str,
) -> None:
    """Add what follows from other rows."""
    if truth is not None:
        floor = 1000 * truth["packed_tokens"] * flops_per_token(shape) / FLOOR_FLOPS
        row["fraction_of_floor"] = round(floor / row["median_ms"], 3)
    others = {
        "float32": truth,
        "packed": results.get("packed", {}).get("rows", {}).get(label),
        "one_gpu": results.get(f"{name.partition(',')[0]}, 1 GPU", {}).get("rows", {}).get(label),
    }
    for other, found in others.items():
        if found is not None:
            row[f"largest_margin_difference_to_{other}"] = _difference(row["margins"], found["margins"])
    copied = results.get("copied_llm_score", {}).get("rows", {}).get(label)
    if copied is not None:
        row["times_as_fast_as_copied_llm_score"] = round(copied["median_ms"] / row["median_ms"], 2)


_COLUMNS = {
    "of the floor": "fraction_of_floor",
    "x copied `LLM.score`": "times_as_fast_as_copied_llm_score",
    "margin: to packed": "largest_margin_difference_to_packed",
    "to float32": "largest_margin_difference_to_float32",
    "to 1 GPU": "largest_margin_difference_to_one_gpu",
}


def _markdown(about: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sorted(about["versions"].items()))
    heading = (
        f"{about['device']}, shape {about['shape']}, random weights, {versions}, commit {about['commit'][:7]}, "
        f"{about['date']}; median of {about['repeat']} calls, a new query in each."
    )
    lines = [heading, ""]
    for name, result in results.items():
        if "parts_ms" in result:
            parts = (f"| {part} | {ms} |" for part, ms in result["parts_ms"].items())
            lines += [f"{name[0].upper()}{name[1:]}, 1000 titles:", "", "| part | ms |", "|---|---:|", *parts, ""]
    rows = [
        (label, name, row)
        for label in CASES
        for name, result in results.items()
        if name != "reference" and (row := result.get("rows", {}).get(label)) is not None
    ]
    if rows:
        columns = {title: key for title, key in _COLUMNS.items() if any(key in row for _, _, row in rows)}
        lines += [
            f"| case | system | prompt / packed tokens | ms | pairs/s | {' | '.join(columns)} |",
            f"|---|---|---|---:|---:|{'---:|' * len(columns)}",
        ]
    for label, name, row in rows:
        truth = results["reference"].get("rows", {}).get(label)
        tokens = "-" if truth is None else f"{truth['prompt_tokens']} / {truth['packed_tokens']}"
        count = "" if truth is None else f" ({truth['documents']})"
        lines.append(
            f"| {label}{count} | {name} | {tokens} | {row['median_ms']:.1f} | {row['pairs_per_second']} | "
            + " | ".join(str(row.get(key, "-")) for key in columns.values())
            + " |"
        )
    for name, result in results.items():
        if note := result.get("facts", {}).get("note"):
            lines += ["", f"{name}: {note}."]
    if failed := {name: result["failed"] for name, result in results.items() if "failed" in result}:
        reasons = (f"| {name} | {reason.replace('|', '/')} |" for name, reason in failed.items())
        lines += ["", "Failed:", "", "| system | reason |", "|---|---|", *reasons]
    return "\n".join([*lines, ""])


def _difference(some: list[float], others: list[float]) -> float:
    return round(max(abs(one - other) for one, other in zip(some, others, strict=False)), 5)


if __name__ == "__main__":
    sys.exit(main())
