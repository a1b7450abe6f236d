"""The dispatcher with an engine of known arithmetic: who shares a pass, who waits, who hears of which error."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np
import pytest

from qwen3_ranker_plugins import EngineClosedError, EngineError
from qwen3_ranker_plugins.dispatch import Dispatcher, PassReport, Progress, Submission
from qwen3_ranker_plugins.engines.base import Engine, EngineCapabilities, EngineDescription, Margins
from qwen3_ranker_plugins.prompt import EncodedRequest

POISON = 666


class SumEngine(Engine):
    """Margin = sum of the prompt's ids. Waits at `gate` and writes down its passes; a poisoned prefix breaks a pass."""

    name = "sum"

    def __init__(self, token_budget: int = 100) -> None:
        self.capabilities = EngineCapabilities(token_budget=token_budget)
        self.gate = threading.Event()
        self.gate.set()
        self.in_pass = threading.Event()
        self.passes: list[list[EncodedRequest]] = []
        self.closed_by: str | None = None

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        self.in_pass.set()
        assert self.gate.wait(10)
        self.passes.append(list(requests))
        if any(POISON in request.prefix for request in requests):
            raise ZeroDivisionError("poisoned")
        return [
            Margins(
                np.array([sum(request.prompt(i)) for i in range(len(request.segments))], dtype=np.float32),
                computed_tokens=len(request.prefix) + sum(map(len, request.segments)),
            )
            for request in requests
        ]

    def close(self) -> None:
        self.closed_by = threading.current_thread().name

    def describe(self) -> EngineDescription:
        return EngineDescription(engine=self.name, device="cpu", dtype="none")


def request(documents: list[int], prefix: int = 1) -> EncodedRequest:
    """One prefix token, and documents of the lengths given whose ids are their length."""
    return EncodedRequest([prefix], [[length] * length for length in documents], [0] * len(documents))


def submit(
    dispatcher: Dispatcher, request: EncodedRequest, on_progress: Progress | None = None, *, restart: bool = True
) -> Future[Margins]:
    """Queue a whole request, as `Reranker.submit` does with a short one."""
    submission = Submission(len(request.segments))
    submission.on_progress = on_progress
    dispatcher.queue(submission, request, restart=restart)
    return submission.future


def expected(documents: list[int], prefix: int = 1) -> list[int]:
    return [length * length + prefix for length in documents]


def test_a_request_is_split_by_budget_and_comes_back_in_order() -> None:
    engine = SumEngine(token_budget=10)
    dispatcher = Dispatcher(engine)
    lengths = [3, 9, 1, 4, 2, 5, 3, 30]
    margins = submit(dispatcher, request(lengths)).result(10)
    dispatcher.close()
    assert margins.values.tolist() == expected(lengths)
    sizes = [sum(len(r.prefix) + sum(map(len, r.segments)) for r in each) for each in engine.passes]
    assert all(size <= 10 for size in sizes[:-1])
    assert sizes[-1] == 31, "a document that is longer than the budget goes alone"
    assert margins.computed_tokens == sum(sizes)


def test_requests_that_wait_together_share_a_pass() -> None:
    engine = SumEngine(token_budget=1000)
    dispatcher = Dispatcher(engine)
    engine.gate.clear()
    first = submit(dispatcher, request([1]))
    assert engine.in_pass.wait(10)
    others = [submit(dispatcher, request([2, n], prefix=n)) for n in range(3, 20)]
    engine.gate.set()
    assert first.result(10).values.tolist() == [2]
    for n, other in enumerate(others, start=3):
        assert other.result(10).values.tolist() == expected([2, n], prefix=n)
    dispatcher.close()
    assert [len(each) for each in engine.passes] == [1, len(others)]


