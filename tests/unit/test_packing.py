"""The layout of a pass, and the block masks and work items made from it, against the rule who sees whom."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import BlockMask

from qwen3_ranker_plugins.engines.attention.flex import TILE, FlexLayout
from qwen3_ranker_plugins.engines.attention.layout import PackedPass, pack, padded_length
from qwen3_ranker_plugins.engines.attention.varlen import find_long_segments, to_device
from qwen3_ranker_plugins.engines.attention.work_items import list_work_items
from qwen3_ranker_plugins.engines.packed.buffers import PassBuffers, size_class
from qwen3_ranker_plugins.prompt import EncodedRequest, FlatSegments

# Documents of several tiles and work items, and few of them: the rule is a matrix of all pairs of tokens.
requests = st.lists(
    st.tuples(st.integers(0, 300), st.lists(st.integers(1, 400), min_size=1, max_size=6)), min_size=1, max_size=3
)


def make(shapes: list[tuple[int, list[int]]]) -> list[EncodedRequest]:
    """Requests whose token ids say where they come from."""
    made = []
    for number, (prefix, documents) in enumerate(shapes):
        segments = [[10_000 * number + 10 * index + 1] * length for index, length in enumerate(documents)]
        made.append(EncodedRequest([10_000 * number] * prefix, segments, [0] * len(documents)))
    return made


@given(requests, st.booleans())
@settings(max_examples=25, deadline=None)
def test_ids_that_come_in_one_buffer_are_laid_out_like_lists(shapes, mixed: bool) -> None:
    given_lists = make(shapes)
    sent = [
        each if mixed and number % 2 else replace(each, segments=FlatSegments.of(each.segments))
        for number, each in enumerate(given_lists)
    ]
    received = pickle.loads(pickle.dumps(sent))  # noqa: S301
    expected, found = pack(given_lists), pack(received)
    for name in ("token_ids", "position_ids", "prefix_start", "prefix_end", "segment_start", "last_positions"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)
    assert found.blocks == expected.blocks
    for lists, flat in zip(given_lists, received, strict=True):
        assert list(flat.segments) == lists.segments
        assert (flat.lengths, flat.num_tokens) == (lists.lengths, lists.num_tokens)
        assert flat.prompt(len(flat.segments) - 1) == lists.prompt(len(lists.segments) - 1)
        assert flat.take([0]).segments == lists.take([0]).segments
        assert flat.segments[-1:] == lists.segments[-1:]


def visible(packed: PackedPass) -> NDArray[np.bool_]:
    """The rule itself: earlier tokens of one's own segment, and one's request's prefix."""
    position = np.arange(packed.num_tokens)
    segment, owner = np.zeros((2, packed.num_tokens), dtype=np.int16)
    is_prefix = np.zeros(packed.num_tokens, dtype=bool)
    number = 0
    for request, block in enumerate(packed.blocks):
        segment[block.prefix_start : block.prefix_end] = number
        is_prefix[block.prefix_start : block.prefix_end] = True
        number += 1
        owner[block.prefix_start : block.groups[-1].end] = request
        for group in block.groups:
            for start in range(group.start, group.end, group.length):
                segment[start : start + group.length] = number
                number += 1
    same_segment = segment[:, None] == segment[None]
    own_prefix = (owner[:, None] == owner[None]) & is_prefix[None]
    return (same_segment | own_prefix) & (position[None] <= position[:, None])


@given(requests)
def test_layout(shapes: list[tuple[int, list[int]]]) -> None:
    made = make(shapes)
    packed = pack(made)
    assert packed.num_tokens == sum(len(r.prefix) + sum(map(len, r.segments)) for r in made)
    assert packed.num_documents == sum(len(r.segments) for r in made)
    ends = iter(packed.last_positions)
    for request in made:
        for segment in request.segments:
            end = next(ends)
            assert packed.token_ids[end - len(segment) + 1 : end + 1].tolist() == segment
            assert packed.position_ids[end - len(segment) + 1 : end + 1].tolist() == list(
                range(len(request.prefix), len(request.prefix) + len(segment))
            )
    for request, block in zip(made, packed.blocks, strict=True):
        prefix = slice(block.prefix_start, block.prefix_end)
        assert packed.token_ids[prefix].tolist() == request.prefix
        assert packed.position_ids[prefix].tolist() == list(range(len(request.prefix)))
        assert [g.length for g in block.groups] == sorted({len(segment) for segment in request.segments})


@settings(max_examples=15)
@given(requests)
def test_block_mask_is_the_rule(shapes: list[tuple[int, list[int]]]) -> None:
    packed = pack(make(shapes))
    layout = FlexLayout(packed, torch.device("cpu"))
    assert (packed.num_tokens + layout.padding) % TILE == 0
    check_mask(layout.mask, packed)


