"""Which documents share a forward pass, and how a pass that failed is split. Pure functions of what waits.

The dispatcher fills one pass at a time from whoever waits; an offline job plans all passes of its input in advance.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TypeVar

from ..engines.base import EngineCapabilities
from ..prompt import EncodedRequest, length_order


class ByLength:
    """The documents of an encoded request, shortest first, of which passes take one group after another.

    Args:
        request: with at least one document.
    """

    def __init__(self, request: EncodedRequest) -> None:
        self.request = request
        self._order = length_order(request)
        self._tokens_before = [0, *accumulate(request.lengths[index] for index in self._order)]
        self._taken = 0
        #: Documents that no pass has taken.
        self.left = len(self._order)

    @property
    def tokens_left(self) -> int:
        """Tokens of those documents, without the prefix."""
        return self._tokens_before[-1] - self._tokens_before[self._taken]

    def take(self, budget: int, limit: int, *, at_least: int = 0) -> tuple[list[int], int]:
        """The next documents that fit a pass.

        Args:
            budget: tokens that the pass has left; the prefix counts too.
            limit: documents that the pass has left.
            at_least: take this many even if they exceed the budget.

        Returns:
            Indices of documents, by length, and the tokens that they and the prefix take; ([], 0) if none fits.
        """
        before, prefix, first = self._tokens_before, self.request.prefix_length, self._taken
        stop = min(len(self._order), first + limit)
        fitting = bisect_right(before, budget - prefix + before[first], first, stop + 1) - 1
        end = min(stop, max(fitting, first + at_least))
        if end <= first:
            return [], 0
        self._taken = end
        self.left = len(self._order) - end
        return self._order[first:end], prefix + before[end] - before[first]


Waiting = TypeVar("Waiting", bound=ByLength)


def fill_in_turns(waiting: deque[Waiting], capabilities: EngineCapabilities) -> list[tuple[Waiting, list[int]]]:
    """One pass: each request that waits contributes documents in turn, until the budget is used.

    The first request gets at least one document, and enough documents to be worth a long prefix: a quarter of the
    budget. Afterwards `waiting` holds what is left: requests that got nothing come first next time, requests that got
    something last.

    Returns:
        For each request in the pass, the indices of its documents in ascending order; a service that ranks may break
        ties by their order.
    """
    budget, limit = capabilities.token_budget, capabilities.documents_per_pass or sys.maxsize
    shared = capabilities.workers == 1
    filled: list[tuple[Waiting, list[int]]] = []
    skipped: list[Waiting] = []
    served: list[Waiting] = []
    while waiting and budget > 0 and limit > 0 and (shared or not filled):
        documents = waiting.popleft()
        room = budget if filled else max(budget, documents.request.prefix_length + budget // 4)
        indices, tokens = documents.take(room, limit, at_least=0 if filled else 1)
        if not indices:
            skipped.append(documents)
            continue
        budget -= tokens
        limit -= len(indices)
        filled.append((documents, sorted(indices)))
        if documents.left:
            served.append(documents)
    waiting.extendleft(reversed(skipped))
    waiting.extend(served)
    return filled


def fill_in_order(
    requests: Iterable[EncodedRequest], capabilities: EngineCapabilities
) -> list[list[tuple[int, list[int]]]]:
    """All passes of some requests: one request after another, each pass as full as the budget allows.

    The result depends on nothing but the arguments, so that a job that is resumed makes the same passes again.

    Returns:
        For each pass, for each request in it, the number of the request and the indices of its documents by length. A
        document that is longer than the budget has a pass of its own.
    """
    passes: list[list[tuple[int, list[int]]]] = []
    current: list[tuple[int, list[int]]] = []
    most = capabilities.documents_per_pass or sys.maxsize
    budget, limit = capabilities.token_budget, most
    for number, request in enumerate(requests):
        documents = ByLength(request)
        while documents.left:
            indices, tokens = documents.take(budget, limit, at_least=0 if current else 1)
            if indices:
                current.append((number, indices))
                budget -= tokens
                limit -= len(indices)
            if documents.left:  # the pass is full
                passes.append(current)
                current, budget, limit = [], capabilities.token_budget, most
    return [*passes, current] if current else passes


Share = TypeVar("Share")


def halves(shares: Sequence[Share]) -> list[Sequence[Share]]:
    """The two parts to try after a pass failed, so that one request's fault stays its own; none for one request."""
    middle = len(shares) // 2
    return [shares[:middle], shares[middle:]] if middle else []
