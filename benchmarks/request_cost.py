"""Processor time of the server for a request, for two or more versions of it in turns, on a host without a GPU.

    PYTHONPATH=src:. python benchmarks/request_cost.py OUTPUT.json --server before=/path/to/other/src --server now=src

Each `--server NAME=FOLDER` runs the package of that folder, on uvloop if it is installed; `NAME=FOLDER@asyncio` runs it
on asyncio's event loop. All servers run at the same time, with `paced_engine.py` in a process of its own, and get their
requests in turns, so that other load of the machine meets all of them alike. Processor times are those of the server's
own process, of its event loop, and of the worker. Clients keep `--clients` requests in flight over plain sockets, with
bytes made before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.host_path import documents_for, paced_model, query_for
from benchmarks.measure_wire import free_port, wait_for
from qwen3_ranker_plugins.bench.machine import environment

CASES = ("10 items", "100 titles", "1000 titles")
_PROGRAM = """
import sys
from pathlib import Path
site, port, uvloop, *flags = sys.argv[1:]
if not int(uvloop):
    sys.modules["uvloop"] = None
from benchmarks.host_path import serve
serve(Path(site), int(port), flags, "")
"""


class Server:
    """One version of the server in a process of its own."""

    def __init__(self, given: str, site: Path, model: Path, arguments: argparse.Namespace) -> None:
        self.name, _, folder = given.partition("=")
        folder, _, loop = folder.partition("@")
        self.port = free_port()
        options = {"pass_seconds": arguments.slower * 1e-3, "token_seconds": arguments.slower * 1.8e-6}
        options["encode_seconds"] = 0.25e-6
        flags = ["--model", str(model), "--engine", "paced", "--devices", "cpu"]
        flags += [part for name, value in options.items() for part in ("--engine-option", f"{name}={value}")]
        own = site / self.name
        own.mkdir()
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _PROGRAM, str(own), str(self.port), str(int(loop != "asyncio")), *flags],
            env={**os.environ, "PYTHONPATH": f"{Path(folder).absolute()}{os.pathsep}{Path.cwd()}"},
            stdout=subprocess.DEVNULL,
        )
        wait_for(self.port)
        self._worker = next(iter(psutil.Process(self._process.pid).children()))

    def processor_seconds(self) -> tuple[float, float, float]:
        """(of the server's own process, of its event loop, of its worker) since their start."""
        own = _by_thread(self._process.pid)
        return sum(own.values()), own[self._process.pid], sum(_by_thread(self._worker.pid).values())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def _by_thread(process: int) -> dict[int, float]:
    """Number of a thread -> seconds that it has computed; `times` of a process counts in hundredths of a second."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return {int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks}


class Client:
    """A connection that is kept, and sends requests that were made before."""

    def __init__(self, port: int, bodies: list[bytes]) -> None:
        head = f"POST /v1/rerank HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        self._requests = [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, number: int) -> float:
        """Seconds until the whole answer was there."""
        began = time.perf_counter()
        self._socket.sendall(self._requests[number % len(self._requests)])
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._socket.recv(1 << 20)
        header, _, body = answer.partition(b"\r\n\r\n")
        if not header.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(header.decode())
        length = int(header.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        received = len(body)
        while received < length:
            received += len(self._socket.recv(1 << 20))
        return time.perf_counter() - began

    def close(self) -> None:
        self._socket.close()


def measure(server: Server, case: str, clients: int, requests: int) -> dict[str, float]:
    """One round: processor milliseconds of a request, and its median latency."""
    documents = documents_for(case)
    bodies = [json.dumps({"query": query_for(case, number), "documents": documents}).encode() for number in range(8)]
    connections = [Client(server.port, bodies) for _ in range(clients)]
    latencies: list[float] = []
    for each in connections:
        each.ask(0)

    def work(connection: Client) -> None:
        latencies.extend([connection.ask(number) for number in range(requests // clients)])

    before = server.processor_seconds()
    threads = [threading.Thread(target=work, args=(each,)) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own, loop, worker = (after - start for after, start in zip(server.processor_seconds(), before, strict=True))
    for each in connections:
        each.close()
    return {
        "server_ms": 1e3 * own / len(latencies),
        "event_loop_ms": 1e3 * loop / len(latencies),
        "worker_ms": 1e3 * worker / len(latencies),
        "latency_ms": 1e3 * statistics.median(latencies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--server", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=200, help="of a round with ten items; fewer with more")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--slower", type=float, default=2.0, help="than an H200")
    arguments = parser.parse_args()
    rounds: dict[str, dict[str, list[dict[str, float]]]] = {}
    with paced_model() as (site, model):
        servers = [Server(each, site, model, arguments) for each in arguments.server]
        try:
            for case in arguments.cases.split(","):
                requests = max(arguments.clients, arguments.requests // (1 if case == "10 items" else 5))
                for _ in range(arguments.rounds):
                    for server in random.sample(servers, len(servers)):
                        found = measure(server, case, arguments.clients, requests)
                        rounds.setdefault(case, {}).setdefault(server.name, []).append(found)
        finally:
            for server in servers:
                server.close()
    settings = {**vars(arguments), "server": [server.name for server in servers]}
    result: dict[str, Any] = {"settings": settings, "environment": vars(environment()), "cases": {}}
    for case, by_server in rounds.items():
        medians = {
            name: {field: round(statistics.median(each[field] for each in found), 3) for field in found[0]}
            for name, found in by_server.items()
        }
        first = by_server[servers[0].name]
        for name, found in sorted(
            by_server.items(), key=lambda each: [server.name for server in servers].index(each[0])
        ):
            ratios = [each["server_ms"] / of_first["server_ms"] for each, of_first in zip(found, first, strict=True)]
            medians[name]["ratio"] = round(statistics.median(ratios), 3)
            print(case, name, medians[name], flush=True)
        result["cases"][case] = {"medians": medians, "rounds": by_server}
    arguments.output.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
