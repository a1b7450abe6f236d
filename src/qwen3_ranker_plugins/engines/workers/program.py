"""The main loop of a worker process: it loads, answers calls in their order, and ends with the process that started it.

It imports nothing heavy, so that a worker notices the end of its parent while it imports what it runs.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Protocol

from .messages import SECONDS_BETWEEN_HEARTBEATS, Heartbeat, ModelLoaded, WorkerFailed

_SECONDS_BETWEEN_LOOKS_AT_THE_PARENT = 1.0


class Loaded(Protocol):
    """What a worker runs.

    Attributes:
        steps: number of steps that it has finished.
        calls_at_once: number of calls of `score` that may overlap.
    """

    steps: int
    calls_at_once: int

    def facts(self) -> Any:
        """What the engine reports about itself."""

    def score(self, asked: Any) -> Any:
        """The answer to a call.

        Raises:
            Exception: the engine cannot be used any more.
        """

    def close(self) -> None:
        """End the engine."""


def serve(descriptor: int, load: Callable[[Any], Loaded]) -> None:
    """Serve one connection, see `messages`.

    Args:
        descriptor: file descriptor of the connection.
        load: turns the first message into what the worker runs.
    """
    os.set_inheritable(descriptor, False)
    connection: Any = Connection(descriptor)
    sending = threading.Lock()

    def send(message: object) -> None:
        with sending:
            connection.send(message)

    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, messages), daemon=True).start()
    try:
        loaded = load(messages.get())
        send(ModelLoaded(loaded.facts()))
        threading.Thread(target=_send_heartbeats, args=(loaded, send), daemon=True).start()
        if loaded.calls_at_once == 1:  # in the main thread, to which some libraries bind what they load
            while (asked := messages.get()) is not None:
                send(loaded.score(asked))
        else:
            _answer_in_order(loaded, messages, send)
        loaded.close()
    except BaseException as error:  # whatever it is, the parent must be told
        send(WorkerFailed(_with_causes(error)))
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # torch and vLLM take seconds to clean up what ends with the process anyway


def _answer_in_order(loaded: Loaded, messages: queue.SimpleQueue[Any], send: Callable[[object], None]) -> None:
    """Answer calls that overlap. A failure is raised here after the answers before it were sent."""
    answers: queue.SimpleQueue[Future[Any] | None] = queue.SimpleQueue()
    with ThreadPoolExecutor(loaded.calls_at_once, thread_name_prefix="qwen3-ranker-pass") as pool:

        def submit() -> None:
            while (asked := messages.get()) is not None:
                answers.put(pool.submit(loaded.score, asked))
            answers.put(None)

        threading.Thread(target=submit, name="qwen3-ranker-calls", daemon=True).start()
        while (answer := answers.get()) is not None:
            send(answer.result())


def _receive(connection: Connection, messages: queue.SimpleQueue[Any]) -> None:
    """Pass messages on; once the parent has ended, kill this process and all processes that it has started."""
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


def _send_heartbeats(loaded: Loaded, send: Callable[[object], None]) -> None:
    """Send heartbeats. A process that is stopped, or whose interpreter is stuck, sends none."""
    while True:
        time.sleep(SECONDS_BETWEEN_HEARTBEATS)
        try:
            send(Heartbeat(loaded.steps))
        except OSError:  # the parent is gone, and `_receive` ends this process
            return


def _with_causes(error: BaseException) -> str:
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    return "\n".join(lines)
