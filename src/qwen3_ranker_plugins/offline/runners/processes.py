"""Passes run in a process for each device."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Collection, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from queue import Queue
from typing import Any, cast

from ...config import RerankerSettings
from ...errors import EngineError, InvalidInputError
from ..scoring import EngineFactory, ScoredPass, Scorer, score_windows
from ..windows import Window
from .base import PASSES_AHEAD, WINDOWS_AHEAD, Runner, Todo, prefetch

_COMMITTED = "committed"
_NAME = "qwen3-ranker-"


class ProcessRunner(Runner):
    """A process with an engine for each device, made with "spawn". One writer, this process, takes what they score.

    Args:
        devices: such as ["cuda:0", "cuda:1"].
    """

    def __init__(
        self, settings: RerankerSettings, factory: EngineFactory, devices: list[str], *, include_text: bool
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[Any, Connection]] = []
        try:
            for device in devices:
                ours, theirs = context.Pipe()
                arguments = (theirs, replace(settings, device=device), factory, include_text)
                process = context.Process(target=_serve, args=arguments, name=f"{_NAME}{device}", daemon=True)
                process.start()
                theirs.close()  # so that the pipe ends with the worker
                self._workers.append((process, ours))
            self._facts = [_receive(process, ours) for process, ours in self._workers]
        except BaseException:
            self.close()
            raise
        if any(facts != self._facts[0] for facts in self._facts):
            self.close()
            raise InvalidInputError("gpus", devices, f"their engines differ: {self._facts}")

    def facts(self) -> dict[str, str]:
        """Of any of them, since all are alike."""
        return dict(self._facts[0])

    def devices(self) -> str:
        """All of them."""
        return ", ".join(process.name.removeprefix(_NAME) for process, _ in self._workers)

    def run(self, todo: Todo) -> Generator[ScoredPass]:
        """As workers finish them. A worker begins a pass while the one before it is committed, and waits then."""
        workers = {connection: process for process, connection in self._workers}
        missing: dict[Connection, list[int]] = {connection: [] for connection in workers}
        with closing(prefetch(todo, 1)) as ahead:
            while self._feed(ahead, missing):
                for ready in wait([connection for connection in missing if missing[connection]]):
                    connection = cast("Connection", ready)  # wait() returns what it was given
                    answer = _receive(workers[connection], connection)
                    if isinstance(answer, ScoredPass):
                        yield answer
                        _tell(connection, _COMMITTED)
                    else:  # the number of a window that is finished
                        missing[connection].remove(answer)

    def _feed(self, ahead: Todo, missing: dict[Connection, list[int]]) -> bool:
        """Give windows to whoever has too few; False if all work is done."""
        while True:
            idle = min(missing, key=lambda connection: len(missing[connection]))
            if len(missing[idle]) == WINDOWS_AHEAD or (item := next(ahead, None)) is None:
                return any(missing.values())
            _tell(idle, item)
            missing[idle].append(item[0].number)

    def close(self) -> None:
        """End the processes; they notice that their pipe is closed."""
        for process, connection in self._workers:
            connection.close()
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


def _tell(connection: Connection, message: Any) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the worker has ended; reading from it says how
        connection.send(message)


def _receive(process: Any, connection: Connection) -> Any:
    try:
        answer = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        process.join(10)
        raise EngineError(
            f"worker {process.name} ended with exit code {process.exitcode}: see its output above, then run the same "
            "command again to go on"
        ) from error
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Worker:
    """The other side of a `ProcessRunner`: facts first, then the passes of each window and after them its number."""

    def __init__(self, connection: Connection, scorer: Scorer) -> None:
        self._connection = connection
        self._scorer = scorer
        self._arrived: Queue[tuple[Window, Collection[int]] | None] = Queue()
        self._may_send = threading.Semaphore()

    def serve(self) -> None:
        """Until the pipe ends, or an engine has."""
        self._connection.send(self._scorer.facts())
        threading.Thread(target=self._receive, name="qwen3-ranker-receive", daemon=True).start()
        for step in prefetch(self._steps(), PASSES_AHEAD):
            if isinstance(step, int):
                self._connection.send(step)
            else:
                scored = step()
                self._may_send.acquire()
                self._connection.send(scored)

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
    # The parent may be killed: then the pipe ends, and so does this process.
    with suppress(BrokenPipeError, ConnectionResetError):
        try:
            scorer = Scorer(settings, factory, include_text=include_text)
            _Worker(connection, scorer).serve()
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001 - it belongs to the process that asked
            connection.send(_portable(error))
    if scorer is not None:
        scorer.close()


def _portable(error: Exception) -> Exception:
    """The error itself if it survives pickling, else its text."""
    from pickle import PicklingError, dumps, loads

    try:
        loads(dumps(error))  # noqa: S301 - our own bytes
    except (PicklingError, TypeError, AttributeError):
        return EngineError(f"{type(error).__name__}: {error}")
    return error


def cuda_devices(gpus: str) -> list[str]:
    """The devices that `--gpus` names: "all", or numbers such as "0,2".

    Raises:
        InvalidInputError: there is no such GPU here.
    """
    import torch

    present = torch.cuda.device_count()
    numbers = [each.strip() for each in gpus.split(",")] if gpus != "all" else [str(each) for each in range(present)]
    if not numbers or not all(each.isdecimal() and int(each) < present for each in numbers):
        raise InvalidInputError(
            "gpus", gpus, f"torch {torch.__version__} sees {present} CUDA devices; leave the option out to use a CPU"
        )
    return [f"cuda:{number}" for number in numbers]
