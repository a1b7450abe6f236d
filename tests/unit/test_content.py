"""Hashes of large files: which bytes count."""

from __future__ import annotations

import hashlib
import io

import pytest

from qwen3_ranker_plugins.content import Sampling, add_content

#: Blocks of 4 bytes at 0, 48 and 96 of 100.
SAMPLING = Sampling(whole=64, samples=3, block=4)


def digest(content: bytes, size: int | None = None) -> str:
    found = hashlib.sha256()
    add_content(found, io.BytesIO(content), len(content) if size is None else size, SAMPLING)
    return found.hexdigest()


def changed(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("place", "counts"), [(0, True), (3, True), (4, False), (47, False), (48, True), (51, True), (96, True), (99, True)]
)
def test_of_a_large_file_evenly_spaced_blocks_count(place: int, counts: bool) -> None:
    content = bytes(range(100))
    assert (digest(changed(content, place)) != digest(content)) is counts


def test_of_a_small_file_every_byte_counts() -> None:
    content = bytes(range(64))
    assert len({digest(content), *(digest(changed(content, place)) for place in range(64))}) == 65


def test_what_was_written_after_the_size_was_read_does_not_count() -> None:
    assert digest(b"abcdef", size=3) == digest(b"abc")
