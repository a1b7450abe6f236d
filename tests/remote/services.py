"""Services on real sockets: one that answers as vLLM with the bundled model, and one that misbehaves."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from transformers import AutoTokenizer

from qwen3_ranker_plugins.engines.packed.engine import PackedEngine
from qwen3_ranker_plugins.prompt import DEFAULT_INSTRUCTION, TEMPLATES, EncodedRequest

KEY = "correct-horse-battery-staple"


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of an app that uvicorn serves on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def vllm_like(folder: Path, engine: PackedEngine, *, with_template: bool = False) -> FastAPI:
    """What `vllm serve` does with a Qwen3 reranker in its pooling runner, as read in vLLM 0.32.

    /classify takes token ids. /v1/score and /v1/rerank concatenate query and document and read control
    tokens in them; with a chat template they put that around the two. The key guards /v1 only.
    """
    app = FastAPI()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    one_at_a_time = threading.Lock()

    def answer(prompts: list[list[int]], activation: bool | None) -> tuple[list[float], dict[str, int]]:
        requests = [EncodedRequest(ids[:1], [ids[1:]], [0]) for ids in prompts]
        with one_at_a_time:
            margins = np.array([margin.values[0] for margin in engine.score(requests)], dtype=np.float64)
        scores = margins if activation is False else 1 / (1 + np.exp(-margins))
        tokens = sum(map(len, prompts))
        return scores.tolist(), {"prompt_tokens": tokens, "total_tokens": tokens}

    def prompts(body: dict[str, Any], query: str, documents: list[str]) -> list[list[int]]:
        if with_template:
            instruction = body.get("instruction") or DEFAULT_INSTRUCTION
            whole = TEMPLATES["standard"]
            texts = [whole.format(instruction=instruction, query=query, document=document) for document in documents]
        else:
            texts = [query + document for document in documents]
        return [tokenizer(text)["input_ids"] for text in texts]

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Any]) -> Response:
        if request.url.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        response: Response = await go_on(request)
        return response

    @app.post("/classify")
    def classify(body: dict[str, Any]) -> dict[str, Any]:
        scores, usage = answer(body["input"], body.get("use_activation"))
        return {"data": [{"index": i, "probs": [score]} for i, score in enumerate(scores)], "usage": usage}

    @app.post("/v1/score")
    def score(body: dict[str, Any]) -> dict[str, Any]:
        scores, usage = answer(prompts(body, body["text_1"], body["text_2"]), body.get("use_activation"))
        return {"data": [{"index": i, "score": score} for i, score in enumerate(scores)], "usage": usage}

    @app.post("/v1/rerank")
    def rerank(body: dict[str, Any]) -> dict[str, Any]:
        scores, usage = answer(prompts(body, body["query"], body["documents"]), body.get("use_activation"))
        results = [{"index": i, "relevance_score": score} for i, score in enumerate(scores)]
        return {"results": sorted(results, key=lambda each: -each["relevance_score"]), "usage": usage}

    return app


Reply = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the service's script says."""

    protocol_version = "HTTP/1.1"
    service: Faulty

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = self.service.next_reply(body)
        reply(self, body)

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Not on standard error."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what is tested."""


class Faulty:
    """Answers its first requests by the script, then well: document i scores 0.5 + i / 1000, best first.

    Attributes:
        bodies: of the requests, in the order in which they came.
        hung_up: set when a client closed its connection while it waited for a `silent` answer.
    """

    def __init__(self, *script: Reply, then: Reply | None = None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.asked = threading.Event()
        self.hung_up = threading.Event()
        self.released = threading.Event()
        self._script = list(script)
        self._then = well if then is None else then
        self._lock = threading.Lock()
        handler = type("OwnHandler", (Handler,), {"service": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def next_reply(self, body: dict[str, Any]) -> Reply:
        with self._lock:
            self.bodies.append(body)
            reply = self._script.pop(0) if self._script else self._then
        self.asked.set()
        return reply

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def well(handler: Handler, body: dict[str, Any]) -> None:
    results = [{"index": i, "relevance_score": 0.5 + i / 1000} for i in range(len(body["documents"]))]
    handler.send(200, json.dumps({"results": results[::-1]}).encode())


def status(code: int, content: str = '{"error": {"message": "not now"}}', **headers: str) -> Reply:
    return lambda handler, _body: handler.send(code, content.encode(), **headers)


def scores(*values: Any) -> Reply:
    """Results in the order given: (index, score), the score as JSON text."""
    items = ", ".join(f'{{"index": {json.dumps(i)}, "relevance_score": {score}}}' for i, score in values)
    return status(200, f'{{"results": [{items}]}}')


def reset(handler: Handler, _body: dict[str, Any]) -> None:
    """Close with RST in the middle of the answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for each in (handler.rfile, handler.wfile, handler.connection):  # the socket closes with the last of them
        each.close()
    handler.close_connection = True


def broken_off(handler: Handler, _body: dict[str, Any]) -> None:
    """Promise more bytes than come."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"results": [')
    handler.close_connection = True


def silent(handler: Handler, _body: dict[str, Any]) -> None:
    """Answer nothing until the client hangs up or the service ends."""
    handler.connection.settimeout(0.05)
    while not handler.service.released.is_set():
        try:
            if not handler.connection.recv(1):
                handler.service.hung_up.set()
                break
        except TimeoutError:
            continue
    handler.close_connection = True


def dripping(handler: Handler, _body: dict[str, Any]) -> None:
    """A header that never ends, a byte at a time: no single read takes long."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not handler.service.released.wait(0.05):
        handler.wfile.write(b"x")
