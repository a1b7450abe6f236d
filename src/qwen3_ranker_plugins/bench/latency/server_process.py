"""Starts, awaits and stops a `qwen3-ranker serve` in its own process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ...config import ENGINE_ALIASES
from ..errors import BenchError
from .client import Client

#: Seconds that a server may take to end after SIGTERM.
_PATIENCE = 60


class RunningServer:
    """A `qwen3-ranker serve` that is started here, from its start to its end; usable as a context manager.

    Args:
        settings: name -> value of the flags of `serve`; None leaves a flag out.
        start_timeout: seconds until the engine has to be ready.
        log: file for the server's output; None for a temporary file.

    Raises:
        BenchError: the server ends, or is not ready in time; the message ends with its last output.
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

    @property
    def process(self) -> int:
        """Number of the process; 0 unless it was started and not stopped."""
        return 0 if self._process is None else self._process.pid

    def _wait(self) -> None:
        """Wait until /health reports a working engine, and check its settings, so that no other server is measured."""
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
                last_line = said.rpartition("\n")[2][:300]  # in which the command says what is wrong
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
        """End the server in order, or by force if it takes too long."""
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
        """The end of the server's output."""
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace").strip()[-characters:]


def free_port() -> int:
    """A port of this host that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
