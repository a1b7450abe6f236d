"""Where the time of a request goes on the host: from the socket to the engine, to its processes, and back.

    PYTHONPATH=src:. python benchmarks/host_path.py OUTPUT.json --commit "$(git rev-parse HEAD)"

`paced_engine.py` takes the place of the model: it sleeps for as long as a pass takes on an H200 in the 0.6B shape
(--pass-ms, --token-us). The rest is real: socket, server, queue, worker processes, layout of passes. The tokenizer
sleeps as well, for as long as it takes on a host with 16 cores (--encode-us), unless that is 0. One client sends one
request at a time, made before, over a plain socket; calls of a reranker in another process take turns with it. Marks in
the server and in its workers give the moment of each step; medians are in ms after the client began to send.

If OUTPUT.json exists, its rounds are kept and one is added, so that two commits can be measured in turns.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from benchmarks.measure_wire import free_port, processor_seconds, wait_for
from benchmarks.paced_engine import Trace
from benchmarks.systems import WORDS, documents_of, query
from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.bench.machine import environment

CASES = ("1000 titles", "100 chunks", "10 items")
PACKAGE = "qwen3_ranker_plugins"
#: step -> (module, class, function)
STEPS = {
    "json": ("server.body", "", "parsed"),
    "rank": ("server.service", "Service", "rank"),
    "prepare": ("reranker", "Reranker", "prepare"),
    "encode": ("reranker", "Reranker", "_encode"),
    "pass": ("dispatch.dispatcher", "Dispatcher", "_score"),
    "result": ("ranking", "PreparedRequest", "result"),
    "write": ("server.shapes", "", "_write"),
}
ENTRY_POINT = f"[{PACKAGE}.engines]\npaced = benchmarks.paced_engine:PACED\n"


def register(site: Path) -> None:
    """Install the entry point of the engine into a folder on the module path."""
    info = site / "paced-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paced\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)
    sys.path.insert(0, str(site))


@contextmanager
def paced_model() -> Iterator[tuple[Path, Path]]:
    """A folder that registers the engine, and in it a model's folder, which has only a tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        register(site)
        from tests.qwen3_tokenizer import write_qwen3_tokenizer

        model = site / "model"
        model.mkdir()
        write_qwen3_tokenizer(model)
        yield site, model


def mark_steps(trace: Trace) -> None:
    """Have each of STEPS append its beginning and its end to a trace."""
    for step, (module, owner, function) in STEPS.items():
        place: Any = importlib.import_module(f"{PACKAGE}.{module}")
        place = getattr(place, owner) if owner else place
        setattr(place, function, _marked(getattr(place, function), step, trace))


def _marked(original: Callable[..., Any], step: str, trace: Trace) -> Callable[..., Any]:
    @functools.wraps(original)
    async def later(*given: Any, **named: Any) -> Any:
        trace.mark(f"{step} begins")
        result = await original(*given, **named)
        trace.mark(f"{step} ends")
        return result

    @functools.wraps(original)
    def now(*given: Any, **named: Any) -> Any:
        trace.mark(f"{step} begins")
        result = original(*given, **named)
        trace.mark(f"{step} ends")
        return result

    return later if inspect.iscoroutinefunction(original) else now


def serve(site: Path, port: int, flags: list[str], trace: str) -> None:
    register(site)
    from qwen3_ranker_plugins.cli.app import app

    if trace:
        mark_steps(Trace(trace))
    sys.argv = ["qwen3-ranker", "serve", "--port", str(port), "--log-level", "warning", *flags]
    sys.stderr = open(site / "server.log", "w")  # noqa: PTH123, SIM115 - for as long as the process runs
    app()


def documents_for(case: str) -> list[str]:
    if case != "10 items":
        return documents_of(case, 1)
    return [" ".join(WORDS[(number + word) % len(WORDS)] for word in range(130)) for number in range(10)]


def query_for(case: str, number: int) -> str:
    return f"{number} {' '.join(WORDS * 3)}" if case == "10 items" else query(case, number)


