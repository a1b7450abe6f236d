"""The bounded queue of requests that are accepted but not answered yet, counted in requests, documents and tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from .errors import ApiError, unavailable
from .settings import ServerSettings

#: Estimates the tokens of texts that are not encoded yet. The estimate is a little low for English, because accepted
#: texts are counted exactly when they are encoded.
BYTES_PER_TOKEN = 5

#: A pass with less than this share of the token budget spends its time on launching kernels, so that its rate does not
#: predict the rate at which a long queue is served.
_SHARE_OF_BUDGET = 1 / 8
#: A rate is measured over at least this many seconds of passes.
_SECONDS_OF_A_RATE = 1.0
#: Seconds after which a measured rate counts half as much.
_HALF_LIFE = 60.0
#: Tokens per second before anything was measured.
_UNKNOWN_PACE = 10_000.0
#: A request is accepted if its estimated time is at most this share of the time that is left, because estimates vary.
#: A longer queue would not be served faster, and what misses its deadline was computed in vain.
_SHARE_OF_DEADLINE = 0.75
#: A request may wait for others for this many times its own time, even if that is longer than `max_wait`.
_WAIT_OF_LONG = 10.0
#: Estimates of fewer seconds are not compared with what happened, because they leave out what every request takes.
_SHORT_WAIT = 0.1
#: Weight of each compared request, and the limit of what a comparison can say.
_WEIGHT = 0.1
_MOST_SLOWED = 10.0

#: The value of time.monotonic() at which the current request is answered with 504; set by the middleware.
DEADLINE: ContextVar[float] = ContextVar("qwen3_ranker_deadline")
#: Seconds that the current request may wait for others; set by the middleware if the client gave no deadline.
LONGEST_WAIT: ContextVar[float] = ContextVar("qwen3_ranker_longest_wait", default=math.inf)


@dataclass(eq=False)
class Place:
    """The share of the queue that one request occupies.

    Attributes:
        documents, tokens: its size.
        estimate: seconds that it takes at the engine's pace, the wait included; 0 if that is not known.
    """

    documents: int
    tokens: int
    estimate: float = 0.0


class Admission:
    """Accepts requests while there is room in the queue. Used from the event loop only.

    A request is always accepted if no other is in the queue. The limits of a single request are checked elsewhere.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.documents = 0
        self.tokens = 0
        self._places: set[Place] = set()
        self._pace = _Pace()
        # How many times as long as estimated requests take: the tokenizer or the sockets may be slower than the engine.
        self._slowed = 1.0

    @property
    def requests(self) -> int:
        """Number of requests that are accepted but not answered yet."""
        return len(self._places)

    @contextmanager
    def place(self, documents: int, text_bytes: int) -> Iterator[Place]:
        """Hold a place until the block ends, however it ends.

        Raises:
            ApiError: 413, the request is too large by itself; 503, the queue is full, or so long that the request's
                deadline would pass before its last score.
        """
        limit = self._settings.max_documents
        if documents > limit:
            raise ApiError(413, "too_many_documents", f"{documents} documents; the limit is {limit}", param="documents")
        place = Place(documents, text_bytes // BYTES_PER_TOKEN)
        self._check(place)
        self._places.add(place)
        self.documents += place.documents
        self.tokens += place.tokens
        began = time.monotonic()
        try:
            yield place
            self._compare(place, time.monotonic() - began)
        except BaseException:
            if time.monotonic() >= DEADLINE.get(math.inf):  # it takes longer still
                self._compare(place, time.monotonic() - began)
            raise
        finally:
            self._places.discard(place)
            self.documents -= place.documents
            self.tokens -= place.tokens

    def count_tokens(self, place: Place, tokens: int) -> None:
        """Replace the estimate of a place by the exact number of tokens.

        Raises:
            ApiError: 413, the request has too many tokens; 503, its tokens do not fit into the queue.
        """
        limit = self._settings.max_request_tokens
        if tokens > limit:
            raise ApiError(413, "too_many_tokens", f"{tokens} tokens; the limit is {limit}", param="documents")
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
        self._check_deadline(place)

    def expect(self, body_bytes: int, seconds: float) -> None:
        """Refuse a request before its body is read and parsed, if the queue is too long for it.

        Args:
            body_bytes: its declared length, which limits its number of tokens.
            seconds: until its deadline.

        Raises:
            ApiError: 503.
        """
        if self._places:
            self._check_time(min(body_bytes // BYTES_PER_TOKEN, self._settings.max_length), seconds)

    def _check_deadline(self, place: Place) -> None:
        place.estimate = self._check_time(place.tokens, DEADLINE.get(math.inf) - time.monotonic())

    def _check_time(self, tokens: int, left: float) -> float:
        """Refuse a request at once if it would miss its deadline, so that the engine does no work in vain.

        The engine serves the waiting requests in turns. Before a new request is done, each of the others therefore
        computes at most as many tokens as the new request has. The time that recent requests have taken corrects this
        estimate.

        Args:
            tokens: of the request.
            left: seconds until its deadline.

        Returns:
            Seconds that the request takes at the engine's pace; 0 if that is not known.

        Raises:
            ApiError: 503.
        """
        pace = self._pace.tokens_per_second
        if pace is None:
            return 0.0
        others = sum(min(other.tokens, tokens) for other in self._places)
        estimate = (tokens + others) / pace
        wait = estimate * self._slowed
        if wait > left * _SHARE_OF_DEADLINE:
            raise unavailable(
                "queue_full",
                f"the queue is too long: an answer would take about {wait:.1f} s, and the deadline is in {left:.1f} s",
                _retry_after(wait - left),
            )
        most = max(LONGEST_WAIT.get(), _WAIT_OF_LONG * self._slowed * tokens / pace)
        if wait - self._slowed * tokens / pace > most:
            raise unavailable(
                "queue_full",
                f"the queue is too long: an answer would take about {wait:.1f} s; a request that may wait for so long "
                "says so in X-Request-Timeout",
                _retry_after(wait - most),
            )
        return estimate

    def _compare(self, place: Place, seconds: float) -> None:
        """Learn from a request that has taken `seconds` how far estimates are off."""
        if place.estimate >= _SHORT_WAIT:
            slowed = min(seconds / place.estimate, _MOST_SLOWED)
            self._slowed = max(1.0, self._slowed + _WEIGHT * (slowed - self._slowed))

    def _full(self, what: str) -> ApiError:
        return unavailable("queue_full", f"the queue is full ({what}): send the request again later", self.retry_after)

    def served(self, tokens: int, seconds: float, token_budget: int) -> None:
        """Record a pass that has ended.

        Args:
            tokens: number of tokens that the pass computed.
            seconds: duration of the pass; passes of several workers may overlap.
            token_budget: maximum number of tokens in a pass.
        """
        if tokens >= token_budget * _SHARE_OF_BUDGET:
            self._pace.add(tokens, seconds, time.monotonic())

    @property
    def retry_after(self) -> int:
        """Seconds until about half of the queue is gone at the engine's pace, from 1 to 60."""
        return _retry_after(self.tokens / 2 / (self._pace.tokens_per_second or _UNKNOWN_PACE))


def _retry_after(seconds: float) -> int:
    """Whole seconds for the header of that name, from 1 to 60."""
    return max(1, min(60, math.ceil(seconds)))


class _Pace:
    """Throughput of the engine in tokens per second, on all its devices together; only large passes are measured.

    The highest recent rate counts. A rate that is too high only accepts a request that gets 504 later; a rate that is
    too low would refuse requests that could be answered.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._ended = -math.inf
        self._best = 0.0
        self._best_at = 0.0

    def add(self, tokens: int, seconds: float, now: float) -> None:
        """Record a pass that ended at `now`. Time in which it overlapped the previous pass counts once."""
        self._seconds += now - max(now - seconds, self._ended)
        self._tokens += tokens
        self._ended = now
        if self._seconds < _SECONDS_OF_A_RATE:
            return
        self._best = max(self._tokens / self._seconds, self._best * 0.5 ** ((now - self._best_at) / _HALF_LIFE))
        self._best_at = now
        self._tokens, self._seconds = 0, 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """The rate; None until enough passes have been measured."""
        return self._best or None


class BodyBudget:
    """Bytes of request bodies in memory, including bodies that are still being read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, count: int) -> None:
        """Reserve `count` bytes.

        Raises:
            ApiError: 503, all requests together hold too many bytes.
        """
        if self.held and self.held + count > self._limit:
            raise unavailable("queue_full", "too many bytes of requests are in memory: send the request again later", 1)
        self.held += count

    def give_back(self, count: int) -> None:
        """Release `count` bytes."""
        self.held -= count
