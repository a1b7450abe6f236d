"""An engine whose model is in a worker process that can be started again."""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from typing import Any, TypeVar

from ...errors import EngineClosedError, EngineError
from ..base import Engine
from .process import WorkerEndedError, WorkerProcess

_Reply = TypeVar("_Reply")


class WorkerEngine(Engine):
    """Base of such engines: everything that does not depend on what the process runs.

    If the process ends or hangs, the calls that wait raise an EngineError, and `running` is False until `restart` has
    started another one.

    Attributes:
        facts: what the worker reported about itself after it had loaded.
        restarts: how often the process was restarted.
    """

    facts: Any

    def __init__(self) -> None:
        self.restarts = 0
        self._worker: WorkerProcess | None = None
        self._closed = False
        self._starting = threading.Lock()

    @abstractmethod
    def _launch(self) -> tuple[WorkerProcess, object]:
        """A worker that has not loaded anything, and the message that tells it what to load."""

    def _reason(self, error: WorkerEndedError) -> str:
        """Why the worker ended, and what to do about it."""
        return str(error)

    @property
    def worker_pid(self) -> int | None:
        """The worker process; None after it has ended, until another one is started."""
        worker = self._worker
        return None if worker is None else worker.pid

    @property
    def running(self) -> bool:
        """Whether the worker process runs, has loaded, and does not hang."""
        worker = self._worker
        return worker is not None and worker.running

    def start(self) -> None:
        """Start the worker and wait until it has loaded. `close`, in another thread, ends the wait.

        Raises:
            EngineError: it could not be started, with the reason.
        """
        worker, message = self._launch()
        self._worker = worker
        if self._closed:
            self._drop(worker)
            raise EngineClosedError(f"engine {self.name!r} was closed while it was started")
        try:
            self.facts = worker.load(message)
        except WorkerEndedError as error:
            self._worker = None
            raise EngineError(f"engine {self.name!r} could not be started: {self._reason(error)}") from error
        except BaseException:
            self._worker = None
            raise

    def restart(self) -> None:
        """Start another worker, unless one is running.

        Raises:
            EngineError: it could not be started, with the reason.
        """
        with self._starting:
            if self.running:
                return
            if (worker := self._worker) is not None:
                self._drop(worker)
            self.start()
            self.restarts += 1

    def close(self) -> None:
        """End the worker and every process that it has started; their memory is free afterwards."""
        self._closed = True
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if worker.running:
            worker.close()
        else:
            worker.kill()

    def _call(self, message: object, reply: type[_Reply]) -> _Reply:
        """The worker's answer.

        Raises:
            EngineError: there is no worker, or it ended or hung during this call.
        """
        worker = self._worker
        if worker is None:
            raise EngineError(f"engine {self.name!r}: its worker process has ended")
        try:
            return worker.call(message, reply)
        except WorkerEndedError as error:
            self._drop(worker)
            raise EngineError(f"engine {self.name!r}: its worker process ended: {self._reason(error)}") from error
        except BaseException:  # for example an interrupt: nobody will read the answer
            self._drop(worker)
            raise

    def _drop(self, worker: WorkerProcess) -> None:
        if self._worker is worker:
            self._worker = None
        worker.kill()


def visible_gpus(device: str, count: int = 1) -> dict[str, str]:
    """The environment variable that limits a worker to its GPUs, which are "cuda:0" and so on there; {} for a CPU.

    Args:
        device: "cpu" or "cuda:N", with the number that the GPU has in this process.
        count: number of GPUs: the device and those that follow it.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return {}
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    chosen = [visible[index] if visible else str(index) for index in range(int(number), int(number) + count)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}
