"""Limits of a request, of the queue and of patience; and who is dropped when."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import httpx
import pytest

from qwen3_ranker_plugins import Reranker

from .conftest import DOCUMENTS, QUERY, Running, busy_engine, serving, wait_until

BODY = {"query": QUERY, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def strict(reranker: Reranker) -> Iterator[Running]:
    with serving(
        max_documents=10,
        max_request_tokens=600,
        max_body_bytes=20_000,
        max_queue_documents=12,
        max_queue_tokens=900,
        max_queue_bytes=60_000,
        max_connections=40,
        header_timeout=0.7,
        body_timeout=1.0,
        request_timeout=30,
    ) as running:
        yield running


def test_a_request_has_limits(strict: Running) -> None:
    with strict.client() as client:
        many = client.post("/rerank", json={"query": "q", "documents": ["d"] * 11})
        assert (many.status_code, many.json()["error"]["type"]) == (413, "too_many_documents")
        long = client.post("/rerank", json={"query": "q", "documents": [f"{n} " + "word " * 90 for n in range(10)]})
        assert (long.status_code, long.json()["error"]["type"]) == (413, "too_many_tokens")
        large = client.post("/rerank", json={"query": "q", "documents": ["x" * 30_000]})
        assert (large.status_code, large.json()["error"]["type"]) == (413, "body_too_large")

        def chunks() -> Iterator[bytes]:
            yield b'{"query": "q", "documents": ["'
            for _ in range(30):
                yield b"x" * 1000
            yield b'"]}'

        chunked = client.post("/rerank", content=chunks(), headers={"Content-Type": "application/json"})
        assert (chunked.status_code, chunked.json()["error"]["type"]) == (413, "body_too_large")
        assert client.post("/rerank", json={"query": "q", "documents": ["d"] * 10}).status_code == 200
    wait_until(lambda: strict.state.bodies.held == 0)


def test_a_full_queue_says_when_to_come_back(strict: Running, reranker: Reranker) -> None:
    documents = [f"document {number}" + " word" * 40 for number in range(8)]
    with ThreadPoolExecutor(1) as pool, busy_engine(reranker) as gate, strict.client() as client:
        waiting = pool.submit(
            httpx.post, f"{strict.url}/rerank", timeout=60, json={"query": QUERY, "documents": documents}
        )
        wait_until(lambda: strict.state.admission.documents == 8)
        full = client.post("/rerank", json={"query": QUERY, "documents": documents})
        assert (full.status_code, full.json()["error"]["type"]) == (503, "queue_full")
        assert 1 <= int(full.headers["Retry-After"]) <= 60
        # There is room for fewer documents, until their tokens are too many: counted exactly, not guessed.
        dense = client.post("/rerank", json={"query": QUERY, "documents": ["ж! " * 170]})
        assert (dense.status_code, dense.json()["error"]["type"]) == (503, "queue_full")
        assert strict.state.admission.documents == 8, "a refused request holds no place"
        assert client.get("/health").json()["queue"] == {
            "requests": 1, "documents": 8, "tokens": strict.state.admission.tokens,
        }  # fmt: skip
        gate.set()
        assert waiting.result(60).status_code == 200
        assert client.post("/rerank", json={"query": QUERY, "documents": documents}).status_code == 200
    wait_until(lambda: strict.state.admission.tokens == strict.state.admission.requests == 0)


def test_a_queue_that_is_too_long_for_a_deadline_refuses_at_once(reranker: Reranker) -> None:
    """A server of its own, which has not measured its pace yet."""
    documents = [f"document {number}" + " word" * 40 for number in range(4)]
    body = {"query": QUERY, "documents": documents}
    with (
        serving(request_timeout=30) as fresh,
        ThreadPoolExecutor(2) as pool,
        busy_engine(reranker) as gate,
        fresh.client() as client,
    ):
        admission = fresh.state.admission
        waiting = pool.submit(httpx.post, f"{fresh.url}/rerank", timeout=60, json=body)
        wait_until(lambda: admission.documents == 4 and admission.tokens > 100)
        # Passes far below the token budget say nothing about a long queue.
        admission.served(tokens=10, seconds=50.0, token_budget=1000)
        hasty = {"X-Request-Timeout": "0.2"}
        late = client.post("/rerank", json=body, headers=hasty)
        assert (late.status_code, late.json()["error"]["type"]) == (504, "deadline_exceeded")
        wait_until(lambda: admission.documents == 4)
        admission.served(tokens=500, seconds=2.0, token_budget=1000)
        early = client.post("/rerank", json=body, headers=hasty)
        assert (early.status_code, early.json()["error"]["type"]) == (503, "queue_full")
        assert "the deadline is in 0.2 s" in early.json()["error"]["message"]
        assert 1 <= int(early.headers["Retry-After"]) <= 60
        unread = HTTPConnection("127.0.0.1", fresh.port, timeout=20)
        unread.putrequest("POST", "/rerank")
        for name, value in {**hasty, "Content-Type": "application/json", "Content-Length": "2000"}.items():
            unread.putheader(name, value)
        unread.endheaders()
        assert unread.getresponse().status == 503, "refused before its body has arrived"
        unread.close()
        patient = pool.submit(httpx.post, f"{fresh.url}/rerank", timeout=60, json=body)
        wait_until(lambda: admission.documents == 8)
        gate.set()
        assert [each.result(60).status_code for each in (waiting, patient)] == [200, 200]
        assert client.post("/rerank", json=body, headers={"X-Request-Timeout": "9"}).status_code == 200


def test_a_deadline_frees_the_place_in_the_queue(strict: Running, reranker: Reranker) -> None:
    dispatcher = reranker._lease._dispatcher
    with busy_engine(reranker), strict.client() as client:
        for _ in range(3):  # eight documents each: they would not fit the queue together
            late = client.post(
                "/rerank",
                json={"query": QUERY, "documents": [f"late {n}" for n in range(8)]},
                headers={"X-Request-Timeout": "0.3"},
            )
            assert (late.status_code, late.json()["error"]["type"]) == (504, "deadline_exceeded")
            wait_until(lambda: strict.state.admission.requests == 0)
        assert not dispatcher._waiting, "what nobody waits for is not kept for the engine"
    with strict.client() as client:
        assert client.post("/rerank", json=BODY).status_code == 200


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "0"])
def test_a_deadline_is_a_number(given: str, client: httpx.Client) -> None:
    assert client.post("/rerank", json=BODY, headers={"X-Request-Timeout": given}).status_code == 422


def test_a_client_that_leaves_is_dropped_before_the_engine(server: Running, reranker: Reranker) -> None:
    dispatcher = reranker._lease._dispatcher
    passes: list[int] = []
    reranker.on_pass(lambda report: passes.append(report.documents))
    gone = server.metric("requests_total", route="/rerank", method="POST", status="499")
    with busy_engine(reranker) as gate:
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.7) as client:
            client.post(f"{server.url}/rerank", json={"query": QUERY, "documents": [f"gone {n}" for n in range(50)]})
        wait_until(lambda: server.state.admission.requests == 0)
        assert not dispatcher._waiting
        assert server.metric("requests_total", route="/rerank", method="POST", status="499") == gone + 1
        del passes[:]
        gate.set()
        with server.client() as client:
            client.post("/rerank", json={"query": QUERY, "documents": ["a", "b"]})
    assert 50 not in passes


def _connect(server: Running, first: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(first)
    return connection


def _read_all(connection: socket.socket) -> bytes:
    answer = b""
    with connection:
        while chunk := connection.recv(4096):
            answer += chunk
    return answer


def test_headers_that_trickle_are_not_waited_for(strict: Running) -> None:
    """Slow-loris: thirty connections send a byte now and then; others are served, and the thirty are closed."""
    slow = [_connect(strict, b"POST /rerank HTTP/1.1\r\nHost: x\r\nX-A") for _ in range(30)]
    silent = _connect(strict, b"")
    started = time.monotonic()
    with strict.client() as client:
        assert client.post("/rerank", json=BODY).status_code == 200
    closed = 0
    while closed < len(slow) and time.monotonic() - started < 20:
        for connection in [each for each in slow if each.fileno() >= 0]:
            try:
                connection.sendall(b"a")
                time.sleep(0.01)
            except OSError:
                connection.close()
                closed += 1
    assert closed == len(slow)
    assert silent.recv(1) == b""
    silent.close()


def test_a_body_that_trickles_gets_an_answer_and_no_more(strict: Running) -> None:
    head = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    answer = _read_all(_connect(strict, head))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in answer
    wait_until(lambda: strict.state.bodies.held == 0)


def test_bodies_of_all_requests_together_are_bounded(strict: Running) -> None:
    head = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 19999\r\n\r\n"
    holding = [_connect(strict, head + b"x" * 19_000) for _ in range(3)]
    wait_until(lambda: strict.state.bodies.held == 57_000)
    with strict.client() as client:
        refused = client.post("/rerank", json={"query": "q", "documents": ["x" * 5000]})
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "queue_full")
    for each in holding:
        each.close()
    wait_until(lambda: strict.state.bodies.held == 0)


def test_connections_are_bounded(strict: Running) -> None:
    held = [_connect(strict, b"") for _ in range(60)]
    closed = 0
    for each in held:
        each.settimeout(0.02)
        try:
            closed += each.recv(1) == b""
        except TimeoutError:
            continue
        except OSError:
            closed += 1
    assert closed >= 20
    for each in held:
        each.close()
    with strict.client() as client:
        wait_until(lambda: client.get("/ready").status_code == 200)


def test_who_comes_when_all_connections_are_busy_gets_an_answer(reranker: Reranker) -> None:
    with (
        serving(max_connections=4) as running,
        ThreadPoolExecutor(4) as pool,
        busy_engine(reranker) as gate,
    ):
        busy = [
            pool.submit(httpx.post, f"{running.url}/rerank", timeout=60, json={"query": f"{n}", "documents": ["d"]})
            for n in range(4)
        ]
        wait_until(lambda: running.state.admission.requests == 4)
        with running.client() as client:
            refused = client.post("/rerank", json=BODY)
            assert (refused.status_code, refused.json()["error"]["type"]) == (503, "queue_full")
            assert "connections" in refused.json()["detail"]
            assert int(refused.headers["Retry-After"]) >= 1
            assert client.get("/health").status_code == 200, "probes are answered"
            gate.set()
            assert [each.result(60).status_code for each in busy] == [200] * 4
            wait_until(lambda: client.post("/rerank", json=BODY).status_code == 200, 10)


def test_a_body_that_comes_after_its_answer_does_not_end_the_connection(strict: Running) -> None:
    connection = HTTPConnection("127.0.0.1", strict.port, timeout=20)
    connection.putrequest("POST", "/rerank")
    connection.putheader("Content-Length", "10")
    connection.endheaders()
    refused = connection.getresponse()
    assert (refused.status, json.loads(refused.read())["error"]["type"]) == (415, "unsupported_media_type")
    used = connection.sock
    connection.send(b"0123456789")
    time.sleep(1.0)  # longer than a header may take
    connection.request("GET", "/ping")
    assert connection.getresponse().status == 200
    assert connection.sock is used
    connection.close()


def test_a_client_that_does_not_read_is_cut_off(reranker: Reranker) -> None:
    text = "many words " * 500
    body = b'{"query": "q", "documents": [' + b",".join([f'"{text}"'.encode()] * 1000) + b'], "top_k": 1000}'
    with serving(write_timeout=0.5) as running:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(60)
            connection.connect(("127.0.0.1", running.port))
            head = b"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(head % len(body) + body)
            wait_until(lambda: running.metric("request_documents_count") == 1)
            wait_until(lambda: running.lifecycle.exchanges == 0)
        assert running.state.bodies.held == 0


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n"]
)
def test_what_is_no_http_gets_the_shape_of_all_errors(garbage: bytes, server: Running) -> None:
    answer = _read_all(_connect(server, garbage + b"\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"type": "bad_request"' in answer


def test_concurrent_requests_share_passes(server: Running, reranker: Reranker) -> None:
    reports: list[int] = []
    with busy_engine(reranker) as gate, ThreadPoolExecutor(8) as pool:
        answers = [
            pool.submit(
                httpx.post, f"{server.url}/rerank", json={"query": f"query {n}", "documents": DOCUMENTS}, timeout=60
            )
            for n in range(8)
        ]
        wait_until(lambda: server.state.admission.requests == 8)
        wait_until(lambda: len(reranker._lease._dispatcher._waiting) == 8)
        reranker.on_pass(lambda report: reports.append(report.requests))
        gate.set()
        assert {each.result(60).status_code for each in answers} == {200}
    assert reports[0] == 8


def test_threads_end_with_their_server(reranker: Reranker) -> None:
    with serving() as running, running.client() as client:
        client.post("/rerank", json=BODY)
    assert running.thread not in threading.enumerate()
    assert reranker.score(QUERY, DOCUMENTS).shape == (len(DOCUMENTS),), "the engine is others' too"


def test_the_queue_counts_what_can_be_scored(reranker: Reranker) -> None:
    """A document of megabytes is read as far as any other, so it takes no more of the queue."""
    with serving(max_queue_tokens=30_000, request_timeout=60) as running:
        body = {"query": QUERY, "documents": ["word " * 400_000]}
        with ThreadPoolExecutor(3) as pool, busy_engine(reranker) as gate, running.client() as client:
            waiting = [
                pool.submit(httpx.post, f"{running.url}/rerank", timeout=60, json=body | {"query": f"q{number}"})
                for number in range(2)
            ]
            wait_until(lambda: running.state.admission.documents == 2)
            wait_until(lambda: running.state.admission.tokens > 2 * 8_000)
            assert running.state.admission.tokens <= 2 * reranker.settings.max_length
            small = pool.submit(client.post, "/rerank", json=BODY)
            gate.set()
            assert small.result(60).status_code == 200
            answers = [each.result(60) for each in waiting]
        assert [answer.status_code for answer in answers] == [200] * 2
        assert all(answer.headers["X-Truncated-Documents"] == "1" for answer in answers)
