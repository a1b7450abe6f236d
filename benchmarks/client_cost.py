"""What the client adds to the time of a request over HTTP -> docs/results/client_cost.json.

    PYTHONPATH=src:. python benchmarks/client_cost.py

A server in another process reads each request and answers at once with bytes that were made before, as many as those of
our server. Three clients take turns: bytes on a plain socket, Python's http.client, and the client of `qwen3-ranker
bench load`, whose time ends with the last byte of the answer, as in its reports. One request is in flight at a time.
What a client takes more than the plain socket is not the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY, create_server, socket
from typing import Any

from benchmarks.host_path import documents_for, query_for
from benchmarks.request_cost import CASES, Client
from qwen3_ranker_plugins.bench.load.connections import Connections
from qwen3_ranker_plugins.bench.load.target import Target, WrittenRequest
from qwen3_ranker_plugins.bench.machine import environment
from qwen3_ranker_plugins.engines.remote.text_encoders import TextEncoder

ROOT = Path(__file__).parents[1]


def answer_of(case: str) -> bytes:
    results = [{"index": index, "relevance_score": 0.123456789012345} for index in range(len(documents_for(case)))]
    body = json.dumps({"id": "rerank-0123456789abcdef", "results": results, "usage": {"prompt_tokens": 1}}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def serve(listening: socket, answers: dict[int, bytes]) -> None:
    """Answer each request by the number of its documents."""

    def connection(client: socket) -> None:
        client.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        while received := client.recv(1 << 20):
            head, _, body = received.partition(b"\r\n\r\n")
            while b"content-length" in head.lower() and len(body) < _length(head):
                body += client.recv(1 << 20)
            client.sendall(answers[len(json.loads(body)["documents"])])

    while True:
        client, _ = listening.accept()
        threading.Thread(target=connection, args=(client,), daemon=True).start()


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "client_cost.json")
    parser.add_argument("--repeat", type=int, default=300)
    arguments = parser.parse_args()
    listening = create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    answers = {len(documents_for(case)): answer_of(case) for case in CASES}
    server = multiprocessing.get_context("fork").Process(target=serve, args=(listening, answers), daemon=True)
    server.start()
    target = Target.at(f"http://127.0.0.1:{port}")
    result: dict[str, Any] = {"environment": vars(environment()), "repeat": arguments.repeat, "cases": {}}
    with asyncio.Runner() as runner:
        for case in CASES:
            documents, query = documents_for(case), query_for(case, 1)
            body = json.dumps({"query": query, "documents": documents}).encode()
            plain = Client(port, [body])
            library = HTTPConnection("127.0.0.1", port)
            library.connect()
            library.sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            load = Connections(target)
            written = WrittenRequest(body, TextEncoder(target.options).encode(query, documents, None))

            def with_socket(client: Client = plain) -> float:
                return client.ask(0)

            def with_library(client: HTTPConnection = library, body: bytes = body) -> float:
                began = time.monotonic()
                client.request("POST", "/v1/rerank", body, {"content-type": "application/json"})
                client.getresponse().read()
                return time.monotonic() - began

            def with_load(client: Connections = load, written: WrittenRequest = written) -> float:
                async def post() -> float:
                    began = asyncio.get_running_loop().time()
                    done, failure = await client.post(written, until=began + 10)
                    if failure is not None:
                        raise RuntimeError(failure)
                    return done - began

                return runner.run(post())

            clients = {"socket": with_socket, "http.client": with_library, "bench load": with_load}
            result["cases"][case] = row(clients, arguments.repeat)
            print(case, result["cases"][case], flush=True)
            runner.run(load.close())
    server.terminate()
    arguments.output.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


def row(clients: dict[str, Callable[[], float]], repeat: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a request for each client; the first decile depends little on other load."""
    clock: dict[str, list[float]] = {name: [] for name in clients}
    for number in range(-10, repeat):
        for name in random.sample(list(clients), len(clients)):
            seconds = clients[name]()
            if number >= 0:
                clock[name].append(1e3 * seconds)
    return {
        name: {
            "decile_ms": round(statistics.quantiles(times, n=10)[0], 3),
            "median_ms": round(statistics.median(times), 3),
        }
        for name, times in clock.items()
    }


if __name__ == "__main__":
    main()