def test_a_long_list_does_not_hold_up_a_short_one() -> None:
    engine = SumEngine(token_budget=50)
    dispatcher = Dispatcher(engine)
    engine.gate.clear()
    giant = submit(dispatcher, request([10] * 400))
    assert engine.in_pass.wait(10)
    small = [submit(dispatcher, request([45], prefix=prefix)) for prefix in (7, 8, 9)]
    engine.gate.set()
    assert giant.result(30).values.tolist() == expected([10] * 400)
    dispatcher.close()
    order = [request.prefix for each in engine.passes for request in each]
    assert all(order.index([each]) < 8 for each in (7, 8, 9)), "they took turns with the long one's hundred passes"
    assert all(
        each.result(0).values.tolist() == expected([45], prefix) for prefix, each in zip((7, 8, 9), small, strict=True)
    )


class PacedEngine(SumEngine):
    """Takes 10 us for each token, and counts the tokens that it has computed."""

    def __init__(self, token_budget: int) -> None:
        super().__init__(token_budget)
        self.computed = 0

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        tokens = sum(each.num_tokens for each in requests)
        time.sleep(1e-5 * tokens)
        self.computed += tokens
        return super().score(requests)


def test_a_long_request_ends_while_short_ones_fill_every_pass() -> None:
    """Time is counted in tokens of the engine, which other load of the machine does not change."""
    engine = PacedEngine(token_budget=1200)
    dispatcher = Dispatcher(engine)
    ended, latencies = threading.Event(), list[int]()

    def timed(documents: list[int]) -> int:
        began = engine.computed
        assert submit(dispatcher, request(documents)).result(30).values.tolist() == expected(documents)
        return engine.computed - began

    def stream() -> None:
        while not ended.is_set():
            latencies.append(timed([12] * 10))

    alone = timed([10] * 600)
    with ThreadPoolExecutor(25) as pool:
        for _ in range(24):
            pool.submit(stream)
        while len(latencies) < 240:
            time.sleep(0.01)
        before, passes = len(latencies), len(engine.passes)
        try:
            together = pool.submit(timed, [10] * 600).result(60)
        finally:
            ended.set()
    dispatcher.close()
    sizes = [sum(each.num_tokens for each in filled) for filled in engine.passes[passes : passes + 20]]
    assert np.mean(sizes) > 1000, "short requests fill the passes"
    assert together <= 8 * alone
    assert np.median(latencies[before:]) <= 1.5 * np.median(latencies[48:before])


def test_one_callers_fault_is_not_everybodys() -> None:
    engine = SumEngine(token_budget=1000)
    dispatcher = Dispatcher(engine)
    engine.gate.clear()
    submit(dispatcher, request([1]))
    assert engine.in_pass.wait(10)
    good, bad, other = (submit(dispatcher, request([2, 3], prefix=prefix)) for prefix in (1, POISON, 2))
    engine.gate.set()
    assert good.result(10).values.tolist() == expected([2, 3])
    assert other.result(10).values.tolist() == expected([2, 3], prefix=2)
    with pytest.raises(EngineError, match="ZeroDivisionError: poisoned") as caught:
        bad.result(10)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    dispatcher.close()


class EndingEngine(SumEngine):
    """Its process ends in a poisoned pass; the next call starts another one."""

    running = True

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        self.running = True
        try:
            return super().score(requests)
        except ZeroDivisionError as error:
            self.running = False
            raise EngineError("its process has ended") from error


def test_all_who_wait_are_told_at_once_that_the_engines_process_has_ended() -> None:
    """Trying each alone would make everybody wait until the process has started again."""
    engine = EndingEngine(token_budget=10)
    dispatcher = Dispatcher(engine)
    engine.gate.clear()
    in_pass = submit(dispatcher, request([3, 30], POISON))
    assert engine.in_pass.wait(10)
    waiting = [submit(dispatcher, request([length])) for length in range(1, 20)]
    engine.gate.set()
    for future in (in_pass, *waiting):
        with pytest.raises(EngineError, match="its process has ended"):
            future.result(10)
    assert len(engine.passes) == 1
    assert not engine.running
    with pytest.raises(EngineClosedError, match="the process of engine 'sum' has ended"):
        submit(dispatcher, request([2]), restart=False)
    assert submit(dispatcher, request([2])).result(10).values.tolist() == expected([2])
    assert submit(dispatcher, request([3]), restart=False).result(10).values.tolist() == expected([3])
    dispatcher.close()


