"""Which documents share a forward pass, and how a failed pass is split. No threads and no clocks.

The dispatcher fills one pass at a time from the requests that wait; an offline job plans the passes of a window.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from ..engines.base import EngineCapabilities
from ..prompt import EncodedRequest, length_order

# A request gets at least 1/_LEAST_SHARE of a pass, because each request in a pass adds the cost of its prefix.
_LEAST_SHARE = 4
# A request of at most 1/_SHORT of a full pass is short. While short requests arrive and long ones wait, a pass has
# about 1/_SMALL_PASS of the size of a full one, so that short requests wait less. The fixed cost of the additional
# passes is a few percent.
_SHORT = 6
_SMALL_PASS = 3
# Number of passes that stay small after a short request: a client that sends one after another is expected to send the
# next one in that time.
_SMALL_PASSES = 6
# Requests that were served before get at least 1/_OWED of the computed tokens, even if new ones keep arriving.
_OWED = 6
# A pass is full if this many requests in a row found no room. A thousand may wait, and others wait while it is filled.
_MOST_MISSES = 32


class Owner:
    """A request with one or more parts in the queue.

    Attributes:
        served: whether a pass has taken some of its documents.
    """

    served: bool = False


@dataclass
class Turns:
    """What `fill_in_turns` remembers from one pass to the next.

    Attributes:
        small_passes: number of the next passes that are small, because a short request arrived recently.
        owed: number of tokens that the requests that were served before have not had of their part.
    """

    small_passes: int = 0
    owed: int = 0


class ByLength:
    """The documents of an encoded request, shortest first. Passes take one group of them after another.

    Args:
        request: a request with at least one document.
        owner: the whole request, if `request` is one of several parts.
        first: position of its first document among those of the owner.

    Attributes:
        left: number of documents that no pass has taken.
        tokens_left: number of tokens of these documents, without the prefix.
    """

    def __init__(self, request: EncodedRequest, owner: Owner | None = None, first: int = 0) -> None:
        self.request = request
        self.owner = Owner() if owner is None else owner
        self.first = first
        self._order = length_order(request)
        self._tokens_before = [0, *accumulate(request.lengths[index] for index in self._order)]
        self._taken = 0
        self.left = len(self._order)
        self.tokens_left = self._tokens_before[-1]

    def take(self, budget: int, limit: int, *, at_least: int = 0) -> tuple[list[int], int]:
        """The next documents that fit a pass.

        Args:
            budget: number of tokens that the pass has left, for the documents and the prefix.
            limit: number of documents that the pass may still take.
            at_least: take this many even if they exceed the budget.

        Returns:
            Indices of documents, shortest first, and the number of tokens of these documents and the prefix; ([], 0) if
            none fits.
        """
        first = self._taken
        end, tokens = self.fitting(budget, limit, at_least=at_least)
        if end <= first:
            return [], 0
        self._taken = end
        self.owner.served = True
        self.left = len(self._order) - end
        self.tokens_left = self._tokens_before[-1] - self._tokens_before[end]
        return self._order[first:end], tokens

    @property
    def least_part(self) -> int:
        """Tokens of the smallest part that is worth its prefix: its documents have as many tokens, or are the last."""
        next_document = self.request.lengths[self._order[self._taken]] if self.left else 0
        return self.request.prefix_length + max(next_document, min(self.request.prefix_length, self.tokens_left))

    def fitting(self, budget: int, limit: int, *, at_least: int = 0) -> tuple[int, int]:
        """(position after the last document that `take` would take, number of tokens that it would return)."""
        before, first, prefix = self._tokens_before, self._taken, self.request.prefix_length
        stop = min(len(self._order), first + limit)
        fitting = bisect_right(before, budget - prefix + before[first], first, stop + 1) - 1
        end = max(first, min(stop, max(fitting, first + at_least)))
        return end, prefix + before[end] - before[first] if end > first else 0


Waiting = TypeVar("Waiting", bound=ByLength)


def fill_in_turns(
    waiting: deque[Waiting], capabilities: EngineCapabilities, turns: Turns | None = None
) -> list[tuple[Waiting, list[int]]]:
    """Fill one pass. The waiting requests share its token budget; those that no pass has served yet come first.

    A share is at least a quarter of the pass. The first request gets at least one document, and enough documents to
    justify the cost of a long prefix. The part of a share that a request does not need goes to the others. A short
    request is not split: if a pass has no room for it, the next one takes it. Its rest would repeat the prefix and wait
    longer than new requests do, because these come first. Afterwards `waiting` holds what is left; the requests that
    this pass serves are at its end.

    While requests that were served before are waiting, at least a sixth of all tokens is computed for them. What they
    did not get is owed to the one that was served least recently. It comes second in a pass as soon as the debt pays
    for a worthwhile part of it, and first if the debt has grown to a whole pass.

    Args:
        waiting: requests, or parts of them, in the order in which they arrived or were last served.
        capabilities: capabilities of the engine.
        turns: state that is kept between passes; None makes every pass a full one, in which new requests come first.

    Returns:
        For each part in the pass, the indices of its documents in ascending order, because a remote service may break
        ties by their order.
    """
    limit = capabilities.documents_per_pass or sys.maxsize
    owners: dict[Owner, list[Waiting]] = {}
    for each in sorted(waiting, key=lambda each: each.owner.served):
        owners.setdefault(each.owner, []).append(each)
    served = {owner for owner in owners if owner.served}
    budget = capabilities.token_budget
    if turns is not None and capabilities.workers == 1:
        budget = _pass_budget(owners, budget, turns)
    shares = _shares(owners, budget, capabilities, 0 if turns is None else turns.owed)
    rest = {owner: budget for owner in owners if owner in shares}
    taken: dict[Waiting, list[int]] = {}
    computed = computed_for_served = 0
    for rooms in (shares, rest):
        misses = 0
        for owner, most in rooms.items():
            if misses == _MOST_MISSES:
                break
            misses += 1
            parts, room = owners[owner], min(budget, most)
            if taken and taken.keys().isdisjoint(parts) and _should_wait(parts, room, limit, capabilities):
                continue
            for part in parts:
                at_least = 0 if taken else 1
                known = part.request.prefix_length if part in taken else 0
                least_room = part.request.prefix_length + capabilities.token_budget // _LEAST_SHARE
                room = room if taken else max(room, least_room)
                indices, tokens = part.take(room + known, limit, at_least=at_least) if part.left else ([], 0)
                if not indices:
                    continue
                misses = 0
                taken.setdefault(part, []).extend(indices)
                room -= tokens - known
                budget -= tokens - known
                limit -= len(indices)
                computed += tokens - known
                computed_for_served += tokens - known if owner in served else 0
    if turns is not None:
        owed = max(0, turns.owed + computed // _OWED - computed_for_served)
        turns.owed = min(owed, capabilities.token_budget) if served else 0
    left = [each for each in waiting if each.left]
    waiting.clear()
    waiting.extend(sorted(left, key=lambda each: each in taken))
    return [(part, sorted(indices)) for part, indices in taken.items()]


def _shares(
    owners: Mapping[Owner, Sequence[ByLength]], budget: int, capabilities: EngineCapabilities, owed: int
) -> dict[Owner, int]:
    """Number of tokens that each request may take of a pass before the rest is given out, in the order of taking.

    Args:
        owners: requests with their parts, new ones first.
        budget: number of tokens of the pass.
        capabilities: of the engine. With several workers, a call serves one request.
        owed: number of tokens that are owed to requests that were served before.
    """
    order = list(owners)
    one = capabilities.workers > 1  # requests gain nothing from sharing a call
    share = budget if one else max(budget // max(1, len(order)), budget // _LEAST_SHARE)
    due = next((owner for owner in order if owner.served), None)
    if due is None or due is order[0] or not _pays(owed, owners[due], budget, capabilities):
        return dict.fromkeys(order[:1] if one else order, share)
    order.remove(due)
    order.insert(0 if one or owed >= budget else 1, due)
    return {owner: owed if owner is due else share for owner in (order[:1] if one else order)}


def _pays(owed: int, parts: Sequence[ByLength], budget: int, capabilities: EngineCapabilities) -> bool:
    """Whether a debt pays for a part of a request that is worth its prefix, or for a whole call that it gets alone."""
    part = next(each for each in parts if each.left)
    if capabilities.workers == 1:
        return owed >= min(budget, part.least_part)
    _, cost = part.fitting(budget, capabilities.documents_per_pass or sys.maxsize, at_least=1)
    return owed >= min(budget, cost)


def _should_wait(parts: Sequence[ByLength], room: int, limit: int, capabilities: EngineCapabilities) -> bool:
    """Whether a request should leave the rest of a pass, `room` tokens and `limit` documents, to others.

    A new request should if it is short and does not fit; one that was served before, if the room is not worth its
    prefix.
    """
    left = [each for each in parts if each.left]
    if left and left[0].owner.served:
        return left[0].least_part > room
    needed = sum(each.request.prefix_length + each.tokens_left for each in left)
    if needed > capabilities.token_budget // _SHORT:
        return False
    return needed > room or sum(each.left for each in left) > limit


def _pass_budget(owners: Mapping[Owner, Sequence[ByLength]], full: int, turns: Turns) -> int:
    """Token budget of the next pass: smaller while short requests arrive and long ones wait."""
    needs = {
        owner: sum(each.request.prefix_length + each.tokens_left for each in parts) for owner, parts in owners.items()
    }
    short = sum(tokens for owner, tokens in needs.items() if not owner.served and tokens <= full // _SHORT)
    if short and any(tokens > full // _SMALL_PASS for tokens in needs.values()):
        turns.small_passes = _SMALL_PASSES
    if not turns.small_passes:
        return full
    turns.small_passes -= 1
    served = next((part for owner, parts in owners.items() if owner.served for part in parts if part.left), None)
    least = full // _OWED if served is None else max(full // _OWED, served.least_part)
    return min(full, max(full // _SMALL_PASS, short + least))


def fill_in_order(
    requests: Iterable[EncodedRequest], capabilities: EngineCapabilities
) -> list[list[tuple[int, list[int]]]]:
    """Plan all passes of a list of requests: one request after another, each pass as full as the budget allows.

    The result depends only on the arguments, so that a resumed job repeats the same passes.

    Returns:
        For each pass, a list with one entry for each request in it: the position of the request, and the indices of its
        documents, shortest first. A document that exceeds the budget gets a pass of its own.
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
    """The halves to retry after a pass failed, so that a faulty request fails alone; empty for a single request."""
    middle = len(shares) // 2
    return [shares[:middle], shares[middle:]] if middle else []
