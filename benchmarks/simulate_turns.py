"""Simulate how long requests wait for a pass, with the real filling of passes -> docs/results/turns.json.

Two clients always have a long request in the queue, and one client always has a short one. Then one client has a long
request, and many have short ones, which would fill every pass. The time of a pass is a constant plus its tokens times
another constant; the first constant's share of a full pass is an argument. No model runs. The unit of time is a full
pass.

    python benchmarks/simulate_turns.py
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_ranker_plugins.dispatch import filling
from qwen3_ranker_plugins.engines.base import EngineCapabilities
from qwen3_ranker_plugins.prompt import EncodedRequest

ROOT = Path(__file__).parents[1]
#: Clients with ten documents each: more than three full passes.
CROWD = 28


class Waiting(filling.ByLength):
    """A client's request with the time at which it came."""

    def __init__(self, client: int, documents: int, tokens: int, came: float) -> None:
        super().__init__(EncodedRequest([0] * 85, [range(tokens)] * documents, [0] * documents))  # type: ignore[list-item]
        self.client, self.came, self.scored = client, came, 0


def simulate(*, in_flight: int, fixed: float, short: int, long: int, passes: float = 400) -> dict[str, float]:
    """Run for as long as that many full passes take.

    Args:
        in_flight: passes on the device or queued to it.
        fixed: share of a full pass that does not depend on its tokens.
        short: number of clients with ten documents.
        long: number of clients with 1000 documents.
        passes: when to stop.
    """
    budget = 32_768
    capabilities = EngineCapabilities(token_budget=budget, passes_in_flight=in_flight)
    waiting: deque[Waiting] = deque()
    events: list[tuple[float, int, Any]] = []
    pause = 0.02  # an answer on its way to the client, and the next request back

    def come(client: int, now: float) -> None:
        documents = 10 if client < short else 1000
        heapq.heappush(events, (now, client, Waiting(client, documents, 400, now)))

    for client in range(short + long):
        come(client, 0.1 * (client + (short == 0)))
    now = free = 0.0
    turns = filling.Turns()
    flying: list[tuple[float, list[tuple[Waiting, list[int]]]]] = []
    latencies: dict[bool, list[float]] = {True: [], False: []}
    tokens = 0
    while now < passes:
        while waiting and len(flying) < in_flight:
            taken = filling.fill_in_turns(waiting, capabilities, turns)
            size = sum(85 + 400 * len(indices) for _, indices in taken)
            tokens += size
            free = max(free, now) + fixed + (1 - fixed) * size / budget
            flying.append((free, taken))
        if flying and (not events or flying[0][0] <= events[0][0]):
            now, taken = flying.pop(0)
            for request, indices in taken:
                request.scored += len(indices)
                if request.scored == len(request.request.segments):
                    latencies[request.client < short].append(now - request.came)
                    come(request.client, now + pause)
        else:
            now, _, request = heapq.heappop(events)
            waiting.append(request)
    found = {"throughput": round(tokens / budget / now, 4)}
    if short:
        found |= figures(latencies[True], "", "short_requests")
    if long == 1:
        found |= figures(latencies[False], "long_", "long_requests")
    return found


def figures(latencies: list[float], prefix: str, count: str) -> dict[str, float]:
    quantiles = {f"{prefix}p{q}": round(float(np.percentile(latencies, q)), 2) for q in (50, 99) if latencies}
    return {**quantiles, count: len(latencies)}


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fixed", type=float, default=0.02, help="share of a full pass that its tokens do not change")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "turns.json")
    options = parser.parse_args()
    result: dict[str, Any] = {"unit": "full passes", "fixed": options.fixed}
    for in_flight in (1, 2):
        for short, long, title in (
            (0, 2, "without ten documents"),
            (1, 2, "with ten documents"),
            (0, 1, "a long request"),
            (CROWD, 0, f"{CROWD} with ten documents"),
            (CROWD, 1, f"{CROWD} with ten documents and a long request"),
        ):
            result[f"{in_flight} in flight, {title}"] = simulate(
                in_flight=in_flight, fixed=options.fixed, short=short, long=long
            )
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
