"""The worker process as its parent sees it: started, called, watched, and ended with all processes that it started.

The process is started with `subprocess` and not with `multiprocessing`, so that a script needs no
`if __name__ == "__main__"` guard. It leads a process group to which all processes that it starts belong; killing the
group ends them all.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, TypeVar

from .messages import Heartbeat, ModelLoaded, WorkerFailed

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_END_BY_ITSELF = 15.0
_SECONDS_TO_BE_GONE = 10.0
_LOG_BYTES = 16384

_Reply = TypeVar("_Reply")


class WorkerEndedError(Exception):
    """The worker process has ended, or cannot continue.

    Attributes:
        log: the end of what the process printed, if it is kept.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class WorkerProcess:
    """A worker process, which loads when it is told to.

    A thread watches it, whether or not a call waits: when the process ends, waiting calls fail at once; when it hangs,
    it is killed. It hangs if no heartbeat arrives for `heartbeat_timeout`, or if a call waits and the worker finishes
    no step for `step_timeout`. Time during which this process itself was suspended does not count.

    Args:
        program: Python source of what it runs, with `{descriptor}` in place of the file descriptor of its connection.
        environment: variables to set for it, in addition to those of this process.
        start_timeout, heartbeat_timeout, step_timeout: seconds.
        show_log: send what it prints to standard error instead of keeping the last part for error messages.
    """

    def __init__(
        self,
        program: str,
        environment: Mapping[str, str],
        *,
        start_timeout: float,
        heartbeat_timeout: float,
        step_timeout: float,
        show_log: bool,
    ) -> None:
        self._start_timeout = start_timeout
        self._heartbeat_timeout = heartbeat_timeout
        self._step_timeout = step_timeout
        self._log = None if show_log else tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        self._connection, theirs = Pipe()
        try:
            # -P: a file in the working directory must not replace a module of the same name.
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-c", program.format(descriptor=theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2 if self._log is None else self._log,
                stderr=2 if self._log is None else self._log,
                env={**os.environ, **environment, "PYTHONPATH": _module_path()},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        finally:
            theirs.close()
        self._loaded = False
        self._ended: WorkerEndedError | None = None
        # Each call that waits has a queue for its answer; the worker answers in the order of the calls.
        self._calls: deque[queue.SimpleQueue[object]] = deque()
        self._calling = threading.Lock()  # sends in the order of `_calls`
        self._answering = threading.Lock()  # guards `_calls` and `_ended`, and is never held for long
        self._killing = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name=f"qwen3-ranker-watch-{self.pid}", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        """Id of the process and of its process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process runs and has loaded; False as soon as it has ended or was found to hang."""
        return self._loaded and self._ended is None and self._process.poll() is None

    def load(self, message: object) -> Any:
        """Send the first message, and wait until the worker has loaded what it asks for; if it fails, kill the process.

        Returns:
            What the worker says about itself.

        Raises:
            WorkerEndedError: the worker could not load it; the message is the worker's.
        """
        try:
            facts = self.call(message, ModelLoaded).facts
        except BaseException:  # also an interrupt while it loads
            self.kill()
            raise
        self._loaded = True
        return facts

    def call(self, message: object, reply: type[_Reply]) -> _Reply:
        """The answer to a message. Thread-safe: calls may overlap.

        Raises:
            WorkerEndedError: the process has ended, was killed because it hung, or its engine failed.
        """
        answers: queue.SimpleQueue[object] = queue.SimpleQueue()
        with self._calling:
            with self._answering:
                if self._ended is not None:
                    raise self._ended
                self._calls.append(answers)
            with contextlib.suppress(OSError):  # the process has ended, and the watcher says how
                self._connection.send(message)
        answer = answers.get()
        if isinstance(answer, reply):
            return answer
        if isinstance(answer, WorkerEndedError):
            raise answer
        text = answer.message if isinstance(answer, WorkerFailed) else f"it sent {type(answer).__name__}"
        raise WorkerEndedError(text, self._log_tail())

    def close(self) -> None:
        """End the process and all processes that it has started; returns when they are gone."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_END_BY_ITSELF)
        self.kill()

    def kill(self) -> None:
        """Kill the process group, and wait until it is gone. Thread-safe; may be called more than once."""
        self._kill_group()
        self._process.wait()
        self._watcher.join()
        with self._killing:
            self._connection.close()
            if self._log is not None:
                self._log.close()

    def _watch(self) -> None:
        reason: str | None = None
        try:
            reason = self._pass_replies_on()
        except Exception as error:  # noqa: BLE001 - whatever it is, a call must not wait for a reply that nobody reads
            reason = f"its message could not be read: {type(error).__name__}: {error}"
            self._kill_group()
        ended = WorkerEndedError(reason or self._exit(), self._log_tail())
        with self._answering:
            self._ended = ended
            waiting = list(self._calls)
            self._calls.clear()
        for answers in waiting:
            answers.put(ended)

    def _answer(self, message: object) -> None:
        """Give an answer to the call that has waited longest; if the worker has failed, to all of them."""
        with self._answering:
            waiting = [
                self._calls.popleft() for _ in range(len(self._calls) if isinstance(message, WorkerFailed) else 1)
            ]
        for answers in waiting:
            answers.put(message)

    def _pass_replies_on(self) -> str | None:
        """Wait until the process has ended; return the reason if it was killed because it hung, else None."""
        silent = stalled = 0.0
        steps = 0
        hang: str | None = None
        while True:
            started = time.monotonic()
            try:
                arrived = self._connection.poll(_SECONDS_BETWEEN_LOOKS)
                # A process that the worker forked may keep the worker's end of the connection open.
                if not arrived and self._process.poll() is not None and not self._connection.poll(0):
                    return hang
                message = self._connection.recv() if arrived else None
            except (EOFError, OSError):
                return hang
            # If this process was suspended or starved, the worker may have been, too.
            passed = min(time.monotonic() - started, 2 * _SECONDS_BETWEEN_LOOKS)
            silent = 0.0 if arrived else silent + passed
            stalled = stalled + passed if self._calls else 0.0
            if isinstance(message, Heartbeat):
                stalled = stalled if message.steps == steps else 0.0
                steps = message.steps
            elif message is not None:
                stalled = 0.0  # otherwise the seconds of loading would count against the first call
                self._answer(message)
            if hang is None and (hang := self._hang(silent, stalled)) is not None:
                self._kill_group()

    def _hang(self, silent: float, stalled: float) -> str | None:
        """Why the worker counts as hanging; None if it does not.

        Args:
            silent: seconds without a message.
            stalled: seconds that a call has waited without a finished step.
        """
        if not self._loaded:
            if silent > self._start_timeout:
                return f"it was not ready after {self._start_timeout:g} s"
        elif silent > self._heartbeat_timeout:
            return f"it hung and was killed: it sent no heartbeat for {self._heartbeat_timeout:g} s"
        elif stalled > self._step_timeout:
            return f"it hung and was killed: it finished no step for {self._step_timeout:g} s"
        return None

    def _kill_group(self) -> None:
        deadline = time.monotonic() + _SECONDS_TO_BE_GONE
        # In a container whose first process does not reap orphans, dead members stay in the group.
        while time.monotonic() < deadline:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # the latter on macOS, for a group of zombies
                break
            self._process.poll()  # a zombie is still a member of its group
            time.sleep(0.01)

    def _exit(self) -> str:
        """How the process ended."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"

    def _log_tail(self) -> str:
        """The end of what the process printed, if it is kept."""
        if self._log is None or self._log.closed:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), _LOG_BYTES, max(0, size - _LOG_BYTES)).decode("utf-8", errors="replace")


def _module_path() -> str:
    """This process's module search path, which a new process does not inherit."""
    package = str(Path(__file__).parents[2])
    return os.pathsep.join(dict.fromkeys([*(str(Path(entry)) for entry in sys.path if entry), package]))
