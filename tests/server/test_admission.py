"""Estimates of how long a request would take, and how they are corrected; with a clock of the test's own."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest

from qwen3_ranker_plugins.server.admission import DEADLINE, LONGEST_WAIT, Admission
from qwen3_ranker_plugins.server.errors import ApiError
from qwen3_ranker_plugins.server.settings import ServerSettings

BYTES = 5_000  # 1,000 tokens


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("qwen3_ranker_plugins.server.admission.time", clock)
    return clock


@pytest.fixture
def admission(clock: Clock) -> Admission:
    """The engine computes 10,000 tokens a second, so that each request adds a tenth of a second."""
    admission = Admission(ServerSettings())
    admission.served(20_000, 2.0, token_budget=20_000)
    return admission


def accepted(admission: Admission, clock: Clock, *, deadline: float) -> int:
    """How many requests of 1,000 tokens are accepted at the same moment."""
    token = DEADLINE.set(clock.now + deadline)
    try:
        with suppress(ConnectionError), ExitStack() as stack:
            for _ in range(100):
                with suppress(ApiError):
                    stack.enter_context(admission.place(1, BYTES))
            found = admission.requests
            gone()
    finally:
        DEADLINE.reset(token)
    return found


def take(admission: Admission, clock: Clock, *, others: int, seconds: float, deadline: float = 60.0) -> None:
    """One request that waits for others of the same size and takes so long; it is given up at its deadline."""
    began = clock.now
    token = DEADLINE.set(began + deadline)
    try:
        with suppress(ConnectionError), ExitStack() as stack:
            for _ in range(others):
                stack.enter_context(admission.place(1, BYTES))
            with suppress(TimeoutError, ApiError), admission.place(1, BYTES):
                clock.now += min(seconds, deadline)
                if seconds > deadline:
                    given_up()
            clock.now = began
            gone()
    finally:
        DEADLINE.reset(token)


def given_up() -> None:
    raise TimeoutError


def gone() -> None:
    """The clients of the others leave, which says nothing about the pace."""
    raise ConnectionError


def test_requests_are_accepted_until_three_quarters_of_the_deadline_are_full(
    admission: Admission, clock: Clock
) -> None:
    assert accepted(admission, clock, deadline=1.01) == 7
    assert accepted(admission, clock, deadline=2.01) == 15


def test_a_request_waits_for_others_for_a_limited_time(admission: Admission, clock: Clock) -> None:
    """Without a deadline of its own; long requests may wait longer, because they take long themselves."""
    token = LONGEST_WAIT.set(2.0)
    try:
        assert accepted(admission, clock, deadline=120.0) == 21
    finally:
        LONGEST_WAIT.reset(token)
    token = LONGEST_WAIT.set(0.2)
    try:
        assert accepted(admission, clock, deadline=120.0) == 11, "each takes 0.1 s, and waits for ten others"
    finally:
        LONGEST_WAIT.reset(token)


def test_a_request_is_refused_before_its_body_is_read(admission: Admission, clock: Clock) -> None:
    admission.expect(BYTES, 0.01)  # nobody waits
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(admission.place(1, BYTES))
        admission.expect(BYTES, 0.9)
        with pytest.raises(ApiError) as refused:
            admission.expect(BYTES, 0.7)
        assert (refused.value.status, refused.value.kind) == (503, "queue_full")
        admission.expect(BYTES // 5, 0.7)  # a shorter one gets its turn earlier


def test_a_tokenizer_that_is_slower_than_the_engine_is_noticed(admission: Admission, clock: Clock) -> None:
    for _ in range(50):
        take(admission, clock, others=4, seconds=1.0)  # estimated at 0.5 s
    assert accepted(admission, clock, deadline=1.0) == 3
    for _ in range(100):
        take(admission, clock, others=4, seconds=0.5)
    assert accepted(admission, clock, deadline=1.01) == 7


def test_requests_that_were_given_up_count_with_what_they_waited(admission: Admission, clock: Clock) -> None:
    for _ in range(50):
        take(admission, clock, others=4, seconds=3.0, deadline=1.0)
    # Such requests are refused as soon as they are estimated at 0.75 s, so nothing more is learned from them.
    assert accepted(admission, clock, deadline=1.0) == 4


def test_a_client_that_leaves_says_nothing_about_the_pace(admission: Admission, clock: Clock) -> None:
    with admission.place(1, BYTES):
        for _ in range(50):
            with suppress(ConnectionError), admission.place(1, BYTES):
                clock.now += 5.0
                gone()
    assert accepted(admission, clock, deadline=1.01) == 7


def test_a_request_alone_is_always_accepted(admission: Admission, clock: Clock) -> None:
    for _ in range(50):
        take(admission, clock, others=4, seconds=50.0)
    assert accepted(admission, clock, deadline=0.01) == 1
