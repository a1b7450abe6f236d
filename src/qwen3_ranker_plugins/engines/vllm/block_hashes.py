"""Hashes of the blocks of vLLM's prefix cache, computed once for the blocks that prompts share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class PrefixBlockHasher:
    """Replaces vLLM's function that hashes the blocks of a request, with the same results.

    vLLM's function continues after the hashes that a request already has. If a release of vLLM works differently, the
    number of hashes is wrong; this is detected, and all later requests are left to vLLM's function.

    Args:
        inner: vLLM's function: takes a request, returns the hashes of those of its blocks that have none.
        block_size: tokens of a block.
    """

    def __init__(self, inner: Callable[[Any], list[Any]], block_size: int) -> None:
        self._inner, self._block_size = inner, block_size
        self._prefix_ids: list[int] = []  # whole blocks only
        self._prefix_hashes: list[Any] = []
        self._usable = True

    def expect(self, prefix: list[int]) -> None:
        """Announce that the requests that follow begin with these ids."""
        self._prefix_ids = prefix[: len(prefix) // self._block_size * self._block_size]
        self._prefix_hashes = []

    def __call__(self, request: Any) -> list[Any]:
        """Hashes of those blocks of a request that have none yet."""
        ids, prefix_ids = request.prompt_token_ids, self._prefix_ids
        if not self._usable or not prefix_ids or request.block_hashes or ids[: len(prefix_ids)] != prefix_ids:
            return self._inner(request)
        count = len(ids) // self._block_size
        if not self._prefix_hashes:
            found = self._inner(request)
            if len(found) == count:  # otherwise vLLM's blocks have a different size
                self._prefix_hashes = found[: len(prefix_ids) // self._block_size]
            return found
        request.block_hashes.extend(self._prefix_hashes)
        found = self._inner(request)
        if len(self._prefix_hashes) + len(found) != count:
            self._usable = False
            request.block_hashes.clear()
            found = self._inner(request)
        return found
