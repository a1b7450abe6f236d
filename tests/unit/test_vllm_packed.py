"""Rows of many documents: written and read back, they are the requests that they were written from."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qwen3_ranker_plugins.engines.attention.layout import PackedPass, pack
from qwen3_ranker_plugins.engines.token_rows import PREAMBLE, TokenRow, marker_id, read_rows, write_rows
from qwen3_ranker_plugins.engines.vllm.packed.task import check_release
from qwen3_ranker_plugins.errors import EngineError
from qwen3_ranker_plugins.prompt import EncodedRequest, ModelTokenizer

MARKER = 1000

ids = st.lists(st.integers(0, 999), max_size=12)
made = st.builds(
    lambda prefix, documents, suffix: EncodedRequest(
        prefix, [[*document, *suffix] for document in documents], [0] * len(documents)
    ),
    ids,
    st.lists(ids.filter(len), min_size=1, max_size=9),
    st.lists(st.integers(0, 999), max_size=3),  # without a suffix documents end differently
)


def read(rows: list[TokenRow]) -> PackedPass:
    """As vLLM hands them to the model: concatenated, each with positions from 0."""
    token_ids = np.concatenate([np.array(row.token_ids) for row in rows])
    return read_rows(token_ids, np.concatenate([np.arange(len(row.token_ids)) for row in rows]), MARKER)


def prompts(packed: PackedPass) -> list[tuple[list[int], list[int]]]:
    """(ids that the last token of each document sees, their positions)."""
    seen = []
    for last in packed.last_positions:
        prefix = np.arange(packed.prefix_start[last], packed.prefix_end[last])
        visible = np.concatenate([prefix, np.arange(packed.segment_start[last], last + 1)])
        seen.append((packed.token_ids[visible].tolist(), packed.position_ids[visible].tolist()))
    return seen


@given(st.lists(made, min_size=1, max_size=4), st.integers(1, 80))
def test_every_document_comes_back_with_its_prefix(requests: list[EncodedRequest], room: int) -> None:
    rows = [(request, row) for request in requests for row in write_rows(request, MARKER, room)]
    found = iter(prompts(read([row for _, row in rows])))
    for request, row in rows:
        assert len(row.token_ids) <= room or len(row.documents) == 1
        for index in row.documents:
            prompt, positions = next(found)
            assert prompt == request.prompt(index)
            assert positions == list(range(len(prompt)))
    assert next(found, None) is None
    for request in requests:
        written = [index for owner, row in rows if owner is request for index in row.documents]
        assert sorted(written) == list(range(len(request.segments)))


@given(made)
def test_the_layout_is_that_of_a_packed_pass(request: EncodedRequest) -> None:
    """After the first two tokens, if all documents end alike."""
    rows = list(write_rows(request, MARKER, sys.maxsize))
    assume(len(rows) == 1)
    packed, expected = read(rows), pack([request])
    assert packed.token_ids[PREAMBLE:].tolist() == expected.token_ids.tolist()
    assert packed.position_ids[PREAMBLE:].tolist() == expected.position_ids.tolist()
    assert (packed.segment_start[PREAMBLE:] - PREAMBLE).tolist() == expected.segment_start.tolist()
    in_order = dict(zip(rows[0].documents, (packed.last_positions - PREAMBLE).tolist(), strict=True))
    assert [in_order[index] for index in range(len(in_order))] == expected.last_positions.tolist()
    groups = [
        [(group.start - PREAMBLE, group.count, group.length) for group in block.groups] for block in packed.blocks
    ]
    assert groups == [[], [(group.start, group.count, group.length) for group in expected.blocks[0].groups]]


def test_what_is_no_row_has_no_document() -> None:
    zeros = read_rows(np.zeros(50, dtype=np.int64), np.zeros(50, dtype=np.int64), MARKER)  # vLLM's dummy step
    assert (zeros.num_tokens, zeros.num_documents) == (50, 0)
    plain = read_rows(np.arange(9), np.arange(9), MARKER)
    assert (plain.num_tokens, plain.num_documents) == (9, 0)
    assert plain.token_ids.tolist() == list(range(9))
    cut = read_rows(np.array([3, 4, 5, MARKER, 6, MARKER, 7, 8]), np.arange(8), MARKER)
    assert prompts(cut) == [([5, 3, 6, 4], [0, 1, 2, 3])]
    assert cut.num_tokens == 8


def test_a_template_with_the_marker_is_refused(qwen3_tokenizer: ModelTokenizer) -> None:
    assert marker_id(qwen3_tokenizer) == 151643
    with pytest.raises(EngineError, match=r"the template uses <\|endoftext\|>"):
        list(write_rows(EncodedRequest([1, MARKER, 2], [[3]], [0]), MARKER, 100))
    with pytest.raises(EngineError, match=r"the template uses <\|endoftext\|>"):
        list(write_rows(EncodedRequest([1], [[MARKER, 3]], [0]), MARKER, 100))


@pytest.mark.parametrize("version", ["0.25.9", "0.9.1", "dev"])
def test_releases_that_are_too_old(version: str) -> None:
    with pytest.raises(RuntimeError, match="too old for the engine 'vllm_packed'"):
        check_release(version)


def test_releases_that_are_not() -> None:
    for version in ("0.26.0", "0.32.0+cpu", "0.40.1", "1.0.0"):
        check_release(version)