@settings(max_examples=40)
@given(requests, requests, st.sampled_from([16, 64, 128]))
def test_buffers_that_held_another_pass_hold_this_one_and_its_work_items_are_the_rule(
    before: list[tuple[int, list[int]]], shapes: list[tuple[int, list[int]]], tokens: int
) -> None:
    """Each token has one work item, whose keys hold all that it may see; it masks by segment and order only."""
    first, packed = pack(make(before)), pack(make(shapes))
    lengths = [
        size_class(one.num_tokens, one.num_documents, 4, num_requests=max(len(one.blocks) * tokens // 64, 1))
        for one in (first, packed)
    ]
    buffers = PassBuffers(max(lengths), torch.device("cpu"), tokens_per_item=tokens)
    for one in (first, packed):
        buffers.write(one)
    padding = [0] * (buffers.length - packed.num_tokens)
    assert buffers.token_ids.tolist() == [*packed.token_ids.tolist(), *padding]
    assert buffers.position_ids.tolist() == [*packed.position_ids.tolist(), *padding]
    assert buffers.last_positions[: packed.num_documents].tolist() == packed.last_positions.tolist()
    assert not buffers.last_positions[packed.num_documents :].any()

    expected, seen = visible(packed), np.zeros((packed.num_tokens,) * 2, dtype=np.int8)
    segment_start = buffers.segment_start.numpy()
    for start, end, prefix_start, prefix_end, own_start in buffers.work_items.tolist():
        assert end - start <= tokens
        assert prefix_start == prefix_end or own_start >= prefix_end
        token, own = np.arange(start, end)[:, None], np.arange(own_start, end)[None]
        seen[start:end, prefix_start:prefix_end] += 1
        seen[start:end, own_start:end] += (segment_start[start:end, None] <= own) & (own <= token)
    assert (seen == expected).all()


def test_buffers_refuse_more_requests_than_they_have_work_items_for() -> None:
    buffers = PassBuffers(256, torch.device("cpu"), tokens_per_item=64)
    with pytest.raises(ValueError, match="40 work items in buffers for 12"):
        buffers.write(pack(make([(1, [5])] * 20)))
    assert size_class(120, 20, 8, num_requests=20) == 1280


@settings(max_examples=20)
@given(requests, st.sampled_from([1, 100, 300]))
def test_causal_attention_over_the_sequences_of_long_documents_is_the_rule(
    shapes: list[tuple[int, list[int]]], shortest: int
) -> None:
    """With the mask of FlashAttention's kernels, which is aligned to the last query and the last key."""
    packed = pack(make(shapes))
    long = find_long_segments(packed, shortest)
    lengths = [
        length for prefix, documents in shapes for length in sorted(documents) if length >= max(shortest, prefix)
    ]
    if long is None:
        assert not lengths
        return
    tensors = to_device(long, torch.device("cpu"))
    taken = np.zeros(packed.num_tokens, dtype=bool)
    taken[long.queries] = True
    assert len(long.queries) == sum(lengths)
    assert (np.sort([*long.queries, *long.others]) == np.arange(packed.num_tokens)).all()
    assert len(long.keys) <= 2 * packed.num_tokens
    expected = visible(packed)
    for sequences, computed in ((tensors.sequences, long.queries), (tensors.last_sequences, tensors.last_queries)):
        seen = np.zeros((packed.num_tokens,) * 2, dtype=np.int8)
        keys_of = np.diff(sequences.key_bounds.numpy())
        for number, (queries, keys) in enumerate(zip(sequences.query_lengths.tolist(), keys_of, strict=True)):
            first, start = int(sequences.query_bounds[number]), int(sequences.key_bounds[number])
            assert first + queries <= sequences.query_bounds[number + 1]  # what a kernel without lengths would compute
            if number % 2:
                assert queries == keys == 0
                continue
            assert queries <= sequences.most_queries
            assert keys <= sequences.most_keys
            columns = tensors.keys.numpy()[start : start + keys]
            seen[np.ix_(range(first, first + queries), columns)] += np.tri(queries, keys, keys - queries, dtype=np.int8)
        rows = np.asarray(computed)
        assert (seen[rows] == expected[rows]).all()
        assert np.count_nonzero(seen) == np.count_nonzero(expected[rows])
    tokens = 8
    items = np.zeros(packed.num_tokens, dtype=int)
    for start, end, *_ in list_work_items(packed, tokens, shortest).tolist():
        items[start:end] += 1
    assert (items == ~taken).all()


def check_mask(mask: BlockMask, packed: PackedPass) -> None:
    """Each pair of tokens, and each tile."""
    length = mask.seq_lengths[0]
    rows, columns = torch.arange(length)[:, None], torch.arange(length)[None]
    by_token = mask.mask_mod(torch.tensor(0), torch.tensor(0), rows, columns).numpy()

    expected = visible(packed)
    assert (by_token[: packed.num_tokens, : packed.num_tokens] == expected).all()
    assert not by_token[: packed.num_tokens, packed.num_tokens :].any()

    shape = length // TILE, length // TILE

    def listed(counts: torch.Tensor, indices: torch.Tensor) -> NDArray[np.bool_]:
        found = np.zeros(shape, dtype=bool)
        for row in range(shape[0]):
            found[row, indices[0, 0, row, : counts[0, 0, row]].numpy()] = True
        return found

    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    partial, full = listed(mask.kv_num_blocks, mask.kv_indices), listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    per_tile = by_token.reshape(shape[0], TILE, shape[1], TILE).sum(axis=(1, 3))
    assert not (partial & full).any()
    assert (per_tile[full] == TILE * TILE).all(), "a full tile is not masked, so every pair must be visible"
    assert (per_tile[~(partial | full)] == 0).all(), "a tile that is not listed is skipped"


def test_few_padded_lengths_and_little_padding() -> None:
    lengths = {padded_length(tokens) for tokens in range(1, 32_769)}
    assert len(lengths) < 40
    waste = [padded_length(tokens) / tokens for tokens in range(1024, 32_769, 7)]
    assert max(waste) <= 1.26
    assert np.mean(waste) < 1.12
