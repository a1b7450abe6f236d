"""Simulate one request on several replicas, with the real shares of passes -> docs/results/shares.json.

A request is encoded in the parts of `prompt.turns.PARTS`, and replicas take passes as the dispatcher lets them. No
model runs. Times are those of an H200 with 16 cores in the 0.6B shape, in ms: 3 until the first part is encoded and 3
from the last score to the client, 0.25 us a token for encoding, 1.2 from the queue to the device, 1 for a pass and 1.8
us for each of its tokens. The times of the host vary: each is multiplied by 0.5 and an exponentially distributed number
with a mean of 0.5.

    PYTHONPATH=src:. python benchmarks/simulate_shares.py [--output docs/results/shares.json]
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_ranker_plugins.bench.machine import environment
from qwen3_ranker_plugins.dispatch import filling
from qwen3_ranker_plugins.dispatch.replicas import may_take, share_of_pass
from qwen3_ranker_plugins.engines.base import EngineCapabilities
from qwen3_ranker_plugins.prompt import EncodedRequest
from qwen3_ranker_plugins.prompt.turns import PARTS

ROOT = Path(__file__).parents[1]
CASES = {"1000 titles": (1000, 28), "100 chunks": (100, 230), "100 titles": (100, 28)}
PREFIX = 80
START, END, ENCODE_PART, ENCODE_TOKEN, TO_DEVICE, FROM_DEVICE, PASS, TOKEN = (
    3.0,
    3.0,
    0.3,
    0.25e-3,
    1.2,
    0.5,
    1.0,
    1.8e-3,
)
#: A request of fewer tokens is queued as one part.
LONG = 10_000


@dataclass
class Paced:
    """A capable engine, as a replica shows it."""

    capabilities = EngineCapabilities(token_budget=32_768, passes_in_flight=2)


@dataclass
class Simulated:
    """What the dispatcher looks at in a replica."""

    number: int
    in_flight: int = 0
    tokens_in_flight: int = 0
    free: float = 0.0
    threads = 2
    runs = True
    engine = Paced()


def simulate(count: int, documents: int, tokens: int, seed: int) -> float:
    """Milliseconds of a request on `count` replicas."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(tokens - tokens // 4, tokens + tokens // 4, documents, endpoint=True).tolist()

    def varied(milliseconds: float) -> float:
        return float(milliseconds * (0.5 + rng.exponential(0.5)))

    replicas: Any = [Simulated(number) for number in range(count)]
    waiting: deque[Any] = deque()
    owner, turns = filling.Owner(), filling.Turns()
    events: list[tuple[float, int, Any]] = []
    now, first, last = varied(START), 0, 0.0
    for share in PARTS if sum(lengths) >= LONG else (1.0,):
        part = lengths[first : round(documents * share)]
        first += len(part)
        now += varied(ENCODE_PART) + varied(ENCODE_TOKEN * sum(part))
        request = EncodedRequest([0] * PREFIX, [range(each) for each in part], [0] * len(part))  # type: ignore[misc]
        heapq.heappush(events, (now, len(events), filling.ByLength(request, owner)))
    number = len(events)
    while events:
        now, _, event = heapq.heappop(events)
        if isinstance(event, filling.ByLength):
            waiting.append(event)
        else:
            replica, taken = event
            replica.in_flight -= 1
            replica.tokens_in_flight -= taken
            last = now
        while waiting:
            able = [each for each in replicas if each.in_flight < each.threads and may_take(each, replicas)]
            if not able:
                break
            room = share_of_pass(able[0], replicas, waiting) if count > 1 else able[0].engine.capabilities
            batch = filling.fill_in_turns(waiting, room, turns)
            taken = PREFIX * len(batch) + sum(part.request.lengths[i] for part, indices in batch for i in indices)
            able[0].in_flight += 1
            able[0].tokens_in_flight += taken
            able[0].free = max(now + varied(TO_DEVICE), able[0].free) + PASS + TOKEN * taken
            number += 1
            heapq.heappush(events, (able[0].free + varied(FROM_DEVICE), number, (able[0], taken)))
    return last + END


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/shares.json")
    arguments = parser.parse_args()
    rows = {
        case: {
            count: round(float(np.mean([simulate(count, *shape, seed) for seed in range(200)])), 1)
            for count in (1, 2, 4, 8)
        }
        for case, shape in CASES.items()
    }
    for case, row in rows.items():
        print(case, row)
    result = {"environment": environment(), "milliseconds": rows}
    arguments.output.write_text(json.dumps(result, indent=1, default=vars) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
