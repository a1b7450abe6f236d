"""A Python that has imported vLLM, and runs commands of tests in processes that it forks.

Importing vLLM takes most of the time in which an engine on it starts. A warm Python imports it once. Its `popen` takes
the command and the arguments of `subprocess.Popen`, and what it returns is a process of its own as well: with its own
arguments, variables, files and session, that can be stopped and killed, and that runs the same code.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Self
from unittest import mock

_MESSAGE_BYTES = 1 << 17
_SECONDS_BETWEEN_LOOKS = 0.02


class WarmPython:
    """The process that has imported vLLM, as those see it that know the address of its socket."""

    def __init__(self, address: str) -> None:
        self.address = address

    def popen(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any],
        stderr: int | IO[Any],
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
    ) -> ForkedProcess:
        """Run `python [-P] -c TEXT`, `python -m MODULE ...` or `python SCRIPT ...`, as `subprocess.Popen` would."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.address)
        with Path(os.devnull).open("r+b") as nothing:
            numbers: list[int] = []
            for file in (stdin, stdout, stderr):
                number = file if isinstance(file, int) else file.fileno()
                numbers.append(nothing.fileno() if number == subprocess.DEVNULL else number)
            what = {
                "arguments": [os.fspath(each) for each in command[1:]],
                "environment": dict(env),
                "folder": str(Path.cwd()),
                "descriptors": [0, 1, 2, *pass_fds],
                "new_session": start_new_session,
            }
            socket.send_fds(connection, [json.dumps(what).encode()], [*numbers, *pass_fds])
        return ForkedProcess(connection)

    def run(self, command: Sequence[str | os.PathLike[str]], text: str = "") -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` with `input`, `capture_output` and `text`."""
        with (
            tempfile.TemporaryFile("w+") as given,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as errors,
        ):
            given.write(text)
            given.seek(0)
            process = self.popen(command, stdin=given, stdout=out, stderr=errors, env=os.environ)
            code = process.wait()
            out.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(command, code, out.read(), errors.read())

    @contextlib.contextmanager
    def workers(self) -> Iterator[None]:
        """Meanwhile, worker processes of engines on vLLM are started by it."""
        from qwen3_ranker_plugins.engines.workers import process

        def popen(command: list[str], **how: Any) -> subprocess.Popen[bytes] | ForkedProcess:
            return (self.popen if "engines.vllm" in command[-1] else subprocess.Popen)(command, **how)

        names = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
        with mock.patch.object(process, "subprocess", names):
            yield


@contextlib.contextmanager
def warm_python(folder: Path) -> Iterator[WarmPython]:
    """Start one, with its socket in the folder, and end it. Processes that it has forked are their owners' to end."""
    address = str(folder / "warm")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
                "OMP_WAIT_POLICY": "passive",
                # read while vLLM is imported
                "VLLM_LOGGING_LEVEL": "WARNING",
                "VLLM_NO_USAGE_STATS": "1",
            },
        )
    with process:  # closes its standard input, which ends it, and waits
        yield WarmPython(address)


class ForkedProcess:
    """What `subprocess.Popen` offers to those that use this."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._receiving = threading.Lock()
        self.pid = int(connection.recv(100))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, or -N after signal N.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._receiving:
                if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
                    self.returncode = int(self._connection.recv(100))
                    self._connection.close()
                if self.returncode is not None:
                    return self.returncode
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


def _serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for each connection. Returns in each child, with what the child has to run."""
    children: dict[int, socket.socket] = {}
    while True:
        ready = select.select([listener, 0], [], [], _SECONDS_BETWEEN_LOOKS if children else None)[0]
        if 0 in ready:  # whoever started this process has closed it, or has ended
            os._exit(0)
        if ready:
            connection, _ = listener.accept()
            message, descriptors, *_ = socket.recv_fds(connection, _MESSAGE_BYTES, 16)
            what: dict[str, Any] = json.loads(message)
            if (pid := os.fork()) == 0:
                for each in (listener, connection, *children.values()):
                    each.close()
                _take(descriptors, what["descriptors"])
                return what
            for descriptor in descriptors:
                os.close(descriptor)
            children[pid] = connection
            connection.send(str(pid).encode())
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                with contextlib.closing(children.pop(pid)) as connection, contextlib.suppress(OSError):
                    connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _take(descriptors: list[int], numbers: list[int]) -> None:
    """Give the descriptors the numbers that they have in the process that sent them."""
    import fcntl  # which Windows lacks: there, conftest.py imports this file, and no test uses it

    above = max([*numbers, *descriptors]) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)


def _become(what: dict[str, Any]) -> None:
    """Run the command in this process, which was forked for it."""
    if what["new_session"]:
        os.setsid()
    os.chdir(what["folder"])
    os.environ.clear()
    os.environ.update(what["environment"])
    arguments = [each for each in what["arguments"] if each != "-P"]
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _fork_instead_of_spawning() -> None:
    """vLLM asks for processes that are spawned on a CPU; one that is forked need not import vLLM."""
    context_of = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: context_of("fork" if method == "spawn" else method)  # type: ignore[assignment]


def _import_vllm() -> None:
    import vllm.entrypoints.openai.api_server
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401

    import qwen3_ranker_plugins.engines.vllm.runner  # noqa: F401

    gc.collect()
    gc.freeze()  # so that a collection in a child does not copy the memory that it shares


if __name__ == "__main__":
    asked = socket.socket(fileno=int(sys.argv[1]))
    _import_vllm()
    _fork_instead_of_spawning()
    _become(_serve(asked))
