"""The bounded queue: what is accepted and not answered yet, in requests, documents and tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import ApiError, unavailable
from .settings import ServerSettings

#: A guess for texts that are not encoded yet, on the low side for English: what passes is counted exactly afterwards.
BYTES_PER_TOKEN = 5


@dataclass
class Place:
    """What one request holds of the queue."""

    documents: int
    tokens: int


class Admission:
    """Lets requests in while there is room. Used from the event loop only.

    A request that is alone is always let in: the limits of a single request are smaller questions, asked elsewhere.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.requests = 0
        self.documents = 0
        self.tokens = 0
        self._pace = _Pace()

    @contextmanager
    def place(self, documents: int, text_bytes: int) -> Iterator[Place]:
        """Hold a place until the block ends, however it ends.

        Raises:
            ApiError: 413, the request is too large by itself; 503, the queue is full.
        """
        limit = self._settings.max_documents
        if documents > limit:
            raise ApiError(
                413, "too_many_documents", f"{documents} documents; one request may hold {limit}", param="documents"
            )
        place = Place(documents, text_bytes // BYTES_PER_TOKEN)
        self._check(place)
        self.requests += 1
        self.documents += place.documents
        self.tokens += place.tokens
        try:
            yield place
        finally:
            self.requests -= 1
            self.documents -= place.documents
            self.tokens -= place.tokens

    def count_tokens(self, place: Place, tokens: int) -> None:
        """Replace a place's guess by the count.

        Raises:
            ApiError: 413, or 503 if what is now known does not fit.
        """
        limit = self._settings.max_request_tokens
        if tokens > limit:
            raise ApiError(413, "too_many_tokens", f"{tokens} tokens; one request may hold {limit}", param="documents")
        others = self.tokens - place.tokens
        if self.requests > 1 and tokens > place.tokens and others + tokens > self._settings.max_queue_tokens:
            raise self._full("tokens")
        self.tokens = others + tokens
        place.tokens = tokens

    def _check(self, place: Place) -> None:
        if not self.requests:
            return
        if self.documents + place.documents > self._settings.max_queue_documents:
            raise self._full("documents")
        if self.tokens + place.tokens > self._settings.max_queue_tokens:
            raise self._full("tokens")

    def _full(self, what: str) -> ApiError:
        return unavailable("queue_full", f"the queue is full ({what}): send it again later", self.retry_after)

    def served(self, tokens: int, seconds: float) -> None:
        """The engine computed so many tokens in so many seconds."""
        self._pace.add(tokens, seconds)

    @property
    def retry_after(self) -> int:
        """Seconds until about half of the queue is gone at the engine's pace, from 1 to 60."""
        return max(1, min(60, math.ceil(self.tokens / 2 / self._pace.tokens_per_second)))


class _Pace:
    """Tokens per second of recent passes."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._decayed = time.monotonic()

    def add(self, tokens: int, seconds: float) -> None:
        now = time.monotonic()
        weight = 0.5 ** ((now - self._decayed) / 30)
        self._decayed = now
        self._tokens = self._tokens * weight + tokens
        self._seconds = self._seconds * weight + seconds

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds if self._seconds and self._tokens else 10_000.0


class BodyBudget:
    """Bytes of request bodies in memory, those still being read included."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, count: int) -> None:
        """Hold more.

        Raises:
            ApiError: 503, too much is held by all requests together.
        """
        if self.held and self.held + count > self._limit:
            raise unavailable("queue_full", "too many bytes of requests are in memory: send it again later", 1)
        self.held += count

    def give_back(self, count: int) -> None:
        """Hold less."""
        self.held -= count
