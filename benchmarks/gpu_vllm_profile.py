"""Measures the parts of a request's time inside an engine on vLLM; `gpu_vllm.py --profile` starts it as a process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.systems import documents_of, query
from qwen3_ranker_plugins import DEFAULT_INSTRUCTION, Reranker
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.engines import create_engine, engine_module
from qwen3_ranker_plugins.models import resolve_model
from tests.contract.in_this_process import InThisProcess, use_no_worker_processes

LABEL = "1000 titles"
#: Calls whose parts are averaged, after as many that are not.
CALLS, FIRST = 7, 3
WHOLE, REST = "vLLM in all", "of that the rest, with waiting for the GPU"


def profile(engine_name: str, folder: Path, scale: int, device: str) -> dict[str, Any]:
    """Milliseconds of 1000 titles by part, in an engine with vLLM's engine in this very process."""
    folder = resolve_model(folder)
    documents = documents_of(LABEL, scale)
    options = {"tensor_parallel_size": 1}
    whole = through_the_worker(engine_name, folder, documents, options, device)
    settings = RerankerSettings(str(folder), engine_name, device, engine_options=options)
    resolved = engine_module(engine_name).resolve(engine_name, settings)
    use_no_worker_processes()
    engine = create_engine(resolved.config)
    runner = InThisProcess.runner
    core = runner.engine.engine_core.engine_core
    spent: dict[str, float] = {}
    watch = partial(watch_part, spent, [])
    watch(runner, "score", WHOLE)
    watch(runner.engine, "add_request", "of that per-request Python: add_request")
    watch(core.scheduler, "schedule", "of that the scheduler: schedule")
    watch(core.scheduler, "update_from_output", "of that the scheduler: update_from_output")
    watch(core.model_executor, "execute_model", "of that the model runner: execute_model (host preparation, launches)")
    watch(runner.engine.output_processor, "process_outputs", "of that per-request Python: process_outputs")
    model_seconds = watch_model(core)

    totals: list[dict[str, float]] = []
    for number in range(FIRST + CALLS):
        spent.clear()
        started = time.perf_counter()
        request = resolved.encoder.encode(query(LABEL, 100 + number), documents, DEFAULT_INSTRUCTION)
        encoded = time.perf_counter()
        engine.score([request])
        ended = time.perf_counter()
        parts = {"tokenization": encoded - started, **spent}
        parts["rows and margins, outside of vLLM"] = ended - encoded - spent[WHOLE]
        parts["of vLLM the model's forward pass on the device"] = model_seconds()
        totals.append(parts)
    found = {name: round(1000 * statistics.median(each[name] for each in totals[FIRST:]), 2) for name in totals[0]}
    found["whole call through the worker process"] = round(whole, 2)
    inside = sum(found[name] for name in ("tokenization", WHOLE, "rows and margins, outside of vLLM"))
    found["IPC, dispatch and the rest (difference)"] = round(whole - inside, 2)
    engine.close()
    return {"parts_ms": found}


def watch_part(spent: dict[str, float], within: list[float], owner: Any, name: str, part: str) -> None:
    """Add the seconds in a function to `spent`, less those in other parts: prompts are added while the model runs."""
    inner = getattr(owner, name)

    def timed(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        within.append(0.0)
        try:
            return inner(*given, **named)
        finally:
            took = time.perf_counter() - started
            others = within.pop()
            if within:
                within[-1] += took
            if part == WHOLE:
                spent[WHOLE], spent[REST] = took, took - others
            else:
                spent[part] = spent.get(part, 0.0) + took - others

    setattr(owner, name, timed)


def through_the_worker(
    engine_name: str, folder: Path, documents: list[str], options: dict[str, Any], device: str
) -> float:
    """Milliseconds of a whole call."""
    times = []
    with Reranker(folder, engine=engine_name, engine_options=options, device=device) as reranker:
        for number in range(FIRST + CALLS):
            started = time.perf_counter()
            reranker.score(query(LABEL, number), documents)
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[FIRST:])


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