def measure(site: Path, model: str, replicas: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The rows of a server with one engine in its process (0 replicas), or with replicas."""
    trace = site / f"trace_{replicas}"
    options = {"pass_seconds": arguments.pass_ms / 1e3, "token_seconds": arguments.token_us / 1e6}
    if arguments.encode_us:
        options["encode_seconds"] = arguments.encode_us / 1e6
    devices = ",".join(["cpu"] * replicas) or None
    port = free_port()
    flags = ["--model", model, "--engine", "paced"]
    flags += [
        part for name, value in {**options, "trace": trace}.items() for part in ("--engine-option", f"{name}={value}")
    ]
    flags += ["--devices", devices] if devices else ["--device", "cpu"]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(site, port, flags, str(trace)))
    server.start()
    try:
        with Reranker(
            model, engine="paced", engine_options=options, **({"devices": devices} if devices else {"device": "cpu"})
        ) as reranker:
            wait_for(port)
            cases = arguments.cases.split(",")
            return {case: row(reranker, server.pid or 0, port, case, trace, arguments.repeat) for case in cases}
    finally:
        server.terminate()
        server.join()


def row(reranker: Reranker, server: int, port: int, case: str, trace: Path, repeat: int) -> dict[str, Any]:
    documents = documents_for(case)
    connection = HTTPConnection("127.0.0.1", port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    calls, sent, received = [], [], []
    for number in range(-3, repeat):
        text = query_for(case, number + 3)
        body = json.dumps({"query": text, "documents": documents}).encode()
        if number == 0:
            before = processor_seconds(server)
            calls, sent, received = [], [], []
        began = time.perf_counter()
        reranker.rerank(text, documents)
        calls.append(time.perf_counter() - began)
        time.sleep(0.005)
        sent.append(time.perf_counter())
        connection.request("POST", "/v1/rerank", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        received.append(time.perf_counter())
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} from the server")
        time.sleep(0.005)
    steps = steps_of(trace, sent, received)
    call = statistics.median(calls)
    http = statistics.median(end - begin for begin, end in zip(sent, received, strict=True))
    return {
        "call_ms": round(1000 * call, 2),
        "http_ms": round(1000 * http, 2),
        "added_ms": round(1000 * (http - call), 2),
        "server_processor_ms": round(1000 * (processor_seconds(server) - before) / repeat, 2),
        "steps_ms": steps,
    }


def steps_of(trace: Path, sent: list[float], received: list[float]) -> dict[str, float]:
    """Step -> median of its moment in all requests that have it; the n-th time of a step in a request ends in #n."""
    marks = []
    for line in trace.read_text().splitlines():
        moment, _, step = line.split(" ", 2)
        marks.append((float(moment), "device begins" if step.endswith(" tokens") else step, step))
    marks.sort()
    found: dict[str, list[float]] = defaultdict(list)
    last: list[str] = []
    for begin, end in zip(sent, received, strict=True):
        times: dict[str, int] = defaultdict(int)
        last = []
        for moment, step, whole in marks:
            if begin <= moment <= end:
                times[step] += 1
                found[f"{step} #{times[step]}"].append(1000 * (moment - begin))
                last.append(f"{1000 * (moment - begin):.2f} {whole}")
    usual = {step: times for step, times in found.items() if 2 * len(times) > len(sent)}
    medians = {step: round(statistics.median(times), 2) for step, times in usual.items()}
    return dict(sorted(medians.items(), key=lambda each: each[1])) | {"last request": last}  # type: ignore[dict-item]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--replicas", default="0,1,2,4", help="0: the engine in the server's own process")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeat", type=int, default=40)
    parser.add_argument("--pass-ms", type=float, default=1.0)
    parser.add_argument("--token-us", type=float, default=1.8)
    parser.add_argument("--encode-us", type=float, default=0.25, help="0: the tokenizer runs")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"settings": vars(arguments), "environment": vars(environment()), "rounds": []}
    if arguments.output.exists():
        result = json.loads(arguments.output.read_text(encoding="utf-8"))
    with paced_model() as (site, model):
        rounds = {}
        for replicas in map(int, arguments.replicas.split(",")):
            rounds[str(replicas)] = measure(site, str(model), replicas, arguments)
            for case, each in rounds[str(replicas)].items():
                print(replicas, case, {name: value for name, value in each.items() if name != "steps_ms"}, flush=True)
            written = {**result, "rounds": [*result["rounds"], rounds]}
            arguments.output.write_text(json.dumps(written, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
