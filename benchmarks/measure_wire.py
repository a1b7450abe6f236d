"""Measure what HTTP adds to a call of the reranker -> docs/results/wire.json.

Tokenizer and engine answer at once, so that only the server's own work is left: reading the body, validation, the
queue, the answer. Calls of the reranker in this process and requests to a server in another process take turns. The
client sends bytes that were made before and does not parse the answer. Processor times hardly depend on other load of
the machine; wall times do.

    PYTHONPATH=src:. python benchmarks/measure_wire.py [--output docs/results/wire.json]

If the output exists, its rounds are kept and one is added, so that two commits can be measured in turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import statistics
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import psutil

from benchmarks.systems import documents_of, query
from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.bench.machine import environment
from qwen3_ranker_plugins.engines.base import EngineCapabilities, Margins
from qwen3_ranker_plugins.engines.packed.engine import PackedEngine
from qwen3_ranker_plugins.prompt import EncodedRequest, PromptEncoder

ROOT = Path(__file__).parents[1]
CASES = ("1000 titles", "100 titles", "100 chunks")
ROUTES = ("/v1/rerank", "/rerank")


def answer_at_once() -> None:
    """Replace tokenizer and engine by ones that do nothing, with parts and passes in flight as on a GPU."""

    def encode(_self: object, _query: str, documents: list[str], *_: object, **__: object) -> EncodedRequest:
        return EncodedRequest([1] * 64, [[1] * 20] * len(documents), [0] * len(documents))

    def score(_self: object, requests: list[EncodedRequest]) -> list[Margins]:
        return [Margins(np.linspace(-5, 5, len(each.segments), dtype=np.float32), each.num_tokens) for each in requests]

    make = PackedEngine.__init__

    def init(self: PackedEngine, *given: object, **named: object) -> None:
        make(self, *given, **named)  # type: ignore[arg-type]
        self.capabilities = EngineCapabilities(token_budget=32768, passes_in_flight=2, encodes_meanwhile=True)

    PromptEncoder.encode = encode  # type: ignore[method-assign, assignment]
    PackedEngine.score, PackedEngine.__init__ = score, init  # type: ignore[method-assign, assignment]


def serve(port: int) -> None:
    from qwen3_ranker_plugins.cli.app import app

    answer_at_once()
    sys.argv = ["qwen3-ranker", "serve", "--model", "bundled:tiny", "--device", "cpu", "--port", str(port)]
    app()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/wire.json")
    parser.add_argument("--repeat", type=int, default=200)
    arguments = parser.parse_args()
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    server.start()
    answer_at_once()
    try:
        with Reranker("bundled:tiny", device="cpu") as reranker:
            wait_for(port)
            rows = [
                row(reranker, server.pid or 0, port, case, route, arguments.repeat)
                for case in CASES
                for route in ROUTES
            ]
    finally:
        server.terminate()
        server.join()
    result = {"environment": environment(), "repeat": arguments.repeat, "rounds": []}
    if arguments.output.exists():
        result = json.loads(arguments.output.read_text(encoding="utf-8"))
    result["rounds"].append(rows)
    result["median_of_rounds"] = [median_of(each) for each in zip(*result["rounds"], strict=True)]
    for each in result["median_of_rounds"]:
        print(each)
    arguments.output.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


def median_of(rows: tuple[dict[str, object], ...]) -> dict[str, object]:
    """One row: numbers are medians."""
    return {
        name: round(statistics.median(each[name] for each in rows), 2) if name.endswith("_ms") else value  # type: ignore[type-var]
        for name, value in rows[0].items()
    }


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            connection = HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the server is not ready after a minute")


def row(reranker: Reranker, server: int, port: int, case: str, route: str, repeat: int) -> dict[str, object]:
    documents = documents_of(case, 1)
    connection = HTTPConnection("127.0.0.1", port)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    calls, requests = [], []
    body, call_seconds, server_before = b"", 0.0, processor_seconds(server)
    for number in range(repeat):
        text = query(case, number)
        body = json.dumps({"query": text, "documents": documents, "top_n" if "v1" in route else "top_k": 1000}).encode()
        started, processor = time.perf_counter(), time.process_time()
        reranker.rerank(text, documents)
        calls.append(time.perf_counter() - started)
        call_seconds += time.process_time() - processor
        started = time.perf_counter()
        connection.request("POST", route, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        size = len(answer.read())
        requests.append(time.perf_counter() - started)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} from {route}")
    processors = [1000 * seconds / repeat for seconds in (call_seconds, processor_seconds(server) - server_before)]
    quarter = [1000 * statistics.quantiles(times, n=4)[0] for times in (calls, requests)]
    median = [1000 * statistics.median(times) for times in (calls, requests)]
    return {
        "case": case,
        "route": route,
        "body_bytes": len(body),
        "answer_bytes": size,
        "call_ms": round(median[0], 2),
        "http_ms": round(median[1], 2),
        "added_ms": round(median[1] - median[0], 2),
        "call_processor_ms": round(processors[0], 2),
        "server_processor_ms": round(processors[1], 2),
        "added_processor_ms": round(processors[1] - processors[0], 2),
        "added_at_quartile_ms": round(quarter[1] - quarter[0], 2),
    }


def processor_seconds(process: int) -> float:
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
