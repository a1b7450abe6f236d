"""Which documents share a pass, without an engine: nothing lost, nothing twice, nothing over the budget."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ranker_plugins.checks import is_secret
from qwen3_ranker_plugins.dispatch.filling import ByLength, Owner, Turns, fill_in_order, fill_in_turns, halves
from qwen3_ranker_plugins.engines.base import EngineCapabilities
from qwen3_ranker_plugins.prompt import EncodedRequest

REQUESTS = st.lists(
    st.tuples(st.integers(0, 40), st.lists(st.integers(1, 60), min_size=1, max_size=12)), min_size=1, max_size=8
)
CAPABILITIES = st.builds(
    EngineCapabilities, token_budget=st.integers(1, 120), documents_per_pass=st.none() | st.integers(1, 5)
)


def encoded(prefix: int, lengths: list[int]) -> EncodedRequest:
    return EncodedRequest([1] * prefix, [[2] * length for length in lengths], [0] * len(lengths))


@given(REQUESTS, CAPABILITIES)
def test_passes_in_order_hold_each_document_once_and_keep_the_limits(
    sizes: list[tuple[int, list[int]]], capabilities: EngineCapabilities
) -> None:
    requests = [encoded(*each) for each in sizes]
    passes = fill_in_order(requests, capabilities)
    taken = [(number, index) for each in passes for number, indices in each for index in indices]
    assert sorted(taken) == [(n, i) for n, (_, lengths) in enumerate(sizes) for i in range(len(lengths))]
    for each in passes:
        documents = sum(len(indices) for _, indices in each)
        tokens = sum(sizes[n][0] + sum(sizes[n][1][i] for i in indices) for n, indices in each)
        assert tokens <= capabilities.token_budget or documents == 1
        assert documents <= (capabilities.documents_per_pass or documents)
    assert passes == fill_in_order(requests, capabilities)


@given(REQUESTS, CAPABILITIES)
def test_passes_in_turns_hold_each_document_once(
    sizes: list[tuple[int, list[int]]], capabilities: EngineCapabilities
) -> None:
    everybody = [ByLength(encoded(*each)) for each in sizes]
    waiting, taken, turns = deque(everybody), [], Turns()
    while waiting:
        filled = fill_in_turns(waiting, capabilities, turns)
        assert filled, "every pass takes something"
        assert all(indices == sorted(indices) for _, indices in filled)
        taken += [(everybody.index(each), index) for each, indices in filled for index in indices]
    assert sorted(taken) == [(n, i) for n, (_, lengths) in enumerate(sizes) for i in range(len(lengths))]


def tokens(filled: list[tuple[ByLength, list[int]]]) -> int:
    return sum(each.request.prefix_length + sum(each.request.lengths[i] for i in indices) for each, indices in filled)


@given(REQUESTS, st.integers(200, 400))
def test_passes_in_turns_keep_the_budget(sizes: list[tuple[int, list[int]]], budget: int) -> None:
    waiting, turns = deque(ByLength(encoded(*each)) for each in sizes), Turns()
    while waiting:
        assert tokens(fill_in_turns(waiting, EngineCapabilities(token_budget=budget), turns)) <= budget


def test_who_has_had_nothing_comes_first_and_gets_a_share() -> None:
    long, other, short = (ByLength(encoded(5, [10] * count)) for count in (1000, 1000, 10))
    waiting, capabilities = deque([long, other]), EngineCapabilities(token_budget=1200)
    first = dict(fill_in_turns(waiting, capabilities))
    assert [len(first[each]) for each in (long, other)] == [60, 59]
    waiting.append(short)
    second = fill_in_turns(waiting, capabilities)
    assert second[0] == (short, list(range(10)))
    assert [each for each, _ in second[1:]] == [long, other]
    assert tokens(second) > 1190, "what the short one does not need goes to the others"
    many = deque(ByLength(encoded(5, [10] * 1000)) for _ in range(20))
    assert len(fill_in_turns(many, capabilities)) == 4, "each prefix costs tokens, so a share is not split further"


def test_short_requests_are_not_split_however_many_come() -> None:
    """The rest of one that is split would wait behind all who have had nothing, for as long as such requests arrive."""
    capabilities, turns = EngineCapabilities(token_budget=1200), Turns()
    everybody: list[ByLength] = []
    waiting: deque[ByLength] = deque()
    served: list[ByLength] = []
    for _ in range(30):
        new = [ByLength(encoded(20, [10] * 10)) for _ in range(12)]  # 120 tokens each: more than a pass holds
        everybody += new
        waiting.extend(new)
        filled = fill_in_turns(waiting, capabilities, turns)
        assert all(indices == list(range(10)) for _, indices in filled)
        assert tokens(filled) > 1000
        served += [each for each, _ in filled]
    assert served == everybody[: len(served)], "they are served in the order in which they came"


def under_a_stream(
    long: ByLength, capabilities: EngineCapabilities, short: EncodedRequest, crowd: int
) -> tuple[int, list[int]]:
    """Tokens that are computed until a long request is done while `crowd` short ones wait before each pass, and until
    each of these is done."""
    turns, waiting, came = Turns(), deque([long]), dict[ByLength, int]()
    clock, latencies = 0, []
    while long.left:
        assert clock < 1_000_000, "the long request starves"
        while len(waiting) - (long in waiting) < crowd:
            waiting.append(fresh := ByLength(short))
            came[fresh] = clock
        filled = fill_in_turns(waiting, capabilities, turns)
        clock += tokens(filled)
        latencies += [clock - came[each] for each, _ in filled if each is not long]
        assert all(len(indices) == len(short.segments) for each, indices in filled if each is not long)
    return clock, latencies


@pytest.mark.parametrize(
    ("prefix", "lengths", "factor"),
    [
        (5, [10] * 1000, 6.5), (5, [300] * 40, 6.5), (5, [1190] * 10, 6.5), (5, [2000] * 10, 6.5),
        (100, [10] * 1000, 12), (390, [10] * 1000, 12), (1190, [10] * 500, 12),
    ],
)  # fmt: skip
@pytest.mark.parametrize("crowd", [5, 8, 12, 40])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_long_request_ends_however_many_short_ones_come(
    prefix: int, lengths: list[int], factor: float, crowd: int, workers: int
) -> None:
    """It gets a sixth of all tokens, and at least half of its own are documents' where the prefix is long."""
    capabilities, short = EngineCapabilities(token_budget=1200, workers=workers), encoded(20, [10] * 10)
    alone, _ = under_a_stream(ByLength(encoded(prefix, lengths)), capabilities, short, 0)
    together, latencies = under_a_stream(ByLength(encoded(prefix, lengths)), capabilities, short, crowd)
    assert together <= factor * alone
    longest_part = max(1200, prefix + max(lengths))
    assert max(latencies) <= 1.5 * (crowd * short.num_tokens + longest_part) + longest_part


