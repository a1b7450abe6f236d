"""What a process and a replica's worker send each other in addition to `workers.messages`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...config import EngineConfig
from ...errors import EngineError
from ...prompt import EncodedRequest
from ..base import EngineCapabilities, EngineDescription, Margins


@dataclass(frozen=True)
class LoadEngine:
    """Start the engine of this configuration, and score `example` with it."""

    config: EngineConfig
    example: EncodedRequest


@dataclass(frozen=True)
class EngineFacts:
    """The engine has started and has scored the example."""

    capabilities: EngineCapabilities
    description: EngineDescription


@dataclass(frozen=True)
class ScoreRequests:
    """One call of `Engine.score`. The ids of a request's documents are in one array, see `FlatSegments`."""

    requests: Sequence[EncodedRequest]


@dataclass(frozen=True)
class Scored:
    """What `Engine.score` returned or raised.

    Attributes:
        margins: one for each request; empty if it raised.
        error: of this pass; the engine can score others. None if it did not raise.
    """

    margins: Sequence[Margins]
    error: EngineError | None = None
