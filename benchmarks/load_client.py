"""Measure how much load the client of `bench load` can send -> docs/results/load_client.json.

The server only answers, without any work; it runs in its own process, on the same cores.

    PYTHONPATH=src:. python benchmarks/load_client.py [--processes 1 2]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

from qwen3_ranker_plugins.bench.load.results import step_figures
from qwen3_ranker_plugins.bench.load.run import LoadPlan, measure_load
from qwen3_ranker_plugins.bench.load.target import Target
from qwen3_ranker_plugins.bench.load.workloads import Workload
from qwen3_ranker_plugins.bench.machine import environment
from qwen3_ranker_plugins.bench.results import plain

ROOT = Path(__file__).parents[1]
WORKLOAD = "120+180x10"
ITEMS = 10
BODY = json.dumps({"results": [{"index": index, "relevance_score": 0.5} for index in range(ITEMS)]}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


class Answering(asyncio.Protocol):
    """Answers each request with the same scores, and looks at its length only."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if end and len(rest) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            self._received = b""
            self._transport.write(ANSWER)


def serve(ready: Connection) -> None:
    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "load_client.json")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    target = Target.at(f"http://127.0.0.1:{ours.recv()}", "jina")
    about, rows = environment(), []
    try:
        for processes in options.processes:
            for clients in (8, 512):
                plan = LoadPlan(
                    Workload.named(WORKLOAD), clients=[clients], seconds=options.seconds, processes=processes
                )
                began = time.process_time()
                (found,) = step_figures(measure_load(target, plan, about))
                row = {"processes": processes, "clients": clients, "failed": found.all_failed}
                row |= {"requests_per_second": round(found.items_per_second / ITEMS), "p50_ms": found.p50}
                if processes == 1:  # in this process: on a busy machine this says more than the rate
                    row["processor_us_per_request"] = round(1e6 * (time.process_time() - began) / found.requests)
                rows.append(row)
                print(json.dumps(rows[-1]), flush=True)
    finally:
        server.terminate()
        server.join()
    options.out.write_text(json.dumps({"about": plain(about), "workload": WORKLOAD, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
