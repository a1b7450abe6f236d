"""The program of the worker process: it loads vLLM, answers messages, and ends with the process that started it."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from .messages import SECONDS_BETWEEN_HEARTBEATS, Heartbeat, LoadModel, ModelLoaded, WorkerFailed
from .runner import Runner

_SECONDS_BETWEEN_LOOKS_AT_THE_PARENT = 1.0


def main(descriptor: int) -> None:
    """Serve one connection, see `messages`.

    Args:
        descriptor: file descriptor of the connection.
    """
    os.set_inheritable(descriptor, False)
    connection: Any = Connection(descriptor)
    sending = threading.Lock()

    def send(message: object) -> None:
        with sending:
            connection.send(message)

    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages), daemon=True).start()
    load: LoadModel = messages.get()
    try:
        runner = Runner(load)
        send(ModelLoaded(runner.facts()))
        threading.Thread(target=_send_heartbeats, args=(runner, send), daemon=True).start()
        while (prompts := messages.get()) is not None:
            send(runner.score(prompts))
        runner.close()
    except BaseException as error:  # the parent has to be told, whatever it is
        send(WorkerFailed(_with_causes(error)))
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # torch and vLLM take seconds to clean up what ends with the process anyway


def _receive(connection: Connection, messages: queue.SimpleQueue[Any]) -> None:
    """Pass messages on; once the parent has ended, kill this process and all processes that vLLM has started."""
    parent = os.getppid()
    while True:
        try:
            if connection.poll(_SECONDS_BETWEEN_LOOKS_AT_THE_PARENT):
                messages.put(connection.recv())
            elif os.getppid() != parent:  # a child that the parent forked may keep the connection open
                break
        except (EOFError, OSError):
            break
    time.sleep(0.1)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


def _send_heartbeats(runner: Runner, send: Callable[[object], None]) -> None:
    """A process that is stopped, or whose interpreter is stuck, sends none."""
    while True:
        time.sleep(SECONDS_BETWEEN_HEARTBEATS)
        try:
            send(Heartbeat(runner.steps))
        except OSError:  # the parent is gone, and `_receive` ends this process
            return


def _with_causes(error: BaseException) -> str:
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    return "\n".join(lines)
