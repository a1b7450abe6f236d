"""Servers on real sockets: in a thread, where they share the session's engine, or as processes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

from qwen3_ranker_plugins import Request, Reranker
from qwen3_ranker_plugins.server.middleware import Lifecycle
from qwen3_ranker_plugins.server.run import make_server
from qwen3_ranker_plugins.server.settings import Configuration, ServerSettings
from qwen3_ranker_plugins.server.state import ServerState

QUERY = "how do I close a file in Python?"
DOCUMENTS = [
    "Tigers live in Asia.",
    "Use the with statement: it closes the file in Python at the end of the block.",
    "Bread needs yeast, flour and water.",
    "file.close() closes a file; in Python, files are also closed when they are garbage.",
    "",
]


@dataclass
class Running:
    """A server that answers."""

    port: int
    state: ServerState
    lifecycle: Lifecycle
    thread: threading.Thread
    keys: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, **options)  # type: ignore[arg-type]

    def metric(self, name: str, **labels: str) -> float:
        return self.state.metrics.registry.get_sample_value(f"qwen3_ranker_{name}", labels) or 0.0


@contextmanager
def serving(*, keys: tuple[str, ...] = (), ready: bool = True, **settings: object) -> Iterator[Running]:
    """A server in a thread of this process, on a free port."""
    lifecycle = Lifecycle()
    configuration = Configuration(ServerSettings(port=0, **settings), keys)  # type: ignore[arg-type]
    server = make_server(configuration, lifecycle)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="test-server")
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        running = Running(port, server.config.app.state.server, lifecycle, thread, keys)  # type: ignore[union-attr]
        if ready:
            headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
            wait_until(lambda: httpx.get(f"{running.url}/ready", headers=headers).status_code == 200)
        yield running
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Until the condition holds; a failure names it by its line."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def server(reranker: Reranker) -> Iterator[Running]:
    """An open server with the settings that come of themselves; it shares the engine of the `reranker` fixture."""
    with serving() as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


@contextmanager
def busy_engine(reranker: Reranker) -> Iterator[threading.Event]:
    """The engine's thread is held up after a real pass, until the event is set or the block ends."""
    gate, held = threading.Event(), threading.Event()

    def hold(_documents: int) -> None:
        held.set()
        assert gate.wait(60)

    prepared = reranker.prepare(Request("hold", ["the engine"]))
    future = reranker.submit(prepared, hold)
    try:
        assert held.wait(60)
        yield gate
    finally:
        gate.set()
        future.result(60)


@pytest.fixture
def held_engine(reranker: Reranker) -> Iterator[threading.Event]:
    with busy_engine(reranker) as gate:
        yield gate
