"""Hashes of the blocks of vLLM's prefix cache: those of the prefix that prompts share are computed once for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class PrefixHashes:
    """In the place of vLLM's function for the hashes of a request's blocks, with the same results.

    That function goes on behind the hashes that a request already has. Should a release of vLLM do otherwise, the
    number of hashes is wrong; this is noticed, and vLLM's own way is taken from then on.

    Args:
        inner: vLLM's function, from a request to the hashes of those of its blocks that have none.
        block_size: tokens of a block.
    """

    def __init__(self, inner: Callable[[Any], list[Any]], block_size: int) -> None:
        self._inner, self._block_size = inner, block_size
        self._blocks: list[int] = []
        self._hashes: list[Any] = []
        self._usable = True

    def expect(self, prefix: list[int]) -> None:
        """The requests that follow begin with these ids."""
        self._blocks = prefix[: len(prefix) // self._block_size * self._block_size]
        self._hashes = []

    def __call__(self, request: Any) -> list[Any]:
        """Hashes of the blocks of a request that has none yet, or has more tokens than it had."""
        ids = request.prompt_token_ids
        if not self._usable or not self._blocks or request.block_hashes or ids[: len(self._blocks)] != self._blocks:
            return self._inner(request)
        count = len(ids) // self._block_size
        if not self._hashes:
            found = self._inner(request)
            if len(found) == count:  # else a block is not what we take for one
                self._hashes = found[: len(self._blocks) // self._block_size]
            return found
        request.block_hashes.extend(self._hashes)
        found = self._inner(request)
        if len(self._hashes) + len(found) != count:
            self._usable = False
            request.block_hashes.clear()
            found = self._inner(request)
        return found
