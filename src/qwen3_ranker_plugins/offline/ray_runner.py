"""Engines in Ray actors, on one machine or many.

Plain actors rather than `ray.data.map_batches`: the blocks of Ray Data depend on the cluster, and with them which
documents share a pass and so the last bits of their margins. Here the driver cuts the same windows as a local job,
and commits what comes back to the same parts and manifest.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from typing import Any

from ..config import RerankerSettings
from ..errors import EngineError, InvalidInputError, MissingDependencyError, RankerError
from .runners import WINDOWS_AHEAD, Runner, Todo, prefetch
from .scoring import EngineFactory, ScoredPass, Scorer
from .windows import Window


class RayRunner(Runner):
    """A pool of actors with an engine each: a GPU, or an equal share of the CPUs.

    Args:
        workers: how many; None for one on each GPU of the cluster, or one if it has none.
        address: of a running cluster, "auto", or None to join the one of RAY_ADDRESS or start one here.

    Raises:
        MissingDependencyError: ray is not installed.
        InvalidInputError: the cluster has not got that many GPUs or CPUs.
    """

    def __init__(
        self,
        settings: RerankerSettings,
        factory: EngineFactory,
        workers: int | None,
        address: str | None,
        *,
        include_text: bool,
    ) -> None:
        try:
            # As Any: its types are incomplete, and it need not be installed where this is checked.
            ray: Any = import_module("ray")
        except ImportError as error:
            raise MissingDependencyError('--runner ray needs: pip install "qwen3-ranker-plugins[ray]"') from error
        self._ray = ray
        self._started_here = not ray.is_initialized()
        if self._started_here:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="warning")
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        on_gpus = gpus > 0 and not settings.device.startswith("cpu")
        count = (gpus if on_gpus else 1) if workers is None else workers
        if count > (gpus if on_gpus else cpus):
            self.close()
            have = f"{gpus} GPUs" if on_gpus else f"{cpus} CPUs"
            raise InvalidInputError("workers", count, f"the Ray cluster has {have}; ask for fewer")
        # Ray gives OpenMP as many threads as an actor has CPUs.
        share = {"num_gpus": 1, "num_cpus": 0} if on_gpus else {"num_cpus": cpus // count}
        if on_gpus:
            settings = replace(settings, device="cuda")
        actor = ray.remote(**share, max_concurrency=WINDOWS_AHEAD + 1)(EngineActor)
        self._actors = [actor.remote(settings, factory, include_text) for _ in range(count)]
        try:
            self._facts = self._get([each.facts.remote() for each in self._actors])
        except BaseException:
            self.close()
            raise

    def facts(self) -> dict[str, str]:
        """Of the first; the others have the same settings."""
        return dict(self._facts[0])

    def run(self, todo: Todo) -> Generator[ScoredPass]:
        """As actors finish them."""
        pending: dict[Any, int] = {}  # stream of passes -> actor
        load = [0] * len(self._actors)
        with closing(prefetch(todo, 1)) as ahead:
            while self._feed(ahead, pending, load):
                ready, _ = self._ray.wait(list(pending), num_returns=1)
                for stream in ready:
                    scored = next(stream, None)
                    if scored is None:  # the window is finished
                        load[pending.pop(stream)] -= 1
                    else:
                        yield self._get(scored)

    def _feed(self, ahead: Todo, pending: dict[Any, int], load: list[int]) -> bool:
        """Give windows to whoever has too few; False if all work is done."""
        while min(load) < WINDOWS_AHEAD and (item := next(ahead, None)) is not None:
            actor = load.index(min(load))
            window, done = item
            method = self._actors[actor].score.options(num_returns="streaming")
            pending[method.remote(window, frozenset(done))] = actor
            load[actor] += 1
        return bool(pending)

    def _get(self, reference: Any) -> Any:
        raised = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except raised.RayTaskError as error:
            if isinstance(error.cause, RankerError):
                raise error.cause from error
            raise EngineError(f"a Ray worker failed: {error}") from error
        except raised.RayActorError as error:
            raise EngineError(f"a Ray worker ended: {error}; run the same command again to go on") from error

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        for actor in getattr(self, "_actors", []):
            self._ray.kill(actor)
        if self._started_here:
            self._ray.shutdown()


class EngineActor:
    """A scorer in a Ray actor. Two windows at a time: one is encoded while the other is scored."""

    def __init__(self, settings: RerankerSettings, factory: EngineFactory, include_text: bool) -> None:
        self._scorer = Scorer(settings, factory, include_text=include_text)
        self._encoding = threading.Lock()

    def facts(self) -> dict[str, str]:
        """See `Scorer.facts`."""
        return self._scorer.facts()

    def score(self, window: Window, done: frozenset[int]) -> Iterator[ScoredPass]:
        """The passes of a window that are not done, each as soon as it is scored."""
        with self._encoding:
            passes = self._scorer.plan(window)
        for planned in passes:
            if planned.number not in done:
                yield self._scorer.score(planned)