def test_what_was_served_before_has_no_priority_when_it_gets_its_part_anyway() -> None:
    capabilities, turns = EngineCapabilities(token_budget=1200), Turns()
    waiting = deque([ByLength(encoded(5, [10] * 5000))])
    for _ in range(5):
        waiting.append(ByLength(encoded(5, [10] * 10)))
        fill_in_turns(waiting, capabilities, turns)
        assert turns.owed == 0


def test_a_small_pass_has_room_for_a_long_document() -> None:
    """Without it, a request of long documents would wait for as long as short ones come."""
    long = ByLength(encoded(5, [500] * 30))
    waiting, turns, passes = deque([long]), Turns(), 0
    while long.left:
        waiting.append(ByLength(encoded(5, [10] * 10)))
        filled = fill_in_turns(waiting, EngineCapabilities(token_budget=1200), turns)
        assert tokens(filled) <= 800
        passes += 1
    assert passes <= 30


def test_parts_of_a_request_have_one_share() -> None:
    owner = Owner()
    parts = [ByLength(encoded(5, [10] * count), owner) for count in (20, 60, 500)]
    alone = ByLength(encoded(5, [10] * 500))
    filled = dict(fill_in_turns(deque([*parts, alone]), EngineCapabilities(token_budget=1200)))
    assert sum(len(filled.get(part, [])) for part in parts) <= len(filled[alone]) + 1
    fresh = ByLength(encoded(5, [10] * 10))
    waiting = deque([parts[2], fresh])
    assert fill_in_turns(waiting, EngineCapabilities(token_budget=1200))[0][0] is fresh, "a part that waits is not new"


def test_passes_are_small_while_short_requests_come() -> None:
    capabilities, turns = EngineCapabilities(token_budget=1200), Turns()
    waiting = deque([ByLength(encoded(5, [10] * 5000))])
    assert tokens(fill_in_turns(waiting, capabilities, turns)) > 1190
    waiting.append(ByLength(encoded(5, [10] * 10)))
    sizes = [tokens(fill_in_turns(waiting, capabilities, turns)) for _ in range(8)]
    assert all(size <= 400 for size in sizes[:6]), "the next short request would wait for less"
    assert all(size > 1190 for size in sizes[6:]), "none came"
    crowd = deque([ByLength(encoded(5, [10] * 5000)), *(ByLength(encoded(5, [10] * 10)) for _ in range(20))])
    assert tokens(fill_in_turns(crowd, capabilities, Turns())) > 1100, "many short requests need a full pass"


def test_a_failed_pass_is_halved_down_to_one_request() -> None:
    assert halves([1, 2, 3]) == [[1], [2, 3]]
    assert halves([1, 2]) == [[1], [2]]
    assert halves([1]) == []


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("api_key", "abc", True), ("apiKey", "abc", True), ("hf_token", "abc", True), ("api_keys", ["abc"], True),
        ("password", 1234, True), ("headers", {"X": "abc"}, True), ("url", "http://me:pass@host", True),
        ("url", "http://host/?key=abc", True), ("url", "http://host:8001/v1", False), ("tokenizer", "abc", False),
        ("api_key_env", "KEY", False), ("max_tokens", 5, False), ("max_num_batched_tokens", 5, False),
        ("pad_token_id", 5, False), ("classifier_from_token", ["no", "yes"], False), ("api_key", None, False),
        ("monkey", "abc", False),
    ],
)  # fmt: skip
def test_what_is_a_secret(name: str, value: object, secret: bool) -> None:
    assert is_secret(name, value) is secret
