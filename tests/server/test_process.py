"""The command as a process: what it prints, how it ends, what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from qwen3_ranker_plugins import Reranker

from .conftest import DOCUMENTS, QUERY, wait_until

BODY = {"query": QUERY, "documents": DOCUMENTS}
ROOT = Path(__file__).parents[2]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def _process(
    tmp_path: Path, *arguments: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """(process, its address, the file with its log)."""
    port = _free_port()
    log = tmp_path / f"{port}.log"
    with log.open("wb") as errors, (tmp_path / f"{port}.out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", "--port", str(port), *arguments],
            stdout=out,
            stderr=errors,
            env={**os.environ, **environment},
        )
        try:
            yield process, f"http://127.0.0.1:{port}", log
        finally:
            process.kill()
            process.wait(60)


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=10).status_code
    except httpx.TransportError:
        return 0


def test_it_serves_with_no_more_than_a_port_and_ends_in_order(tmp_path: Path, reranker: Reranker) -> None:
    """SIGTERM under load: what was accepted is answered, what comes later is refused, and the exit code is 0."""
    with _process(tmp_path) as (process, url, log), ThreadPoolExecutor(8) as pool:
        wait_until(lambda: _status(f"{url}/ready") == 200, 120)
        ranked = httpx.post(f"{url}/rerank", json=BODY, timeout=60).json()["ranked_documents"]
        expected = reranker.rerank(QUERY, DOCUMENTS)
        assert [each["index"] for each in ranked] == [hit.index for hit in expected]

        many = [f"{number} " + "with the statement closes files " * 12 for number in range(60)]
        accepted = [
            pool.submit(httpx.post, f"{url}/rerank", json={"query": f"{n}", "documents": many}, timeout=200)
            for n in range(4)
        ]
        wait_until(lambda: httpx.get(f"{url}/health").json()["queue"]["requests"] == 4)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{url}/health").json()["status"] == "draining")
        late = httpx.post(f"{url}/rerank", json=BODY, timeout=60)
        assert (late.status_code, late.json()["error"]["type"]) == (503, "shutting_down")
        assert late.headers["Retry-After"]
        assert late.headers["Connection"] == "close"
        assert _status(f"{url}/ready") == 503
        assert [each.result(200).status_code for each in accepted] == [200] * 4
        assert process.wait(60) == 0
        assert _status(f"{url}/health") == 0
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [line["event"] for line in lines if line["event"] == "draining"] == ["draining"]
        answered = [line for line in lines if line["event"] == "request" and line.get("documents") == 60]
        assert [line["status"] for line in answered] == [200] * 4
        assert all(line["request_id"] and line["seconds"] > 0 for line in answered)
    printed = (tmp_path / f"{url.rpartition(':')[2]}.out").read_text()
    assert "model: bundled:tiny" in printed
    assert "none: every route is open" in printed


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with _process(tmp_path) as (process, url, _), ThreadPoolExecutor(1) as pool:
        wait_until(lambda: _status(f"{url}/ready") == 200, 120)
        many = [f"{number} " + "with the statement closes files " * 12 for number in range(400)]
        endless = pool.submit(httpx.post, f"{url}/rerank", json={"query": "q", "documents": many}, timeout=200)
        wait_until(lambda: httpx.get(f"{url}/health").json()["queue"]["requests"] == 1)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{url}/health").json()["status"] == "draining")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        with suppress(httpx.TransportError):  # the connection may have ended with the process
            assert endless.result(60).status_code != 200


def test_after_a_kill_the_next_process_takes_the_same_port(tmp_path: Path) -> None:
    """kill -9 under load: clients hear of it at once, nothing is left that keeps a new process from starting."""
    port = str(_free_port())
    url = f"http://127.0.0.1:{port}"
    with ThreadPoolExecutor(8) as pool:
        with _process(tmp_path, "--port", port) as (process, _, _):
            wait_until(lambda: _status(f"{url}/ready") == 200, 120)
            many = [f"{number} " + "with the statement closes files " * 12 for number in range(60)]
            load = [
                pool.submit(httpx.post, f"{url}/rerank", json={"query": f"{n}", "documents": many}, timeout=200)
                for n in range(8)
            ]
            wait_until(lambda: httpx.get(f"{url}/health").json()["queue"]["requests"] >= 6)
            process.kill()
            started = time.monotonic()
            outcomes = [each.exception(60) for each in load]
            assert any(isinstance(each, httpx.TransportError) for each in outcomes)
            assert time.monotonic() - started < 60
        with _process(tmp_path, "--port", port):
            wait_until(lambda: _status(f"{url}/ready") == 200, 120)
            assert httpx.post(f"{url}/rerank", json=BODY, timeout=60).status_code == 200


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


def test_the_configuration_is_printed_without_secrets(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("hush-hush-4711\n")
    done = _run(
        "--config", str(ROOT / "examples" / "config.yaml"), "--port", "8003", "--api-key-file", str(file),
        "--print-config", QWEN3_RANKER_API_KEYS="hush-hush-4712", QWEN3_RANKER_MAX_DOCUMENTS="77",
    )  # fmt: skip
    assert done.returncode == 0
    assert "hush" not in done.stdout + done.stderr
    assert "2 (hidden)" in done.stdout
    for line in ("port: 8003", "max_documents: 77", "max_length: 2048", "template: standard", "token_budget: 32768"):
        assert line in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--port", "99999"], 2, "port (from --port)=99999"),
        (["--engine", "warp"], 2, "engine='warp'"),
        (["--config", "/nowhere.yaml"], 2, "No such file"),
        (["--model", "./nothing", "--port", "0"], 1, "there is no folder"),
        (["--engine-option", "x"], 2, "use NAME=VALUE"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_a_line(arguments: list[str], code: int, message: str) -> None:
    done = _run(*arguments)
    assert done.returncode == code
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_ends_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = _run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "address already in use" in done.stderr.lower()
    assert all(json.loads(line)["level"] for line in done.stderr.splitlines())


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_keys_are_rotated_without_a_lost_request(tmp_path: Path, reranker: Reranker) -> None:
    """Clients send requests all the time while keys are exchanged and a file without keys is refused."""
    keys = tmp_path / "keys"
    keys.write_text("old-key-0123456789\n")
    with (
        _process(tmp_path, "--api-key-file", str(keys)) as (process, url, log),
        ThreadPoolExecutor(4) as pool,
        httpx.Client(base_url=url, timeout=60) as client,
    ):

        def status(key: str) -> int:
            return client.post("/rerank", json=BODY, headers={"X-API-Key": key}).status_code

        def reload(text: str) -> None:
            before = log.read_text().count("reloaded")
            keys.write_text(text)
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: log.read_text().count("reloaded") == before + 1)

        wait_until(lambda: _status(f"{url}/health") == 200, 120)
        wait_until(lambda: client.get("/health").json()["status"] == "healthy", 120)
        stop = time.monotonic() + 30
        rotated: list[bool] = []

        def load() -> list[int]:
            """Requests with the old key until both keys are valid, and then with the new one."""
            statuses = []
            while len(rotated) < 3 and time.monotonic() < stop:
                statuses.append(status("new-key-0123456789" if rotated else "old-key-0123456789"))
            return statuses

        clients = [pool.submit(load) for _ in range(4)]
        time.sleep(0.5)
        reload("old-key-0123456789\nnew-key-0123456789\n")
        rotated.append(True)
        time.sleep(1)  # requests that were made with the old key are on their way
        reload("new-key-0123456789\n")
        rotated.append(True)
        assert status("old-key-0123456789") == 401
        reload("# no key\n")
        assert status("new-key-0123456789") == 200
        rotated.append(True)
        statuses = [each for client in clients for each in client.result(60)]
        assert len(statuses) > 8
        assert set(statuses) == {200}
        assert process.poll() is None
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [line["level"] for line in lines if "reloaded" in line["event"]] == ["info", "info", "error"]
        assert "key-0123456789" not in log.read_text()


def test_sighup_without_a_key_file_is_said_and_ends_nothing(tmp_path: Path) -> None:
    with _process(tmp_path) as (process, url, log):
        wait_until(lambda: _status(f"{url}/ready") == 200, 120)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "no keys were reloaded" in log.read_text())
        health = httpx.get(f"{url}/health").json()
        assert (health["status"], health["demonstration_model"]) == ("healthy", True)
        assert "bundled:tiny is a demonstration model" in log.read_text()
