"""The worker process seen from here: start it, ask it, notice that it has died, leave nothing behind.

vLLM lives in a process of its own, so that nothing of it gets into the user's (CUDA context, signal handlers,
environment variables, threads), a script needs no `if __name__ == "__main__"` guard, and closing frees everything:
the worker leads a process group of its own, to which all processes that vLLM starts belong, and the group is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from .worker import Batch, Failed, Ready, Scored, Start

_PROGRAM = "from qwen3_ranker_plugins.engines.vllm.worker import main; main({descriptor})"
_SECONDS_BETWEEN_LOOKS_AT_THE_WORKER = 0.5
_SECONDS_TO_END_BY_ITSELF = 15.0
_SECONDS_TO_BE_GONE = 10.0
_LOG_BYTES = 16384


class WorkerDiedError(Exception):
    """The worker process is gone, or has said that it cannot go on.

    Attributes:
        log: the end of vLLM's log.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class WorkerProcess:
    """A started worker.

    Args:
        start: what to load.
        environment: variables to set for it, besides those of this process.
        timeout: seconds that loading may take.
        show_log: send vLLM's log to standard error instead of keeping its end for error messages.

    Raises:
        WorkerDiedError: it could not be started; the message has vLLM's own words.
    """

    def __init__(self, start: Start, environment: Mapping[str, str], *, timeout: float, show_log: bool) -> None:
        self._log = None if show_log else tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._connection, theirs = Pipe()
        try:
            # -P: a file in the working directory must not stand in for a module of the same name.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", _PROGRAM.format(descriptor=theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2 if self._log is None else self._log,
                stderr=2 if self._log is None else self._log,
                env={**os.environ, **environment, "PYTHONPATH": _module_path()},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        finally:
            theirs.close()
        try:
            reply = self._ask(start, timeout)
        except BaseException:  # also an interrupt while it loads
            self.kill()
            raise
        if not isinstance(reply, Ready):
            self.kill()
            raise WorkerDiedError(f"it sent {type(reply).__name__}")
        self.facts = reply.facts

    @property
    def pid(self) -> int:
        """Of the process, which is also the number of its group."""
        return self._process.pid

    def score(self, batch: Batch) -> Scored:
        """The answer to a batch.

        Raises:
            WorkerDiedError: the process died, or its engine did.
        """
        reply = self._ask(batch, timeout=None)
        if not isinstance(reply, Scored):
            raise WorkerDiedError(f"it sent {type(reply).__name__}")
        return reply

    def close(self) -> None:
        """End the process and everything it has started; returns when nothing of it is left."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_END_BY_ITSELF)
        self.kill()

    def kill(self) -> None:
        """End the process group at once, and wait until it is gone."""
        deadline = time.monotonic() + _SECONDS_TO_BE_GONE
        # In a container whose first process reaps nothing, dead members stay in the group for ever.
        while time.monotonic() < deadline:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # the latter on macOS, for a group of zombies
                break
            self._process.poll()  # a zombie is still a member of its group
            time.sleep(0.01)
        self._process.wait()
        self._connection.close()
        if self._log is not None:
            self._log.close()

    def _ask(self, message: object, timeout: float | None) -> Any:
        until = None if timeout is None else time.monotonic() + timeout
        try:
            self._connection.send(message)
            while not self._connection.poll(_SECONDS_BETWEEN_LOOKS_AT_THE_WORKER):
                # A process that vLLM forked may hold the worker's end of the connection open, so look for oneself.
                if self._process.poll() is not None and not self._connection.poll(0):
                    raise WorkerDiedError(self._obituary(), self._log_tail())
                if until is not None and time.monotonic() > until:
                    raise WorkerDiedError(
                        f"it was not ready after {timeout:.0f} s: raise start_timeout", self._log_tail()
                    )
            reply = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDiedError(self._obituary(), self._log_tail()) from error
        if isinstance(reply, Failed):
            raise WorkerDiedError(reply.message, self._log_tail())
        return reply

    def _obituary(self) -> str:
        """How it ended."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"

    def _log_tail(self) -> str:
        """The end of vLLM's log, if it is kept."""
        if self._log is None or self._log.closed:
            return ""
        self._log.seek(max(0, os.fstat(self._log.fileno()).st_size - _LOG_BYTES))
        return self._log.read().decode("utf-8", errors="replace")


def _module_path() -> str:
    """This process's module search path, for a process that is started without it."""
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(dict.fromkeys([*(str(Path(entry)) for entry in sys.path if entry), package]))