def test_cancelling_drops_what_waits() -> None:
    engine = SumEngine(token_budget=11)
    dispatcher = Dispatcher(engine)
    engine.gate.clear()
    running = submit(dispatcher, request([10] * 50))
    assert engine.in_pass.wait(10)
    waiting = submit(dispatcher, request([10] * 50))
    assert running.cancel()
    assert waiting.cancel()
    engine.gate.set()
    assert submit(dispatcher, request([4])).result(10).values.tolist() == [17]
    dispatcher.close()
    assert len(engine.passes) == 2, "the pass in flight, and the last request"
    with pytest.raises(CancelledError):
        waiting.result(0)


def test_a_progress_function_that_raises_fails_its_own_call_only() -> None:
    dispatcher = Dispatcher(SumEngine())

    def broken(documents: int) -> None:
        raise KeyError(documents)

    with pytest.raises(KeyError):
        submit(dispatcher, request([1]), broken).result(10)
    assert submit(dispatcher, request([1])).result(10).values.tolist() == [2]
    dispatcher.close()


def test_progress_adds_up() -> None:
    dispatcher = Dispatcher(SumEngine(token_budget=10))
    steps: list[int] = []
    submit(dispatcher, request([5] * 7), steps.append).result(10)
    dispatcher.close()
    assert sum(steps) == 7
    assert len(steps) == 7


def test_close_finishes_the_pass_in_flight_fails_the_rest_and_ends_the_thread() -> None:
    engine = SumEngine(token_budget=11)
    before = set(threading.enumerate())
    dispatcher = Dispatcher(engine)
    [worker] = set(threading.enumerate()) - before
    engine.gate.clear()
    in_flight = submit(dispatcher, request([10]))
    assert engine.in_pass.wait(10)
    waiting = submit(dispatcher, request([10]))
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(dispatcher.close)
        engine.gate.set()
        closing.result(10)
    assert in_flight.result(0).values.tolist() == [101]
    with pytest.raises(EngineClosedError):
        waiting.result(0)
    with pytest.raises(EngineClosedError):
        submit(dispatcher, request([1]))
    assert engine.closed_by == "qwen3-ranker-sum"
    assert not worker.is_alive()
    dispatcher.close()


@pytest.mark.parametrize("fate", ["failed", "cancelled", "progress raised"])
def test_closing_after_a_call_went_wrong_strands_nobody(fate: str) -> None:
    """A settled call may still have documents that no pass has taken."""
    engine = SumEngine(token_budget=11)
    dispatcher = Dispatcher(engine)
    engine.gate.clear()

    def broken(documents: int) -> None:
        raise KeyError(documents)

    wrong = submit(
        dispatcher,
        request([10] * 5, prefix=POISON if fate == "failed" else 1),
        broken if fate == "progress raised" else None,
    )
    assert engine.in_pass.wait(10)
    if fate == "cancelled":
        assert wrong.cancel()
    waiting = submit(dispatcher, request([10] * 5))
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(dispatcher.close)
        while not dispatcher._closing:
            pass
        engine.gate.set()
        closing.result(10)
    with pytest.raises(EngineClosedError):
        waiting.result(0)
    assert engine.closed_by == "qwen3-ranker-sum"


