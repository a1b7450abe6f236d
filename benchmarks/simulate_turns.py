"""Simulate how long requests wait for a pass, with the real filling of passes -> docs/results/turns.json.

Two clients always have a long request in the queue, and one client always has a short one. The time of a pass is a
constant plus its tokens times another constant; the first constant's share of a full pass is an argument. No model
runs. The unit of time is a full pass.

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


class Waiting(filling.ByLength):
    """A client's request with the time at which it came."""

    def __init__(self, client: int, documents: int, tokens: int, came: float) -> None:
        super().__init__(EncodedRequest([0] * 85, [range(tokens)] * documents, [0] * documents))  # type: ignore[list-item]
        self.client, self.came, self.scored = client, came, 0


def simulate(*, in_flight: int, fixed: float, short: bool, passes: float = 400) -> dict[str, float]:
    """Run for as long as so many full passes take.

    Args:
        in_flight: passes on the device or queued to it.
        fixed: share of a full pass that does not depend on its tokens.
        short: whether the client with ten documents takes part.
    """
    budget = 32_768
    capabilities = EngineCapabilities(token_budget=budget, passes_in_flight=in_flight)
    waiting: deque[Waiting] = deque()
    events: list[tuple[float, int, Any]] = []
    pause = 0.02  # an answer on its way to the client, and the next request back

    def come(client: int, now: float) -> None:
        documents = 10 if client == 0 else 1000
        heapq.heappush(events, (now, client, Waiting(client, documents, 400, now)))

    for client in range(0 if short else 1, 3):
        come(client, 0.1 * client)
    now = free = 0.0
    turns = filling.Turns()
    flying: list[tuple[float, list[tuple[Waiting, list[int]]]]] = []
    latencies: list[float] = []
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
                    if request.client == 0:
                        latencies.append(now - request.came)
                    come(request.client, now + pause)
        else:
            now, _, request = heapq.heappop(events)
            waiting.append(request)
    found = {"throughput": round(tokens / budget / now, 4)}
    if latencies:
        found |= {f"p{q}": round(float(np.percentile(latencies, q)), 2) for q in (50, 99)}
        found["short_requests"] = len(latencies)
    return found


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fixed", type=float, default=0.02, help="share of a full pass that its tokens do not change")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "turns.json")
    options = parser.parse_args()
    result = {
        "unit": "full passes",
        "fixed": options.fixed,
        **{
            f"{in_flight} in flight, {'with' if short else 'without'} ten documents": simulate(
                in_flight=in_flight, fixed=options.fixed, short=short
            )
            for in_flight in (1, 2)
            for short in (False, True)
        },
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
