"""Measure how documents of several megabytes slow down a server's other clients -> docs/results/long_documents.json.

A small request is sent alone, and then while each of three clients has a document of 4 MB in flight. A document of
20 MB is encoded as in an offline job.

    python benchmarks/measure_long_documents.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np

ROOT = Path(__file__).parents[1]
TEXT = "the quick brown fox jumps over the lazy dog and goes home "
SMALL = {"query": "how do I open a file", "documents": ["open() returns a file object.", "Bread needs yeast."]}
ENCODE = """
import resource, sys, time
from qwen3_ranker_plugins.models import resolve_model
from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer
encoder = PromptEncoder(load_tokenizer(resolve_model("bundled:tiny")))
encoder.encode("q", ["warm"], None)
text = sys.argv[1] * (20_000_000 // len(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
request = encoder.encode("q", [text], None)
print(time.perf_counter() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def seconds(client: httpx.Client, count: int) -> list[float]:
    """Of a small request, so many times."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        client.post("/v1/rerank", json=SMALL).raise_for_status()
        taken.append(time.perf_counter() - started)
    return taken


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "long_documents.json")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", "--port", str(port), "--log-level", "warning"]
    command += ["--max-length", "1024"]  # so that the tokenizer is measured and not the model's arithmetic
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
    statuses: list[int] = []
    stop = threading.Event()
    try:
        while True:
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)

        def send(number: int) -> None:
            with httpx.Client(base_url=url, timeout=300) as client:
                while not stop.is_set():
                    body = {"query": f"q{number}", "documents": [TEXT * (4_000_000 // len(TEXT))]}
                    statuses.append(client.post("/v1/rerank", json=body).status_code)

        with httpx.Client(base_url=url, timeout=300) as client:
            alone = seconds(client, 20)
            senders = [threading.Thread(target=send, args=(number,)) for number in range(3)]
            for sender in senders:
                sender.start()
            time.sleep(1)
            beside = seconds(client, 10)
            stop.set()
            for sender in senders:
                sender.join()
    finally:
        server.terminate()
        server.wait(60)
    encoded = subprocess.run([sys.executable, "-c", ENCODE, TEXT], capture_output=True, text=True, check=True)  # noqa: S603
    took, memory = map(float, encoded.stdout.split())
    result = {
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "commit": commit.stdout.strip(),
        "small_request_ms": {
            name: {f"p{q}": round(1000 * float(np.percentile(each, q)), 1) for q in (50, 100)}
            for name, each in (("alone", alone), ("beside three clients with 4 MB", beside))
        },
        "answers_to_4_mb": {str(status): statuses.count(status) for status in sorted(set(statuses))},
        "20_mb_encoded": {"seconds": round(took, 3), "more_memory_mib": round(memory, 1)},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
