"""The hashes of shared blocks must be vLLM's own, or its cache would answer for other prompts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from qwen3_ranker_plugins.engines.vllm.block_hashes import PrefixBlockHasher

BLOCK = 4
HEAD = list(range(10))  # two blocks and a half


class Hasher:
    """Hashes as vLLM makes them: each block's with those before it, after those that a request has."""

    def __init__(self) -> None:
        self.blocks = 0

    def __call__(self, request: Any) -> list[Any]:
        found = [tuple(request.prompt_token_ids[: end * BLOCK]) for end in range(1, self.count(request) + 1)]
        new = found[len(request.block_hashes) :]
        self.blocks += len(new)
        return new

    def count(self, request: Any) -> int:
        return len(request.prompt_token_ids) // BLOCK


class FromTheStart(Hasher):
    """As a release that does not look at what a request has."""

    def __call__(self, request: Any) -> list[Any]:
        return super().__call__(SimpleNamespace(prompt_token_ids=request.prompt_token_ids, block_hashes=[]))


def hashes(hasher: Callable[[Any], list[Any]], ids: list[int]) -> list[Any]:
    """As vLLM's request collects them."""
    request = SimpleNamespace(prompt_token_ids=ids, block_hashes=[])
    request.block_hashes.extend(hasher(request))
    return request.block_hashes


def test_the_prefix_is_hashed_once_and_all_hashes_are_the_same() -> None:
    prompts = [HEAD + [100 + number] * 7 for number in range(5)] + [[7, *HEAD], [], HEAD[:3]]
    inner = Hasher()
    shared = PrefixBlockHasher(inner, BLOCK)
    shared.expect(HEAD)
    assert [hashes(shared, ids) for ids in prompts] == [hashes(Hasher(), ids) for ids in prompts]
    assert inner.blocks == 4 + 4 * 2 + 2

    other = [1, *HEAD]
    shared.expect(other)
    assert hashes(shared, [*other, 5]) == hashes(Hasher(), [*other, 5])


def test_a_release_that_hashes_otherwise_is_left_alone() -> None:
    for hasher, block in ((FromTheStart(), BLOCK), (Hasher(), BLOCK + 1)):
        shared = PrefixBlockHasher(hasher, block)
        shared.expect(HEAD)
        for number in range(3):
            ids = HEAD + [100 + number] * 7
            assert hashes(shared, ids) == hashes(Hasher(), ids)
