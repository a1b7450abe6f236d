"""Compare Ray Data's actors with plain Ray actors as runners of an offline job -> docs/results/ray_data.json.

    python benchmarks/compare_ray_data.py

Both get the same windows from the driver and return every pass as soon as it is scored; a pass sleeps for 50 ms, so
that the cores do not matter. The script compares how long the two actors of each are idle between passes, and how many
passes are scored but have not reached the driver: a kill of the driver would lose these.
"""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ray: Any = import_module("ray")
ray_data: Any = import_module("ray.data")
pyarrow: Any = import_module("pyarrow")

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "ray_data.json"
WINDOWS, PASSES, SECONDS, ACTORS = 30, 10, 0.05, 2


def passes(window: int) -> Iterator[tuple[int, int, float]]:
    for number in range(PASSES):
        time.sleep(SECONDS)
        yield window, number, time.time()


class PlainActor:
    def score(self, window: int) -> Iterator[tuple[int, int, float]]:
        yield from passes(window)


def with_plain_actors() -> Iterator[tuple[int, int, float]]:
    """As `offline/ray_runner.py` does it."""
    actor = ray.remote(num_cpus=1)(PlainActor)
    actors = [actor.remote() for _ in range(ACTORS)]
    windows = iter(range(WINDOWS))
    pending: dict[Any, int] = {}
    load = [0] * ACTORS
    while True:
        while min(load) < 2 and (window := next(windows, None)) is not None:
            place = load.index(min(load))
            method = actors[place].score.options(num_returns="streaming", _generator_backpressure_num_objects=1)
            pending[method.remote(window)] = place
            load[place] += 1
        if not pending:
            return
        ready, _ = ray.wait(list(pending), num_returns=1)
        scored = next(ready[0], None)
        if scored is None:
            load[pending.pop(ready[0])] -= 1
        else:
            yield ray.get(scored)


class QueueSource(ray_data.Datasource):  # type: ignore[misc]
    """A read task that takes windows from a queue: Ray Data has no source that the driver fills as it goes."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(self, *_: object, **__: object) -> list[Any]:
        queue = self._queue

        def read() -> Iterator[Any]:
            while (window := queue.get()) is not None:
                yield pyarrow.table({"window": [window]})

        metadata = import_module("ray.data.block").BlockMetadata(
            num_rows=None, size_bytes=None, input_files=None, exec_stats=None
        )
        return [ray_data.ReadTask(read, metadata)]


class DataActor:
    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for window in batch["window"]:
            for scored in passes(int(window)):
                yield {"pass": [pickle.dumps(scored)]}


def with_ray_data(buffered_blocks: int) -> Iterator[tuple[int, int, float]]:
    queue = import_module("ray.util.queue").Queue(maxsize=2 * ACTORS, actor_options={"num_cpus": 0})

    def feed() -> None:
        for window in [*range(WINDOWS), None]:
            queue.put(window)

    threading.Thread(target=feed, daemon=True).start()
    context = ray_data.DataContext.get_current()
    context.target_max_block_size = 1  # a block for each pass; otherwise one comes when a window is finished
    context.enable_progress_bars = False
    context._max_num_blocks_in_streaming_gen_buffer = buffered_blocks  # noqa: SLF001 - there is no public name
    dataset = ray_data.read_datasource(QueueSource(queue), override_num_blocks=1, num_cpus=0).map_batches(
        DataActor, batch_size=1, compute=ray_data.ActorPoolStrategy(size=ACTORS), num_cpus=1
    )
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
        yield from map(pickle.loads, batch["pass"].to_pylist())


def measure(found: Iterator[tuple[int, int, float]]) -> dict[str, float]:
    arrived = [(window, number, made, time.time()) for window, number, made in found]
    assert len({row[:2] for row in arrived}) == len(arrived) == WINDOWS * PASSES  # noqa: S101
    first = min(made for _, _, made, _ in arrived)
    last = max(made for _, _, made, _ in arrived)
    ideal = (WINDOWS * PASSES / ACTORS - 1) * SECONDS
    waiting = [sum(1 for other in arrived if other[2] <= row[3] < other[3]) for row in arrived]
    return {
        "seconds_from_first_to_last_pass": last - first,
        "share_of_time_that_actors_stood_still": 1 - ideal / (last - first),
        "median_seconds_on_the_way": sorted(row[3] - row[2] for row in arrived)[len(arrived) // 2],
        "most_passes_on_the_way": max(waiting),
    }


def main() -> None:
    ray.init(num_cpus=ACTORS + 1, include_dashboard=False, log_to_driver=False, logging_level="error")
    report: dict[str, object] = {
        "ray": ray.__version__,
        "windows": WINDOWS,
        "passes_each": PASSES,
        "pass_seconds": SECONDS,
    }
    report["plain actors"] = measure(with_plain_actors())
    for blocks in (2, 16):
        report[f"ray data, {blocks} blocks buffered"] = measure(with_ray_data(blocks))
    print(json.dumps(report, indent=2))
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
