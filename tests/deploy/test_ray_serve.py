"""The Ray Serve deployment, run for real: two replicas on CPUs behind Ray's proxy, asked by a stock client."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import cohere
import httpx
import psutil
import pytest

from qwen3_ranker_plugins import InvalidInputError, Reranker

from ..server.conftest import DOCUMENTS, QUERY, wait_until

ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve", reason="ray is installed without its extra `serve`", exc_type=ImportError)

KEY = "ray-key-0123456789"
TEXTS = [text for text in DOCUMENTS if text]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Two replicas, each with one of two CPUs. Ray installs a handler of its own for SIGTERM."""
    from ray import serve

    from qwen3_ranker_plugins.server.ray_serve import build

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    before = signal.getsignal(signal.SIGTERM)
    # Ray's processes inherit them. On a busy machine, workers at Ray's lowest priority wait for minutes, and its proxy
    # does not start within 5 seconds.
    inherited = {
        "QWEN3_RANKER_API_KEYS": KEY,
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    }
    os.environ.update(inherited)
    try:
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build({"model": "bundled:tiny", "min_replicas": 2, "max_replicas": 2}))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()
        for name in inherited:
            del os.environ[name]
        signal.signal(signal.SIGTERM, before)


def _replicas() -> set[int]:
    """Processes of the replicas, by the title that Ray gives them."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] == ["ray::ServeReplica:default:qwen3-ranker"]:
                found.add(process.pid)
    return found


def _load_until(done: threading.Event, client: cohere.ClientV2) -> list[list[tuple[int, float]]]:
    answers = []
    while not done.is_set():
        answer = client.rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS, request_options={"max_retries": 8})
        answers.append([(each.index, each.relevance_score) for each in answer.results])
        done.wait(0.1)  # leaves a new replica time to start
    return answers


def test_the_same_application_answers(url: str, reranker: Reranker) -> None:
    """Keys, wire shapes and scores are those of `qwen3-ranker serve`."""
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS}).status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        pairs = {"queries": QUERY, "documents": TEXTS, "use_activation": False}
        answer = client.post("/v1/score", json=pairs, headers=headers).json()
        assert client.get("/health", headers=headers).json()["model"] == "bundled:tiny"
    margins = {hit.index: hit.margin for hit in reranker.rerank(QUERY, TEXTS)}
    assert [each["score"] for each in answer["data"]] == [
        pytest.approx(margins[index], abs=1e-4) for index in range(len(TEXTS))
    ]


def test_a_replica_is_killed_under_load(url: str, reranker: Reranker) -> None:
    """Cohere's client, which repeats failed requests by itself, loses none; another replica takes the place."""
    expected = [(hit.index, pytest.approx(hit.score, abs=1e-4)) for hit in reranker.rerank(QUERY, TEXTS)]
    done = threading.Event()

    before = _replicas()
    assert len(before) == 2
    with httpx.Client(timeout=60) as connections, ThreadPoolExecutor(4) as pool:
        client = cohere.ClientV2(KEY, base_url=url, httpx_client=connections)
        clients = [pool.submit(_load_until, done, client) for _ in range(4)]
        try:
            time.sleep(2)
            os.kill(min(before), signal.SIGKILL)
            wait_until(lambda: len(_replicas()) == 2 and _replicas() != before, 120)
            time.sleep(2)
        finally:
            done.set()
        answers = [answer for each in clients for answer in each.result(120)]
    assert len(answers) > 20
    assert all(answer == expected for answer in answers)
    assert len(_replicas() & before) == 1


def test_replicas_follow_the_queued_documents() -> None:
    from qwen3_ranker_plugins.server.ray_serve import QUEUED_DOCUMENTS, QueuedDocuments

    policy = QueuedDocuments(documents_per_replica=500)

    def wanted(metrics: dict[str, Any] | None) -> int:
        return policy(SimpleNamespace(aggregated_metrics=metrics))[0]  # type: ignore[arg-type]

    assert wanted({QUEUED_DOCUMENTS: {"a": 900.0, "b": 101.0}}) == 3
    assert wanted({QUEUED_DOCUMENTS: {"a": 500.0}}) == 1
    assert wanted({}) == wanted(None) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_replicas": "many"}, "max_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "at least min_replicas"),
        ({"no_such_setting": "x"}, "no_such_setting"),
    ],
)
def test_unusable_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    from qwen3_ranker_plugins.server.ray_serve import build

    with pytest.raises(InvalidInputError, match=message):
        build(arguments)
