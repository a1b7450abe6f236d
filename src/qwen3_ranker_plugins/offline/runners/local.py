"""Runs the passes in this process."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from ...config import RerankerSettings
from ..scoring import EngineFactory, ScoredPass, Scorer, score_windows
from .base import PASSES_AHEAD, Runner, Todo, prefetch


class LocalRunner(Runner):
    """One engine in this process; a thread reads and encodes ahead of it."""

    def __init__(self, settings: RerankerSettings, factory: EngineFactory, *, include_text: bool) -> None:
        self._scorer = Scorer(settings, factory, include_text=include_text)

    def facts(self) -> dict[str, str]:
        """Facts about the engine."""
        return self._scorer.facts()

    def devices(self) -> str:
        """The device of the engine."""
        return self._scorer.device()

    def run(self, todo: Todo) -> Generator[ScoredPass]:
        """Run the passes in the order of the input; each begins after the previous one is committed."""
        with closing(prefetch(score_windows(self._scorer, todo), PASSES_AHEAD)) as passes:
            for score in passes:
                yield score()

    def close(self) -> None:
        """Free the model."""
        self._scorer.close()
