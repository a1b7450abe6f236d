"""The short version of serving.ipynb: start `qwen3-ranker serve`, rank with the cohere package and with Reranker."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import cohere

from qwen3_ranker_plugins import Reranker

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
url = f"http://127.0.0.1:{port}"
server = subprocess.Popen([sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", "--port", str(port)])


def ready() -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=60) as answer:
            return bool(json.load(answer)["ready"])
    except (urllib.error.URLError, ConnectionError):
        return False


try:
    while not ready():
        if server.poll() is not None:
            sys.exit("the server ended")
        time.sleep(0.2)
    query = "How do I close a file?"
    documents = ["A list is a mutable sequence.", "The with statement closes a file."]

    client = cohere.ClientV2("any key", base_url=url)
    for result in client.rerank(model="bundled:tiny", query=query, documents=documents).results:
        print(f"cohere: {result.relevance_score:.2f} {documents[result.index]}")

    with Reranker("bundled:tiny", engine="remote", engine_options={"url": url}) as reranker:
        for hit in reranker.rerank(query, documents):
            print(f"remote: {hit.score:.2f} {hit.document}")
finally:
    server.terminate()
    server.wait(90)
