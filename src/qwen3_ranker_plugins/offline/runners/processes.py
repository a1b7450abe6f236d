"""Runs the passes in one process per device."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Collection, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from queue import Queue
from typing import Any

from ...config import RerankerSettings
from ...engines.replica.engine import HEARTBEAT_TIMEOUT
from ...engines.workers.messages import SECONDS_BETWEEN_HEARTBEATS
from ...errors import EngineError, InvalidInputError
from ..scoring import EngineFactory, ScoredPass, Scorer, score_windows
from ..windows import Window
from .base import PASSES_AHEAD, WINDOWS_AHEAD, Runner, Todo, prefetch

_COMMITTED = "committed"
_ALIVE = "alive"
_SECONDS_BETWEEN_LOOKS = 0.5
_NAME = "qwen3-ranker-"

logger = logging.getLogger("qwen3_ranker_plugins.offline")


class ProcessRunner(Runner):
    """One worker process with an engine for each device, started with "spawn". This process collects the passes.

    A worker that ends, or that sends no heartbeat for HEARTBEAT_TIMEOUT seconds, is replaced, and the passes that it
    had not sent are run again. If a worker ends before it has scored a pass, the job ends.

    Args:
        devices: the devices, such as ["cuda:0", "cuda:1"].

    Raises:
        InvalidInputError: the engines differ.
        EngineError: a worker ended while it loaded its engine.
    """

    def __init__(
        self, settings: RerankerSettings, factory: EngineFactory, devices: list[str], *, include_text: bool
    ) -> None:
        self._workers: list[_Worker] = []
        try:
            for device in devices:
                self._workers.append(_Worker(device, (replace(settings, device=device), factory, include_text)))
            self._facts = [worker.load() for worker in self._workers]
        except BaseException:
            self.close()
            raise
        if any(facts != self._facts[0] for facts in self._facts):
            self.close()
            raise InvalidInputError(
                "devices", devices, f"their engines differ ({self._facts}): use devices of one kind"
            )

    def facts(self) -> dict[str, str]:
        """Facts about the engines, which are all alike."""
        return dict(self._facts[0])

    def devices(self) -> str:
        """The devices of all workers."""
        return ", ".join(worker.device for worker in self._workers)

    def run(self, todo: Todo) -> Generator[ScoredPass]:
        """Yield passes as workers finish them. A worker is at most one pass ahead of the last one committed."""
        with closing(prefetch(todo, 1)) as ahead:
            while self._feed(ahead):
                for worker in self._ready():
                    try:
                        answer = worker.receive()
                    except EOFError:
                        worker.replace(self._facts[0])
                        continue
                    if isinstance(answer, ScoredPass):
                        worker.unfinished[answer.window].done.add(answer.number)
                        worker.has_scored = True
                        yield answer
                        worker.tell(_COMMITTED)
                    elif answer != _ALIVE:  # the number of a window that is finished
                        del worker.unfinished[answer]

    def _feed(self, ahead: Todo) -> bool:
        """Give windows to the workers that have too few; False if all work is done."""
        while True:
            idle = min(self._workers, key=lambda worker: len(worker.unfinished))
            if len(idle.unfinished) == WINDOWS_AHEAD or (item := next(ahead, None)) is None:
                return any(worker.unfinished for worker in self._workers)
            window, done = item
            idle.unfinished[window.number] = _Unfinished(window, set(done))
            idle.tell(item)

    def _ready(self) -> list[_Worker]:
        """The workers that have sent something or have ended; workers that hang are killed."""
        started = time.monotonic()
        ready = wait([worker.connection for worker in self._workers], timeout=_SECONDS_BETWEEN_LOOKS)
        # If this process was suspended, the workers may have been suspended, too.
        passed = min(time.monotonic() - started, 2 * _SECONDS_BETWEEN_LOOKS)
        for worker in self._workers:
            worker.silent_seconds = 0.0 if worker.connection in ready else worker.silent_seconds + passed
            if worker.silent_seconds > HEARTBEAT_TIMEOUT:
                worker.process.kill()  # this closes its pipe, which the next call sees
        return [worker for worker in self._workers if worker.connection in ready]

    def close(self) -> None:
        """End the processes by closing their pipes."""
        for worker in self._workers:
            worker.close()


@dataclass
class _Unfinished:
    """A window that a worker has, with the numbers of its passes that are done."""

    window: Window
    done: set[int]


class _Worker:
    """The main process's view of a worker process."""

    def __init__(self, device: str, arguments: tuple[RerankerSettings, EngineFactory, bool]) -> None:
        self.device = device
        self.unfinished: dict[int, _Unfinished] = {}
        self._arguments = arguments
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: Any = context.Process(
            target=_serve, args=(theirs, *self._arguments), name=f"{_NAME}{self.device}", daemon=True
        )
        self.process.start()
        theirs.close()  # so that the pipe is closed when the worker ends
        self.has_scored = False
        self.silent_seconds = 0.0

    def tell(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the worker has ended; reading from the pipe tells how
            self.connection.send(message)

    def load(self) -> dict[str, str]:
        """Wait until the engine has loaded; returns the facts about it.

        Raises:
            EngineError: the worker has ended.
            Exception: the error with which the engine failed to start.
        """
        try:
            facts: dict[str, str] = self.receive()
        except EOFError as error:
            raise EngineError(f"{self._how_it_ended()} while it loaded: see its output above") from error
        return facts

    def receive(self) -> Any:
        """The next message.

        Raises:
            EOFError: the process has ended.
            Exception: the error that ended the worker, if the worker could send it.
        """
        try:
            answer = self.connection.recv()
        except ConnectionResetError as error:
            raise EOFError from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def replace(self, facts: dict[str, str]) -> None:
        """Start a new process for the windows that this one has not finished.

        Raises:
            EngineError: this process has scored nothing since it was started, or the new one cannot start.
        """
        how = self._how_it_ended()
        if not self.has_scored:
            raise EngineError(
                f"{how} before it had scored a pass: see its output above, then run the same command again to continue"
            )
        logger.warning("%s: starting a new one in its place", how)
        self.connection.close()
        self._start()
        if (found := self.load()) != facts:
            raise EngineError(f"the engine of {self.process.name} has changed: {found} instead of {facts}")
        for each in self.unfinished.values():
            self.tell((each.window, frozenset(each.done)))

    def _how_it_ended(self) -> str:
        self.process.join(10)
        code = self.process.exitcode
        hung = (
            f" (it had sent no heartbeat for {HEARTBEAT_TIMEOUT:g} s)"
            if self.silent_seconds > HEARTBEAT_TIMEOUT
            else ""
        )
        return f"worker {self.process.name} ended with exit code {code}{hung}"

    def close(self) -> None:
        """Close the pipe, which ends the process; kill it if it does not end within ten seconds."""
        self.connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _WorkerLoop:
    """The work of a worker process: it sends facts first, then the passes of each window, followed by its number."""

    def __init__(self, connection: Connection, scorer: Scorer) -> None:
        self._connection = connection
        self._scorer = scorer
        self._arrived: Queue[tuple[Window, Collection[int]] | None] = Queue()
        self._may_send = threading.Semaphore()
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Work until the pipe is closed or the engine has ended."""
        self._send(self._scorer.facts())
        threading.Thread(target=self._receive, name="qwen3-ranker-receive", daemon=True).start()
        threading.Thread(target=self._send_heartbeats, name="qwen3-ranker-heartbeat", daemon=True).start()
        for step in prefetch(self._steps(), PASSES_AHEAD):
            if isinstance(step, int):
                self._send(step)
            else:
                scored = step()
                self._may_send.acquire()
                self._send(scored)

    def _send(self, message: Any) -> None:
        with self._sending:
            self._connection.send(message)

    def _send_heartbeats(self) -> None:
        with suppress(OSError):  # the parent has ended, which `_receive` sees
            while True:
                time.sleep(SECONDS_BETWEEN_HEARTBEATS)
                self._send(_ALIVE)

    def _receive(self) -> None:
        with suppress(EOFError, ConnectionResetError, OSError):
            while True:
                if (message := self._connection.recv()) == _COMMITTED:
                    self._may_send.release()
                else:
                    self._arrived.put(message)
        self._arrived.put(None)
        self._may_send.release()

    def _steps(self) -> Iterator[Any]:
        for item in iter(self._arrived.get, None):
            yield from score_windows(self._scorer, iter([item]))
            yield item[0].number


def _serve(connection: Connection, settings: RerankerSettings, factory: EngineFactory, include_text: bool) -> None:
    scorer: Scorer | None = None
    # If the parent is killed, the pipe is closed, and this process ends.
    with suppress(BrokenPipeError, ConnectionResetError):
        try:
            scorer = Scorer(settings, factory, include_text=include_text)
            _WorkerLoop(connection, scorer).serve()
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001 - any error is sent to the main process
            connection.send(_portable(error))
    if scorer is not None:
        scorer.close()


def _portable(error: Exception) -> Exception:
    """The error itself if it can be pickled, else an `EngineError` with its text."""
    from pickle import PicklingError, dumps, loads

    try:
        loads(dumps(error))  # noqa: S301 - our own bytes
    except (PicklingError, TypeError, AttributeError):
        return EngineError(f"{type(error).__name__}: {error}")
    return error


def cuda_devices(gpus: str) -> list[str]:
    """The devices that `--gpus` names: "all", or numbers such as "0,2".

    Raises:
        InvalidInputError: this machine has no such GPU.
    """
    import torch

    present = torch.cuda.device_count()
    numbers = [each.strip() for each in gpus.split(",")] if gpus != "all" else [str(each) for each in range(present)]
    if not numbers or not all(each.isdecimal() and int(each) < present for each in numbers):
        raise InvalidInputError(
            "gpus", gpus, f"torch {torch.__version__} sees {present} CUDA devices; leave the option out to use a CPU"
        )
    return [f"cuda:{number}" for number in numbers]