class Panic(BaseException):
    """Not an Exception, as what Rust code panics with."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the panic itself
def test_nobody_waits_for_a_thread_that_was_torn_down() -> None:
    engine = SumEngine(token_budget=11)

    def panic(_requests: Sequence[EncodedRequest]) -> list[Margins]:
        engine.in_pass.set()
        assert engine.gate.wait(10)
        raise Panic

    engine.score = panic  # type: ignore[method-assign]
    dispatcher = Dispatcher(engine)
    engine.gate.clear()
    first = submit(dispatcher, request([10] * 5))
    assert engine.in_pass.wait(10)
    second = submit(dispatcher, request([10]))
    engine.gate.set()
    for each in (first, second):
        with pytest.raises(EngineClosedError):
            each.result(10)
    with pytest.raises(EngineClosedError):
        submit(dispatcher, request([1]))
    dispatcher.close()
    assert engine.closed_by == "qwen3-ranker-sum"


def test_a_prefix_as_long_as_the_budget_is_not_computed_for_every_document() -> None:
    for prefix in (90, 99, 150):
        engine = SumEngine(token_budget=100)
        dispatcher = Dispatcher(engine)
        long_prefix = EncodedRequest([1] * prefix, [[2]] * 100, [0] * 100)
        assert submit(dispatcher, long_prefix).result(10).values.tolist() == [prefix + 2] * 100
        dispatcher.close()
        assert len(engine.passes) <= 10


class WaitingEngine(SumEngine):
    """Three passes at a time, two documents each; one for a prefix of 13 waits until the caller has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = EngineCapabilities(token_budget=1000, workers=3, documents_per_pass=2)
        self.gone = threading.Event()

    def score_until(self, requests: Sequence[EncodedRequest], settled: Future[Margins]) -> list[Margins]:
        [only] = requests
        assert len(only.segments) <= 2
        if only.prefix == [13]:
            self.in_pass.set()
            settled.add_done_callback(lambda _: self.gone.set())
            assert self.gone.wait(10)
            raise CancelledError
        return self.score(requests)


def test_several_workers_serve_each_request_alone_and_stop_for_a_caller_that_has_gone() -> None:
    engine = WaitingEngine()
    dispatcher = Dispatcher(engine)
    stuck = submit(dispatcher, request([1, 2], prefix=13))
    assert engine.in_pass.wait(10)
    rng = np.random.default_rng(0)
    work = [rng.integers(1, 40, size=rng.integers(1, 9)).tolist() for _ in range(100)]
    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(lambda lengths: submit(dispatcher, request(lengths)).result(60).values.tolist(), work))
    assert results == [expected(lengths) for lengths in work]
    assert not stuck.done()
    assert stuck.cancel()
    assert engine.gone.wait(10)
    poisoned = submit(dispatcher, request([1] * 9, prefix=POISON))
    with pytest.raises(EngineError, match="poisoned"):
        poisoned.result(10)
    dispatcher.close()
    assert not dispatcher.running
    assert engine.closed_by == "qwen3-ranker-sum"


class DeviceEngine(SumEngine):
    """Two passes in flight on a device, a thread that computes them in the order in which they were queued.

    Attributes:
        events: ("queued" | "computed", prefix of the pass's first request), as they happened.
        compute: the device takes its next pass when this is released.
        seconds: that a pass takes then.
    """

    def __init__(self, token_budget: int = 1000, seconds: float = 0.0) -> None:
        super().__init__()
        self.capabilities = EngineCapabilities(token_budget=token_budget, passes_in_flight=2)
        self.seconds = seconds
        self.events: list[tuple[str, int]] = []
        self.queued = threading.Semaphore(0)
        self.compute = threading.Semaphore(0)
        self._keeps_apart = threading.Lock()
        self._stream: queue.Queue[tuple[list[EncodedRequest], Future[list[Margins]]] | None] = queue.Queue()
        self._device = threading.Thread(target=self._run)
        self._device.start()

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        margins: Future[list[Margins]] = Future()
        with self._keeps_apart:
            if any(request.prefix == [13] for request in requests):
                raise EngineError("no memory for it")
            self.events.append(("queued", requests[0].prefix[0]))
            self._stream.put((list(requests), margins))
        self.queued.release()
        return margins.result(10)

    def _run(self) -> None:
        while work := self._stream.get():
            requests, margins = work
            assert self.compute.acquire(timeout=10)
            time.sleep(self.seconds)
            self.events.append(("computed", requests[0].prefix[0]))
            try:
                margins.set_result(super().score(requests))
            except ZeroDivisionError as error:
                margins.set_exception(error)

    def close(self) -> None:
        super().close()
        self._stream.put(None)
        self._device.join(10)


