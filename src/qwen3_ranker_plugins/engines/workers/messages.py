"""What a process and its workers send each other, whatever engine they run: pickled, over one pipe.

The worker gets a message that says what to load and answers `ModelLoaded` or `WorkerFailed`. From then on it answers
each call, in the order of the calls, and sends a `Heartbeat` every second. None asks it to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SECONDS_BETWEEN_HEARTBEATS = 1.0


@dataclass(frozen=True)
class ModelLoaded:
    """The model is loaded, and has scored a document.

    Attributes:
        facts: what the engine says about itself.
    """

    facts: Any


@dataclass(frozen=True)
class Heartbeat:
    """The worker is alive.

    Attributes:
        steps: number of steps, such as forward passes, that it has finished since it started.
    """

    steps: int


@dataclass(frozen=True)
class WorkerFailed:
    """The worker cannot continue and ends.

    Attributes:
        message: the exception with its class, one line for it and one for each of its causes.
    """

    message: str
