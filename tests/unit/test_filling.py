"""Which documents share a pass, without an engine: nothing lost, nothing twice, nothing over the budget."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_ranker_plugins.config import is_secret
from qwen3_ranker_plugins.dispatch.filling import ByLength, fill_in_order, fill_in_turns, halves
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
    waiting, taken = deque(everybody), []
    while waiting:
        filled = fill_in_turns(waiting, capabilities)
        assert filled, "every pass takes something"
        assert all(indices == sorted(indices) for _, indices in filled)
        taken += [(everybody.index(each), index) for each, indices in filled for index in indices]
    assert sorted(taken) == [(n, i) for n, (_, lengths) in enumerate(sizes) for i in range(len(lengths))]


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
