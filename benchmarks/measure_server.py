"""Measure the memory of a server over many requests, and check its answers -> docs/results/server.json.

An async client sends requests to a server in another process, and reads its memory from /health at the same time. Every
answer is compared with a direct call for the same texts.

    python benchmarks/measure_server.py --requests 10000 --concurrency 64
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np

from qwen3_ranker_plugins import Request, Reranker

ROOT = Path(__file__).parents[1]
WORDS = "file with open close yeast bread tiger asia python block statement garbage flour water handle".split()


def make_requests(count: int) -> list[Request]:
    """A few hundred different requests of 1 to 5 documents; the server keeps nothing that would notice a repetition."""
    rng = np.random.default_rng(11)
    return [
        Request(
            f"query {number} {' '.join(rng.choice(WORDS, 3))}",
            [f"{' '.join(rng.choice(WORDS, rng.integers(2, 12)))} {number}" for _ in range(rng.integers(1, 6))],
        )
        for number in range(count)
    ]


async def load(url: str, requests: list[Request], expected: list[list[float]], total: int, concurrency: int) -> dict:
    """Send them all; memory after every 500."""
    numbers = iter(range(total))
    seconds: list[float] = []
    memory: list[tuple[int, int]] = []
    wrong = lost = 0
    async with httpx.AsyncClient(
        base_url=url, timeout=120, limits=httpx.Limits(max_connections=concurrency + 1)
    ) as client:

        async def worker() -> None:
            nonlocal wrong, lost
            for number in numbers:
                request, scores = requests[number % len(requests)], expected[number % len(requests)]
                started = time.perf_counter()
                answer = await client.post(
                    "/rerank", json={"query": request.query, "documents": list(request.documents), "top_k": 10}
                )
                seconds.append(time.perf_counter() - started)
                if answer.status_code != 200:
                    lost += 1
                else:
                    found = {each["index"]: each["relevance_score"] for each in answer.json()["ranked_documents"]}
                    wrong += not np.allclose([found[index] for index in range(len(scores))], scores, atol=1e-5)
                if len(seconds) % 500 == 0:
                    done = len(seconds)
                    health = (await client.get("/health")).json()
                    memory.append((done, health["memory"]["process_bytes"]))
                    print(done, health["memory"]["process_bytes"] // 2**20, "MiB", flush=True)

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        took = time.perf_counter() - started
    return {
        "requests": total,
        "concurrency": concurrency,
        "lost": lost,
        "wrong": wrong,
        "requests_per_second": round(total / took, 1),
        "latency_ms": {f"p{q}": round(1000 * float(np.percentile(seconds, q)), 1) for q in (50, 95, 99)},
        "memory_mib": [[done, round(size / 2**20, 1)] for done, size in sorted(memory)],
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "server.json")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    requests = make_requests(300)
    with Reranker("bundled:tiny") as reranker:
        expected = [scores.tolist() for scores in reranker.score_many(requests)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
    try:
        while True:
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        facts = httpx.get(f"{url}/health").json()["engine_facts"]
        measured = asyncio.run(load(url, requests, expected, options.requests, options.concurrency))
        passes = dict(
            line.rsplit(" ", 1)
            for line in httpx.get(f"{url}/metrics").text.splitlines()
            if line.startswith(("qwen3_ranker_pass_requests_sum", "qwen3_ranker_pass_requests_count"))
        )
    finally:
        server.terminate()
        server.wait(60)
    count = float(passes["qwen3_ranker_pass_requests_count"])
    measured["requests_per_pass"] = round(float(passes["qwen3_ranker_pass_requests_sum"]) / count, 2)
    result = {
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "engine": facts,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("fastapi", "uvicorn", "httpx")},
        "commit": commit.stdout.strip(),
        "documents_per_request": "1 to 5 of 3 to 12 words",
        **measured,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
