"""Runs the passes in Ray actors, on one machine or many.

Plain actors are used instead of Ray Data's actor pool, which leaves actors idle or passes uncommitted, and has no
source that can be fed while it runs (benchmarks/compare_ray_data.py, docs/offline.md). The driver makes the same
windows as a local job, and commits the passes that come back to the same parts and manifest.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from ...config import RerankerSettings
from ...errors import EngineError, InvalidInputError, MissingDependencyError, RankerError
from ...pip_command import pip_install
from ..scoring import EngineFactory, ScoredPass, Scorer
from ..windows import Window
from .base import WINDOWS_AHEAD, Runner, Todo, prefetch

#: A window with which this many workers have died ends the job.
DEATHS_OF_A_WINDOW = 3


@dataclass
class _Stream:
    """A window that an actor scores.

    Attributes:
        worker: position of the actor in the pool.
        actor: the actor that had this position when it got the window.
        window: the window.
        done: numbers of its passes that were done before or have arrived since.
    """

    worker: int
    actor: Any
    window: Window
    done: set[int] = field(default_factory=set)


class RayRunner(Runner):
    """A pool of actors with one engine each, on a GPU or an equal share of the CPUs. Actors that die are replaced.

    Args:
        workers: number of actors; None for one on each GPU of the cluster, or one if it has none.
        address: address of a running cluster; "auto"; or None for the cluster of RAY_ADDRESS, or a new local one.

    Raises:
        MissingDependencyError: ray is not installed.
        InvalidInputError: the cluster has fewer GPUs or CPUs than workers.
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
            # Any, because ray's types are incomplete, and ray may be missing where types are checked.
            ray: Any = import_module("ray")
        except ImportError as error:
            raise MissingDependencyError(f"--runner ray needs: {pip_install('ray')}") from error
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
        share = {"num_gpus": 1, "num_cpus": 0} if on_gpus else {"num_cpus": cpus // count}
        if on_gpus:
            settings = replace(settings, device="cuda")
        # One thread for each window, and one that answers `facts`.
        self._actor_class = ray.remote(**share, max_concurrency=WINDOWS_AHEAD + 1)(EngineActor)
        self._arguments = (settings, factory, include_text, None if on_gpus else cpus // count)
        self._actors = [self._actor_class.remote(*self._arguments) for _ in range(count)]
        try:
            self._facts = self._get([each.facts.remote() for each in self._actors])
        except BaseException:
            self.close()
            raise

    def facts(self) -> dict[str, str]:
        """Facts about the first engine; the others have the same settings."""
        return dict(self._facts[0])

    def devices(self) -> str:
        """The number of actors and their kind of device."""
        return f"{len(self._actors)} Ray actors on {self._facts[0]['device']}"

    def run(self, todo: Todo) -> Generator[ScoredPass]:
        """Yield passes as actors finish them. If an actor dies, its window's missing passes go to another actor."""
        self._again: deque[tuple[Window, Collection[int]]] = deque()
        self._deaths: Counter[int] = Counter()
        pending: dict[Any, _Stream] = {}
        load = [0] * len(self._actors)
        with closing(prefetch(todo, 1)) as ahead:
            while self._feed(ahead, pending, load):
                (ready,), _ = self._ray.wait(list(pending), num_returns=1)
                stream = pending[ready]
                reference = next(ready, None)
                if reference is None:  # the window is finished
                    load[pending.pop(ready).worker] -= 1
                    continue
                try:
                    scored = self._get(reference)
                except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError) as error:
                    load[pending.pop(ready).worker] -= 1
                    self._bury(stream, error)
                else:
                    stream.done.add(scored.number)
                    yield scored

    def _feed(self, ahead: Todo, pending: dict[Any, _Stream], load: list[int]) -> bool:
        """Give windows to the actors that have too few; False if all work is done."""
        while min(load) < WINDOWS_AHEAD:
            item = self._again.popleft() if self._again else next(ahead, None)
            if item is None:
                break
            worker = load.index(min(load))
            stream = _Stream(worker, self._actors[worker], item[0], set(item[1]))
            # The generator stops while a pass has not been taken, so that a kill of the driver loses few passes.
            method = stream.actor.score.options(num_returns="streaming", _generator_backpressure_num_objects=1)
            pending[method.remote(stream.window, frozenset(stream.done))] = stream
            load[worker] += 1
        return bool(pending)

    def _bury(self, stream: _Stream, error: Exception) -> None:
        """Replace an actor that died, and queue its window before all new ones."""
        self._deaths[stream.window.number] += 1
        if self._deaths[stream.window.number] == DEATHS_OF_A_WINDOW:
            first, last = stream.window.pairs[0].line, stream.window.pairs[-1].line
            raise EngineError(
                f"{DEATHS_OF_A_WINDOW} Ray workers died while they scored lines {first} to {last}: {error}; run the "
                "same command again to continue"
            ) from error
        self._again.append((stream.window, stream.done))
        if self._actors[stream.worker] is stream.actor:  # not replaced yet because of its other window
            self._actors[stream.worker] = self._actor_class.remote(*self._arguments)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RankerError):
                raise error.cause from error
            raise EngineError(f"a Ray worker failed: {error}") from error

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        for actor in getattr(self, "_actors", []):
            self._ray.kill(actor)
        if self._started_here:
            self._ray.shutdown()


class EngineActor:
    """A scorer in a Ray actor. It has two windows at a time: one is encoded while the other is scored.

    Args:
        threads: number of torch's threads; None leaves it unchanged.
    """

    def __init__(
        self, settings: RerankerSettings, factory: EngineFactory, include_text: bool, threads: int | None
    ) -> None:
        self._scorer = Scorer(settings, factory, include_text=include_text)
        if threads is not None and (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS only if the environment does not
        self._encoding = threading.Lock()

    def facts(self) -> dict[str, str]:
        """See `Scorer.facts`."""
        return self._scorer.facts()

    def score(self, window: Window, done: frozenset[int]) -> Iterator[ScoredPass]:
        """Yield the passes of a window that are not done, each as soon as it is scored."""
        with self._encoding:
            passes = self._scorer.plan(window)
        for planned in passes:
            if planned.number not in done:
                yield self._scorer.score(planned)
