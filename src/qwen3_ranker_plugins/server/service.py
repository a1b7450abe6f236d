"""From a request to its ranking: a place in the queue, tokenization in a thread, the shared engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..config import RankingOptions, RerankerSettings
from ..explanation import Explain
from ..prompt import EncodedRequest
from ..prompt.turns import SMALL_BATCHES
from ..ranking import PreparedRequest
from ..reranker import Reranker
from ..types import Request, RerankResult
from .admission import BYTES_PER_TOKEN, Admission
from .errors import ApiError
from .metrics import Metrics
from .supervisor import EngineSupervisor

#: The tokenizer uses all cores for one large batch; a second thread keeps it busy while the first one checks texts.
#: Small batches are encoded several at a time.
_ENCODERS = max(2, SMALL_BATCHES)


@dataclass(frozen=True)
class Ranking:
    """The ranking of a request.

    Attributes:
        result: the documents in order of relevance.
        truncated: (index, tokens cut off) of every document of the request that was cut, in input order.
        seconds: time from the end of the request's body to the last score.
    """

    result: RerankResult
    truncated: list[tuple[int, int]]
    seconds: float

    @property
    def milliseconds(self) -> float:
        """`seconds` as answers give it."""
        return round(self.seconds * 1000, 3)


class Service:
    """Ranks for the routes."""

    def __init__(self, supervisor: EngineSupervisor, admission: Admission, metrics: Metrics) -> None:
        self._supervisor = supervisor
        self._admission = admission
        self._metrics = metrics
        self._encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="qwen3-ranker-encoder")

    async def rank(
        self, requests: Sequence[Request], options: RankingOptions, *, may_cut: bool = True, explain: Explain = False
    ) -> list[Ranking]:
        """One ranking per request. Cancelling it frees its place in the queue.

        Args:
            requests: the rankings that one HTTP request asks for; they are accepted or refused together.
            options: what to keep of each ranking.
            may_cut: False refuses documents that do not fit.
            explain: as in `Reranker.rerank`.

        Raises:
            ApiError: 413, the request is too large; 503, the queue is full, or the engine is loading or has failed.
            RankerError: as `Reranker.rerank`.
        """
        started = time.perf_counter()
        reranker = self._supervisor.reranker
        documents = sum(len(request.documents) for request in requests)
        characters = sum(_readable(request, reranker.settings) for request in requests)
        with self._admission.place(documents, characters) as place:
            loop = asyncio.get_running_loop()
            work = _Work()
            prepared = work.prepared
            try:
                turns = _submit_in_turns(reranker, requests, work, may_cut=may_cut)
                encoding = True
                while encoding:  # one step at a time, so that other requests get the thread in between
                    encoding = await loop.run_in_executor(self._encoders, next, turns, False)
                    tokens = sum(each.num_tokens for each in prepared)
                    self._admission.count_tokens(place, max(tokens, place.tokens) if encoding else tokens)
                futures = [asyncio.wrap_future(each.submission.future) for each in prepared]
                scored: asyncio.Future[Any] = futures[0] if len(futures) == 1 else asyncio.gather(*futures)
                await self._supervisor.while_running(scored)
            finally:
                work.give_up()
        seconds = time.perf_counter() - started
        rankings = [Ranking(each.result(options), each.truncated, seconds) for each in prepared]
        self._count(rankings)
        if explain:
            return [
                await self._explained(*each, sentences=explain == "sentences")
                for each in zip(prepared, rankings, strict=True)
            ]
        return rankings

    async def _explained(self, prepared: PreparedRequest, ranking: Ranking, *, sentences: bool) -> Ranking:
        """Add explanations to a ranking. The texts that are scored for them are queued like any other request."""
        make = partial(self._supervisor.reranker.explainer, prepared, ranking.result, sentences=sentences)
        explainer = await asyncio.get_running_loop().run_in_executor(self._encoders, make)
        if explainer.without_sentences is None:
            return replace(ranking, result=explainer.explained())
        [without] = await self.rank([explainer.without_sentences], RankingOptions())
        return replace(ranking, result=explainer.explained(without.result), seconds=ranking.seconds + without.seconds)

    def close(self) -> None:
        """End the threads."""
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def _count(self, rankings: Sequence[Ranking]) -> None:
        metrics = self._metrics
        metrics.rank_seconds.observe(rankings[0].seconds if rankings else 0)
        metrics.request_documents.observe(sum(each.result.usage.documents for each in rankings))
        for each in rankings:
            usage = each.result.usage
            metrics.documents.inc(usage.documents)
            metrics.pieces.inc(usage.pieces)
            metrics.prompt_tokens.inc(usage.prompt_tokens)
            metrics.computed_tokens.inc(usage.computed_tokens)
            metrics.truncated_documents.inc(len(each.truncated))
            metrics.truncated_tokens.inc(sum(tokens for _, tokens in each.truncated))


def _readable(request: Request, settings: RerankerSettings) -> int:
    """At most how many characters of a request are scored: `max_length` tokens of each document, or all its pieces.

    Characters that two pieces share count once here; encoding gives the exact number of tokens.
    """
    pieces = settings.pieces if request.pieces is None else request.pieces
    readable = settings.max_length if pieces is None else pieces.tokens * pieces.limit
    most = BYTES_PER_TOKEN * min(readable, request.max_document_tokens or readable)
    lengths = list(map(len, request.documents))
    if max(lengths, default=0) > most:
        lengths = [min(length, most) for length in lengths]
    return min(len(request.query), BYTES_PER_TOKEN * settings.max_length) + sum(lengths)


class _Work:
    """The requests that a thread prepares, which the event loop may give up at any moment.

    Attributes:
        prepared: the requests; empty until all are prepared.
        given_up: whether nothing more should be queued.
    """

    def __init__(self) -> None:
        self.prepared: list[PreparedRequest] = []
        self.given_up = False

    def give_up(self) -> None:
        """Cancel all requests; those that are scored already are not affected."""
        self.given_up = True
        for each in self.prepared:
            each.cancel()


def _submit_in_turns(reranker: Reranker, requests: Sequence[Request], work: _Work, *, may_cut: bool) -> Iterator[bool]:
    """Prepare and queue requests in steps; yields True while there is more to encode.

    If documents must not be cut, all of them are encoded before any is queued.

    Args:
        reranker: of the server.
        requests: what is asked for.
        work: its list is filled with all requests before any is encoded.
        may_cut: see `Service.rank`.

    Raises:
        ApiError: 413, a document does not fit.
        InvalidInputError: a request is unusable.
    """
    prepared = work.prepared
    prepared += [reranker.prepare(request) for request in requests]
    if work.given_up:  # before `give_up` could see them
        return
    encoded: list[EncodedRequest | None] = [None] * len(prepared)
    if not may_cut:
        for place, each in enumerate(prepared):
            if place:
                yield True
            encoded[place] = reranker.encode(each)
        cut = [index for each in prepared for index, _ in each.truncated]
        if cut:
            shown = ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else "")
            raise ApiError(
                413, "text_too_long", f"texts at positions {shown} do not fit, and the request forbids cutting them"
            )
    for each, whole in zip(prepared, encoded, strict=True):
        for _ in reranker.submit_in_turns(each, encoded=whole):
            yield True
