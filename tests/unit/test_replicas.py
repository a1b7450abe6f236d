"""Several engines for one queue, with known arithmetic: who takes a pass, and what the end of one does to others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from qwen3_ranker_plugins import EngineClosedError, EngineError, Reranker
from qwen3_ranker_plugins.checks import canonical_devices
from qwen3_ranker_plugins.dispatch import Dispatcher, PassReport
from qwen3_ranker_plugins.engines.base import EngineCapabilities, Margins
from qwen3_ranker_plugins.errors import InvalidInputError
from qwen3_ranker_plugins.prompt import EncodedRequest

from .test_dispatch import SumEngine, expected, request, submit


class Mortal(SumEngine):
    """Its process ends when `end` is called, in a pass or between two; it waits for `birth` to restart."""

    def __init__(self, token_budget: int = 100) -> None:
        super().__init__(token_budget)
        self.alive = True
        self.ended = threading.Event()
        self.birth = threading.Event()
        self.birth.set()
        self.fails_to_start = False
        self.starts = 0

    @property
    def running(self) -> bool:
        return self.alive

    def end(self) -> None:
        self.alive = False
        self.ended.set()
        self.gate.set()

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        if not self.alive:
            raise EngineError("its process has ended")
        results = super().score(requests)
        if not self.alive:
            raise EngineError("its process has ended")
        return results

    def restart(self) -> None:
        self.starts += 1
        assert self.birth.wait(10)
        if self.fails_to_start:
            raise EngineError("no memory")
        self.ended.clear()
        self.alive = True


class Fatal(Mortal):
    """A prefix of 13 ends its process."""

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        if any(each.prefix == [13] for each in requests):
            self.end()
        return super().score(requests)


class Overlapping(SumEngine):
    """Two passes may be in flight; its gate is closed at first."""

    def __init__(self, token_budget: int) -> None:
        super().__init__(token_budget)
        self.capabilities = EngineCapabilities(token_budget=token_budget, passes_in_flight=2)
        self.gate.clear()
        self.arrived = 0

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        self.arrived += 1
        return super().score(requests)


@contextmanager
def replicas(*engines: SumEngine) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(*engines, devices=["cpu"] * len(engines))
    try:
        yield dispatcher
    finally:
        for engine in engines:
            engine.gate.set()
        dispatcher.close()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_long_request_is_shared_by_idle_replicas_and_comes_back_whole() -> None:
    engines = [SumEngine(token_budget=4000) for _ in range(4)]
    for engine in engines:
        engine.gate.clear()
    lengths = [1 + number % 9 for number in range(400)]
    with replicas(*engines) as dispatcher:
        future = submit(dispatcher, request(lengths))
        wait_until(lambda: all(engine.in_pass.is_set() for engine in engines))
        for engine in engines:
            engine.gate.set()
        margins = future.result(10)
        assert margins.values.tolist() == expected(lengths)
        shares = [sum(each.num_tokens for batch in engine.passes for each in batch) for engine in engines]
        assert [len(engine.passes) for engine in engines] == [1, 1, 1, 1]
        assert max(shares) < 1.1 * sum(shares) / 4, "each has a quarter, and the prefix"
        assert margins.computed_tokens == sum(lengths) + 4, "the prefix once for each"
        assert sum(state.documents for state in dispatcher.replicas()) == 400


def test_all_replicas_get_as_much_of_a_request_that_comes_in_parts() -> None:
    engines = [Overlapping(token_budget=4000) for _ in range(3)]
    with replicas(*engines) as dispatcher:
        first = submit(dispatcher, request([9] * 50))
        wait_until(lambda: sum(engine.arrived for engine in engines) == 2)
        then = submit(dispatcher, request([9] * 200, prefix=2))
        wait_until(lambda: not dispatcher._waiting and sum(engine.arrived for engine in engines) == 5)
        in_flight = [replica.tokens_in_flight for replica in dispatcher._replicas]
        assert max(in_flight) - min(in_flight) < 30, "the idle one has as much as the others with two passes"
        for engine in engines:
            engine.gate.set()
        assert first.result(10).values.tolist() == expected([9] * 50)
        assert then.result(10).values.tolist() == expected([9] * 200, prefix=2)
        wait_until(lambda: not any(replica.tokens_in_flight for replica in dispatcher._replicas))


def test_what_is_left_of_a_share_is_not_a_pass_of_its_own() -> None:
    engines = [SumEngine(token_budget=4000) for _ in range(2)]
    with replicas(*engines) as dispatcher:
        assert submit(dispatcher, request([5] * 60)).result(10).values.tolist() == expected([5] * 60)
    assert sorted(len(engine.passes) for engine in engines) == [0, 1]


def test_a_short_request_is_not_torn_apart() -> None:
    engines = [SumEngine(token_budget=4000) for _ in range(4)]
    with replicas(*engines) as dispatcher:
        assert submit(dispatcher, request([5] * 40)).result(10).values.tolist() == expected([5] * 40)
    assert sum(len(engine.passes) for engine in engines) == 1


def test_a_busy_replica_holds_up_nobody() -> None:
    busy, free = SumEngine(token_budget=50), SumEngine(token_budget=50)
    busy.gate.clear()
    free.gate.clear()
    with replicas(busy, free) as dispatcher:
        first = [submit(dispatcher, request([40], prefix)) for prefix in (1, 2)]
        wait_until(lambda: busy.in_pass.is_set() and free.in_pass.is_set())
        free.gate.set()
        for prefix in range(3, 20):
            assert submit(dispatcher, request([40], prefix)).result(10).values.tolist() == expected([40], prefix)
        assert sum(each.done() for each in first) == 1
        assert [state.requests for state in dispatcher.replicas()] == [1, 0]
        busy.gate.set()
        assert {each.result(10).values.tolist()[0] for each in first} == {1601, 1602}


def test_of_two_passes_in_flight_the_second_goes_to_the_replica_with_none() -> None:
    engines = [Overlapping(token_budget=50) for _ in range(2)]
    with replicas(*engines) as dispatcher:
        futures = []
        for count, arrived in enumerate(([1, 0], [1, 1], [2, 1], [2, 2]), start=1):
            futures.append(submit(dispatcher, request([40], prefix=count)))
            wait_until(lambda count=count: sum(engine.arrived for engine in engines) == count)
            assert sorted((engine.arrived for engine in engines), reverse=True) == arrived
        waits = submit(dispatcher, request([40], prefix=5))
        time.sleep(0.05)
        assert sum(engine.arrived for engine in engines) == 4
        for engine in engines:
            engine.gate.set()
        assert [each.result(10).values.tolist() for each in (*futures, waits)] == [
            expected([40], prefix) for prefix in (1, 2, 3, 4, 5)
        ]


def test_a_pass_of_a_replica_that_ends_goes_to_another_at_once() -> None:
    dies, lives = Mortal(), Mortal()
    dies.birth.clear()
    lives.gate.clear()
    dies.gate.clear()
    reports: list[PassReport] = []
    with replicas(dies, lives) as dispatcher:
        dispatcher.on_pass(reports.append)
        futures = [submit(dispatcher, request([90, 90], prefix)) for prefix in range(1, 9)]
        wait_until(lambda: dies.in_pass.is_set() and lives.in_pass.is_set())
        dies.end()
        lives.gate.set()
        assert [each.result(10).values.tolist() for each in futures] == [
            expected([90, 90], prefix) for prefix in range(1, 9)
        ]
        assert [state.status for state in dispatcher.replicas()] == ["restarting", "running"]
        assert dispatcher.replicas()[0].error == "its process has ended"
        assert dispatcher.can_score
        assert [report.replica for report in reports if report.error is not None] == [0]
        dies.birth.set()
        wait_until(lambda: dispatcher.replicas()[0].status == "running")
        assert (dispatcher.replicas()[0].restarts, dispatcher.replicas()[0].error) == (1, None)
        assert (dies.starts, lives.starts) == (1, 0)


def test_an_idle_replica_that_ends_is_started_again() -> None:
    engines = [Mortal(), Mortal()]
    with replicas(*engines) as dispatcher:
        engines[1].end()
        wait_until(lambda: engines[1].starts == 1 and dispatcher.replicas()[1].status == "running")
        assert [state.restarts for state in dispatcher.replicas()] == [0, 1]


def test_if_no_replica_is_left_all_who_wait_are_told_and_a_patient_call_waits_for_the_first_one() -> None:
    engines = [Mortal(), Mortal()]
    for engine in engines:
        engine.gate.clear()
        engine.birth.clear()
    with replicas(*engines) as dispatcher:
        futures = [submit(dispatcher, request([90], prefix)) for prefix in range(1, 9)]
        wait_until(lambda: all(engine.in_pass.is_set() for engine in engines))
        for engine in engines:
            engine.end()
        for future in futures:
            with pytest.raises(EngineError, match="ended"):
                future.result(10)
        assert not dispatcher.can_score
        with pytest.raises(EngineClosedError, match="it is being started again"):
            submit(dispatcher, request([1]), restart=False)
        patient = submit(dispatcher, request([3]))
        time.sleep(0.6)  # longer than between two looks: those who come later are not failed by the same end
        assert not patient.done()
        engines[1].birth.set()
        assert patient.result(10).values.tolist() == expected([3])
        engines[0].birth.set()


def test_a_replica_that_cannot_be_started_again_is_tried_with_pauses_and_shows_why() -> None:
    broken, works = Mortal(), Mortal()
    broken.fails_to_start = True
    with replicas(broken, works) as dispatcher:
        broken.end()
        wait_until(lambda: broken.starts == 2)
        state = dispatcher.replicas()[0]
        assert (state.status, state.error) == ("failed", "no memory")
        time.sleep(0.5)
        assert broken.starts == 2, "the pause before the third attempt is longer than a second"
        assert submit(dispatcher, request([4])).result(10).values.tolist() == expected([4])
        broken.fails_to_start = False
        wait_until(lambda: dispatcher.replicas()[0].status == "running")
        assert dispatcher.replicas()[0].restarts == 1


def test_a_request_that_ends_replicas_fails_after_three_and_takes_nobody_along() -> None:
    engines = [Fatal(token_budget=1000) for _ in range(5)]
    with replicas(*engines) as dispatcher, ThreadPoolExecutor(8) as pool:
        innocent = [
            pool.submit(lambda prefix=prefix: submit(dispatcher, request([3], prefix)).result(30).values.tolist())
            for prefix in range(20, 60)
        ]
        fatal = submit(dispatcher, request([3], prefix=13))
        with pytest.raises(EngineError, match="ended"):
            fatal.result(10)
        assert [each.result(30) for each in innocent] == [expected([3], prefix) for prefix in range(20, 60)]
        wait_until(lambda: sum(state.restarts for state in dispatcher.replicas()) == 3)


def test_closing_does_not_wait_for_a_pause_and_closes_every_engine() -> None:
    broken, works = Mortal(), Mortal()
    broken.fails_to_start = True
    dispatcher = Dispatcher(broken, works, devices=["cpu", "cpu"])
    broken.end()
    wait_until(lambda: broken.starts == 2)
    started = time.monotonic()
    dispatcher.close()
    assert time.monotonic() - started < 2
    assert broken.closed_by
    assert works.closed_by
    assert not dispatcher.running


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (None, None),
        ("all", "all"),
        (["all"], "all"),
        ("cpu", "cpu"),
        ("cuda:0, cuda:3", "cuda:0,cuda:3"),
        (("cpu", "cpu"), "cpu,cpu"),
    ],
)
def test_devices_are_stored_as_text(given: object, stored: str | None) -> None:
    assert canonical_devices(given) == stored


@pytest.mark.parametrize("given", ["", [], "cuda", "cpu,all", "mps", 2, [0, 1], "cpu,", {"cpu": 1}])
def test_devices_that_name_none(given: object) -> None:
    with pytest.raises(InvalidInputError, match="devices="):
        canonical_devices(given)


def test_devices_of_a_service_are_its_own_business() -> None:
    with pytest.raises(InvalidInputError, match="devices='cpu': has no effect on the remote engine: leave it out"):
        Reranker(model="any", engine="remote", engine_options={"url": "http://127.0.0.1:9"}, devices="cpu")
