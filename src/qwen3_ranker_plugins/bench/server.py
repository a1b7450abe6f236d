"""The reranking server as a measured thing: asked over HTTP, or started, awaited and stopped."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit

from ..config import ENGINE_ALIASES
from ..errors import InvalidInputError
from .errors import BenchError

#: Seconds that a server gets to end after SIGTERM.
_PATIENCE = 60


class Client:
    """One connection to a server, kept open; what it measures is the time of the client.

    Args:
        url: of the server, without a route.
        timeout: seconds for one answer.
        api_key: sent as a bearer token; None for none.

    Raises:
        InvalidInputError: not the URL of a server.
    """

    def __init__(self, url: str, *, timeout: float, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInputError("url", url, "give the address of a server, such as http://127.0.0.1:8001")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._path = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def health(self) -> dict[str, Any]:
        """What /health says, whatever its status.

        Raises:
            BenchError: no answer, or none that is JSON.
        """
        _, answer = self._exchange("GET", "/health", None)
        return answer

    def rerank_ms(self, query: str, documents: Sequence[str]) -> float:
        """Milliseconds from before the request is written as JSON to after its answer is read from JSON.

        Raises:
            BenchError: no answer, a status other than 200, or an answer without all documents.
        """
        started = time.perf_counter()
        body = json.dumps({"query": query, "documents": documents, "top_k": len(documents)}).encode()
        status, answer = self._exchange("POST", "/rerank", body)
        milliseconds = 1000 * (time.perf_counter() - started)
        if status != 200:
            raise BenchError(f"/rerank answered {status}: {json.dumps(answer)[:300]}")
        ranked = answer.get("ranked_documents", answer.get("results"))
        if not isinstance(ranked, list) or len(ranked) != len(documents):
            raise BenchError(f"/rerank answered without {len(documents)} ranked documents: {json.dumps(answer)[:300]}")
        return milliseconds

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _exchange(self, method: str, route: str, body: bytes | None) -> tuple[int, dict[str, Any]]:
        try:
            self._connection.request(method, self._path + route, body, self._headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next request opens a new one
            raise BenchError(f"{method} {route}: {type(error).__name__}: {error}") from error
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise BenchError(f"{method} {route} answered {response.status} without JSON: {content[:200]!r}") from error
        if not isinstance(answer, dict):
            raise BenchError(f"{method} {route} answered {response.status} without a JSON object: {content[:200]!r}")
        return response.status, answer


class RunningServer:
    """A `qwen3-ranker serve` of our own, from its start to its end; usable as a context manager.

    Args:
        settings: name -> value of the flags of `serve`; None leaves one out.
        start_timeout: seconds until its engine has to be ready.
        log: where its output goes; None for a temporary file.

    Raises:
        BenchError: it ends, or is not ready in time; the message ends in what it said last.
    """

    def __init__(self, settings: Mapping[str, Any], *, start_timeout: float = 900.0, log: Path | None = None) -> None:
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._start_timeout = start_timeout
        self._log_path = log
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        flags = [part for name, value in self._settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        self._log = tempfile.TemporaryFile() if self._log_path is None else self._log_path.open("w+b")
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", "--port", str(port), *flags],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")},
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self) -> None:
        """Until /health says that the engine answers, with the settings asked for.

        The T4 report waits the same way: until engine and format match, so that no other server is measured.
        """
        engine = self._settings.get("engine", "auto")
        expected = {
            "instruction_format": self._settings.get("template", "standard"),
            "max_model_len": self._settings.get("max_length"),
            "engine": ENGINE_ALIASES.get(engine, engine),
        }
        deadline = time.monotonic() + self._start_timeout
        last = "nothing"
        while time.monotonic() < deadline:
            if self._process is not None and (code := self._process.poll()) is not None:
                said = self.tail()
                last_line = said.rpartition("\n")[2][:300]  # where the command says what is wrong
                raise BenchError(f"the server ended with code {code}: {last_line}\n{said}")
            client = Client(self.url, timeout=5)
            try:
                health = client.health()
            except BenchError as error:
                last = str(error)
            else:
                last = json.dumps(health)
                if health.get("status") == "healthy" and health.get("model_loaded"):
                    for name, value in expected.items():
                        if value is not None and value != "auto" and health.get(name) != value:
                            raise BenchError(f"the server runs with {name}={health.get(name)!r}, not {value!r}")
                    return
                if health.get("engine_error"):
                    raise BenchError(f"the engine does not start: {health['engine_error']}")
            finally:
                client.close()
            time.sleep(0.2)
        raise BenchError(f"not ready after {self._start_timeout:.0f} s; /health: {last[:300]}\n{self.tail()}")

    def stop(self) -> None:
        """End it in order, or by force if it takes longer than a minute."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def tail(self, characters: int = 1500) -> str:
        """The end of what it printed."""
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace").strip()[-characters:]


def free_port() -> int:
    """A port of this host that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