def test_the_next_pass_is_queued_while_the_device_computes_and_no_third() -> None:
    engine = DeviceEngine()
    dispatcher = Dispatcher(engine)
    first = submit(dispatcher, request([1], prefix=1))
    assert engine.queued.acquire(timeout=10), "an idle queue holds nothing back"
    second = submit(dispatcher, request([2], prefix=2))
    assert engine.queued.acquire(timeout=10)
    others = [submit(dispatcher, request([3], prefix=prefix)) for prefix in (3, 4, 5)]
    assert not engine.queued.acquire(timeout=0.1)
    assert len(dispatcher._waiting) == 3
    assert engine.events == [("queued", 1), ("queued", 2)]
    for _ in range(3):
        engine.compute.release()
    assert [first.result(10).values.tolist(), second.result(10).values.tolist()] == [[2], [6]]
    assert [other.result(10).values.tolist() for other in others] == [[9 + prefix] for prefix in (3, 4, 5)]
    assert len(engine.passes) == 3, "what gathered meanwhile shares a pass"
    assert engine.events.index(("queued", 3)) > engine.events.index(("computed", 1))
    dispatcher.close()
    assert engine.closed_by == "qwen3-ranker-sum"
    assert not dispatcher.running


def test_of_two_passes_in_flight_each_has_its_own_errors() -> None:
    engine = DeviceEngine()
    dispatcher = Dispatcher(engine)
    reports: list[PassReport] = []
    dispatcher.on_pass(reports.append)
    first = submit(dispatcher, request([1], prefix=1))
    assert engine.queued.acquire(timeout=10)
    with pytest.raises(EngineError, match="no memory for it"):
        submit(dispatcher, request([2], prefix=13)).result(10)  # fails while it is queued, the first still in flight
    poisoned = submit(dispatcher, request([2], prefix=POISON))
    assert engine.queued.acquire(timeout=10)
    good, bad = (submit(dispatcher, request([2, 3], prefix=prefix)) for prefix in (5, POISON))
    for _ in range(5):  # the two in flight, the pass of both that waited, and each of these alone
        engine.compute.release()
    assert first.result(10).values.tolist() == [2]
    assert good.result(10).values.tolist() == expected([2, 3], prefix=5)
    for each in (poisoned, bad):
        with pytest.raises(EngineError, match="ZeroDivisionError: poisoned"):
            each.result(10)
    dispatcher.close()
    assert sorted(each.requests for each in reports if each.error is None) == [1, 1]
    assert sorted(each.requests for each in reports if each.error is not None) == [1, 1, 1, 2]


def test_closing_and_cancelling_with_two_passes_in_flight() -> None:
    engine = DeviceEngine(token_budget=11)
    dispatcher = Dispatcher(engine)
    first = submit(dispatcher, request([10] * 3, prefix=1))  # a pass each, so that one document is left
    second = submit(dispatcher, request([10], prefix=2))
    assert engine.queued.acquire(timeout=10)
    assert engine.queued.acquire(timeout=10)
    waiting = submit(dispatcher, request([10], prefix=3))
    assert second.cancel()
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(dispatcher.close)
        while not dispatcher._closing:
            pass
        engine.compute.release()
        engine.compute.release()
        closing.result(10)
    for each in (first, second, waiting):
        with pytest.raises((EngineClosedError, CancelledError)):
            each.result(0)
    assert len(engine.passes) == 2
    assert engine.closed_by == "qwen3-ranker-sum"
    assert not dispatcher.running


