"""How requests share the tokenizer: a long request is encoded in parts, large requests one after another."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol

from ..types import Pieces
from .beginning import SUFFIX_CHARACTERS
from .encoder import EncodedRequest, Encoder

# For an engine on a GPU, a request of at least this many characters (about 10,000 tokens) is queued in parts, so that
# the GPU does not idle during the milliseconds that encoding takes. The parts end at these fractions of the request.
# Encoding and laying out a part takes a fifth to a third of the time that the GPU needs for it, so each part keeps the
# GPU busy for about as long as the next one takes to be ready.
_LONG_REQUEST = 40_000
PARTS = (0.08, 0.3, 1.0)

#: Encoding checks for cancellation each time it has encoded this many characters, which takes about 0.1 s.
LONGEST_TURN_CHARACTERS = 262_144

# The longest time in seconds that a request waits for another one to be encoded.
_LONGEST_WAIT = 0.02
# Texts of fewer characters (about 5,000 tokens) gain little from more than a few cores, so several such batches are
# encoded at the same time.
_SMALL_BATCH = 20_000
#: Number of such batches.
SMALL_BATCHES = max(1, (os.cpu_count() or 1) // 4)


def growing_parts(texts: list[str]) -> list[list[str]]:
    """Split texts into the parts that are queued one after another; a short request is one part."""
    work = list(accumulate(len(text) + SUFFIX_CHARACTERS for text in texts))
    if not work or work[-1] < _LONG_REQUEST:
        return [texts]
    ends = [min(bisect_left(work, share * work[-1]) + 1, len(texts)) for share in PARTS]
    return [texts[start:end] for start, end in pairwise([0, *ends]) if start < end]


class Asked(Protocol):
    """What the documents of a request are encoded with; see `types.Request`."""

    query: str
    instruction: str | None
    max_document_tokens: int | None
    pieces: Pieces | None


def encode_in_turn(encoder: Encoder, asked: Asked, documents: Sequence[str]) -> EncodedRequest:
    """Encode documents of a request as soon as the other requests of this process leave room for it.

    Large requests that arrive together are encoded one after another, so that the engine gets the first one early: the
    tokenizer spreads one batch over all cores, so batches that are encoded at the same time all finish late. No request
    waits longer than `_LONGEST_WAIT` for another.
    """
    batches = _batches.small if sum(map(len, documents)) < _SMALL_BATCH else _batches.large
    has_turn = batches.acquire(timeout=_LONGEST_WAIT)
    try:
        arguments = (asked.query, documents, asked.instruction, asked.max_document_tokens)
        return encoder.encode(*arguments) if asked.pieces is None else encoder.encode(*arguments, asked.pieces)
    finally:
        if has_turn:
            batches.release()


class _Batches:
    """What may be encoded at the same time in this process: one large batch and `SMALL_BATCHES` small ones."""

    def __init__(self) -> None:
        self.large = threading.Semaphore(1)
        self.small = threading.Semaphore(SMALL_BATCHES)


_batches = _Batches()


def _new_locks() -> None:
    """Replace the locks in a forked child: a thread of the parent, which does not exist here, may have held one."""
    global _batches  # noqa: PLW0603
    _batches = _Batches()


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_new_locks)
