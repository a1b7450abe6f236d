"""What a replica's worker process runs."""

from __future__ import annotations

import threading

from ...errors import EngineError
from ..registry import create_engine
from ..workers.program import serve
from .messages import EngineFacts, LoadEngine, Scored, ScoreRequests


def main(descriptor: int) -> None:
    """Serve the connection with this file descriptor, see `messages`."""
    serve(descriptor, ServedEngine)


class ServedEngine:
    """The engine in the worker process; see `workers.program.Loaded`.

    Attributes:
        steps: passes that it has finished.
        calls_at_once: as the engine's capabilities allow.

    Raises:
        RankerError: the engine cannot be started, or gives no usable margin for the example.
    """

    def __init__(self, load: LoadEngine) -> None:
        self.steps = 0
        self._counting = threading.Lock()
        self._engine = create_engine(load.config)
        capabilities = self._engine.capabilities
        self.calls_at_once = capabilities.workers * capabilities.passes_in_flight
        [margins] = self._engine.score([load.example])
        if faults := margins.faults():
            raise EngineError(f"it is loaded, but does not score: {faults}")

    def facts(self) -> EngineFacts:
        """Its capabilities and its description."""
        return EngineFacts(self._engine.capabilities, self._engine.describe())

    def score(self, asked: ScoreRequests) -> Scored:
        """One pass. If it fails, the answer holds the error, and the engine stays usable.

        Raises:
            Exception: an error that leaves the process unable to use its GPU.
        """
        try:
            return Scored(self._engine.score(asked.requests))
        except Exception as error:
            if _breaks_the_process(error):
                raise
            # Not the exception itself: its class may not be picklable, or may be of a module that the parent lacks.
            return Scored([], EngineError(f"{type(error).__name__}: {error}"))
        finally:
            with self._counting:
                self.steps += 1

    def close(self) -> None:
        """End the engine."""
        self._engine.close()


def _breaks_the_process(error: BaseException | None) -> bool:
    """Whether every later pass would fail too: after an illegal access, CUDA refuses every call of the process."""
    while error is not None:
        if "CUDA error" in str(error) or "CUDA driver error" in str(error):
            return True
        error = error.__cause__
    return False