def test_the_time_of_passes_in_flight_is_not_counted_twice() -> None:
    engine = DeviceEngine(token_budget=11, seconds=0.02)
    dispatcher = Dispatcher(engine)
    reports: list[PassReport] = []
    dispatcher.on_pass(reports.append)
    started = time.perf_counter()
    for _ in range(10):
        engine.compute.release()
    assert submit(dispatcher, request([10] * 10)).result(10).values.tolist() == [101] * 10
    dispatcher.close()
    took = time.perf_counter() - started
    assert len(reports) == 10
    assert 0.2 <= sum(each.seconds for each in reports) <= took
    assert all(each.seconds < 0.1 for each in reports)


def check_many_callers(engine: Engine, *, threads: int, calls: int) -> None:
    dispatcher = Dispatcher(engine)
    rng = np.random.default_rng(0)
    work = [rng.integers(1, 40, size=rng.integers(1, 30)).tolist() for _ in range(calls)]
    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(lambda lengths: submit(dispatcher, request(lengths)).result(60).values.tolist(), work))
    dispatcher.close()
    assert results == [expected(lengths) for lengths in work]


def test_many_callers_and_two_passes_in_flight() -> None:
    engine = DeviceEngine(token_budget=64)
    for _ in range(20_000):
        engine.compute.release()
    check_many_callers(engine, threads=20, calls=200)


def test_fifty_threads() -> None:
    check_many_callers(SumEngine(token_budget=64), threads=50, calls=500)


def _use_in_child(dispatcher: Dispatcher, answers: multiprocessing.Queue[str]) -> None:
    try:
        submit(dispatcher, request([1]))
        answers.put("accepted")
    except EngineClosedError as error:
        answers.put(str(error))
    dispatcher.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # that it is, is the point
def test_a_forked_child_is_told_instead_of_waiting_for_ever() -> None:
    dispatcher = Dispatcher(SumEngine())
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[str] = context.Queue()
    child = context.Process(target=_use_in_child, args=(dispatcher, answers))
    child.start()
    assert "made before a fork" in answers.get(timeout=20)
    child.join(20)
    assert child.exitcode == os.EX_OK
    assert submit(dispatcher, request([1])).result(10).values.tolist() == [2], "the parent's is untouched"
    dispatcher.close()


def test_a_dispatcher_can_be_closed_by_the_garbage_collector_in_its_own_thread() -> None:
    """A cycle that owns a reranker may be collected in any thread, and a thread cannot join itself."""
    engine = SumEngine()
    dispatcher = Dispatcher(engine)

    def close_here(_documents: int) -> None:
        dispatcher.close()

    assert submit(dispatcher, request([1]), close_here).result(10).values.tolist() == [2]
    dispatcher.close()
    assert engine.closed_by == "qwen3-ranker-sum"
    gc.collect()


def test_what_is_cancelled_is_forgotten_at_once() -> None:
    """The pass in flight may take long, or for ever; cancelled requests do not pile up behind it."""
    engine = SumEngine(token_budget=11)
    dispatcher = Dispatcher(engine)
    engine.gate.clear()
    first = submit(dispatcher, request([10]))
    assert engine.in_pass.wait(10)
    others = [submit(dispatcher, request([10] * 3)) for _ in range(5)]
    assert len(dispatcher._waiting) == 5
    assert all(other.cancel() for other in others[1:])
    assert len(dispatcher._waiting) == 1
    engine.gate.set()
    assert first.result(10).values.tolist() == [101]
    assert others[0].result(10).values.tolist() == [101] * 3
    dispatcher.close()
    assert len(engine.passes) == 4


def test_listeners_hear_of_every_pass() -> None:
    engine = SumEngine(token_budget=1000)
    dispatcher = Dispatcher(engine)
    reports: list[PassReport] = []
    dispatcher.on_pass(reports.append)
    submit(dispatcher, request([1, 2, 3])).result(10)
    with pytest.raises(EngineError):
        submit(dispatcher, request([4], prefix=POISON)).result(10)
    dispatcher.close()
    assert [(each.requests, each.documents, each.tokens) for each in reports] == [(1, 3, 7), (1, 1, 5)]
    assert reports[0].error is None
    assert isinstance(reports[1].error, ZeroDivisionError)
