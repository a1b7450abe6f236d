"""Turns a window into forward passes, and these into rows. The passes depend only on the window and the settings.

The engine is called directly, not through the dispatcher, whose passes depend on when requests arrive. The last bits of
a margin may depend on the other documents of its pass, but a job has to write the same bytes when it is resumed or
spread over several engines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from ..cache import ScoreCache
from ..checks import check_json
from ..config import EngineConfig, RerankerSettings
from ..data.pairs import Pair
from ..dispatch.filling import fill_in_order, halves
from ..engines import choose_engine, create_engine, engine_module
from ..engines.base import Engine
from ..errors import EngineClosedError, EngineError, PromptTooLongError
from ..models import resolve_model
from ..prompt import EncodedRequest, Piece, PromptEncoder, load_tokenizer
from .outcome import Outcome
from .recall import Lookup, Recall
from .rows import FailedRow
from .windows import Window

EngineFactory = Callable[[EngineConfig], Engine]


class _Shares(NamedTuple):
    """Requests of a pass; for each of their documents, the positions in the window of the pairs with this text."""

    requests: Sequence[EncodedRequest]
    indices: Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class PlannedPass:
    """One forward pass of a window.

    Attributes:
        window: the window.
        number, count: number of the pass in its window, from 0, and number of passes in the window.
        requests: encoded requests, each with at least one document.
        indices: for each document of each request, the positions in the window of the pairs with this text. All pieces
            of a document are in one pass.
        faults: (position in the window, reason) of pairs that cannot be encoded; only in a window's first pass.
        lookup: what the cache holds of the pass; None without a cache.
    """

    window: Window
    number: int
    count: int
    requests: list[EncodedRequest] = field(default_factory=list)
    indices: list[list[list[int]]] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)
    lookup: Lookup | None = None


@dataclass(frozen=True)
class ScoredPass:
    """The result of a pass.

    Attributes:
        window: number of its window.
        number, count: as in `PlannedPass`.
        columns: positions, lines, query ids, document ids, margins and truncated tokens of the scored pairs; then, if
            requested, queries and documents, and starts and ends of pieces. One item of each column makes a `ScoredRow`
            without its seconds. Columns take a quarter of the time of rows to be made, stored and read again.
        failures: rows of the pairs without a score.
        tokens: number of tokens that went through the model.
        cached: number of scored pairs whose scores the cache had.
        fraction: share of the input up to the end of the window, from 0 to 1.
        window_checksum: checksum of the content that was scored.
        tokenization_seconds, engine_seconds: time spent; tokenization is that of the whole window, counted in pass 0.
    """

    window: int
    number: int
    count: int
    columns: list[list[Any]]
    failures: list[FailedRow]
    tokens: int
    cached: int
    fraction: float
    window_checksum: int
    tokenization_seconds: float
    engine_seconds: float

    @property
    def pairs(self) -> int:
        """Number of pairs, with and without a score."""
        return len(self.columns[0]) + len(self.failures)

    @property
    def seconds_each(self) -> float:
        """The engine's time divided by the number of scored pairs, in seconds."""
        return round(self.engine_seconds / max(1, len(self.columns[0])), 9)


class Scorer:
    """A model with its tokenizer and engine, for one caller.

    Args:
        settings: as for a `Reranker`.
        factory: makes the engine.
        include_text: whether rows contain the texts.

    Raises: as `Reranker`.
    """

    def __init__(
        self, settings: RerankerSettings, factory: EngineFactory = create_engine, *, include_text: bool
    ) -> None:
        self._instruction = settings.instruction  # None: the model's own
        self._pieces = settings.pieces
        self._include_text = include_text
        if factory is create_engine:
            engine = choose_engine(settings.engine)[0]
            resolved = engine_module(engine).resolve(engine, settings)
            config = resolved.config
            self._encoder = resolved.encoder
        else:  # the caller's own factory resolves the settings itself
            folder = resolve_model(settings.model)
            config = EngineConfig(
                settings.engine,
                folder,
                settings.device,
                settings.dtype,
                settings.token_budget,
                options=check_json("engine_options", settings.engine_options),
            )
            self._encoder = PromptEncoder(load_tokenizer(folder), settings.template, settings.max_length)
        self._engine = factory(config)
        self._recall: Recall | None = None
        if settings.cache is not None:
            try:
                cache = ScoreCache(settings, config, self._engine.describe())
            except BaseException:
                self._engine.close()
                raise
            self._recall = Recall(cache, self._instruction, self._pieces, self._engine)
        self._one_at_a_time = threading.Lock()
        self._tokenization_seconds: dict[int, float] = {}

    def facts(self) -> dict[str, str]:
        """The facts that scores depend on and that only the running engine knows."""
        described = self._engine.describe()
        return {
            "engine": self._engine.name,
            "device": "cpu" if described.device == "cpu" else "cuda",
            "dtype": described.dtype,
            "token_budget": str(self._engine.capabilities.token_budget),
        }

    def device(self) -> str:
        """The device, such as "cuda:1"; scores depend only on its kind."""
        return self._engine.describe().device

    def close(self) -> None:
        """Free the model, and finish writing to the cache."""
        if self._recall is not None:
            self._recall.close()
        self._engine.close()

    def plan(self, window: Window) -> list[PlannedPass]:
        """The passes of a window, at least one. Each query's documents fill them by length, up to the token budget.

        The cache does not affect them, so that a job that is continued plans the same passes. For this reason all texts
        are encoded, whether or not the cache has their scores.
        """
        started = time.perf_counter()
        faults: list[tuple[int, str]] = []
        places: dict[str, dict[str, list[int]]] = {}
        for index, pair in enumerate(window.pairs):
            if pair.fault is not None:
                faults.append((index, pair.fault))
            else:
                places.setdefault(pair.query, {}).setdefault(pair.document, []).append(index)
        encoded: list[tuple[EncodedRequest, list[list[int]]]] = []
        for query, documents in places.items():
            indices = list(documents.values())
            try:
                encoded.append((self._encode(query, list(documents)), indices))
            except PromptTooLongError as error:
                faults += [(index, str(error)) for same in indices for index in same]
        passes = list(self._passes(encoded)) or [([], [])]
        self._tokenization_seconds[window.number] = time.perf_counter() - started
        lookups: Sequence[Lookup | None] = [None] * len(passes)
        if self._recall is not None:
            lookups = self._recall.look_up(window.pairs, passes)
        return [
            PlannedPass(window, number, len(passes), requests, indices, [] if number else faults, lookup)
            for number, ((requests, indices), lookup) in enumerate(zip(passes, lookups, strict=True))
        ]

    def _encode(self, query: str, documents: list[str]) -> EncodedRequest:
        if self._pieces is None:
            return self._encoder.encode(query, documents, self._instruction)
        return self._encoder.encode(query, documents, self._instruction, None, self._pieces)

    def _passes(
        self, encoded: Sequence[tuple[EncodedRequest, list[list[int]]]]
    ) -> Iterator[tuple[list[EncodedRequest], list[list[list[int]]]]]:
        """Yield the requests of each pass; for each of their segments, the positions of the pairs with its document."""
        capabilities = self._engine.capabilities
        if self._pieces is None:
            for shares in fill_in_order([request for request, _ in encoded], capabilities):
                yield (
                    [encoded[number][0].take(documents) for number, documents in shares],
                    [[encoded[number][1][document] for document in documents] for number, documents in shares],
                )
            return
        # Only whole documents are committed. A pass therefore contains all pieces of a document; if these exceed the
        # engine's budget, it scores them in several calls.
        segments = [_segments_of_documents(request) for request, _ in encoded]
        whole = [
            EncodedRequest(
                request.prefix,
                [list(chain.from_iterable(request.segments[place] for place in places)) for places in of_documents],
                [0] * len(of_documents),
            )
            for (request, _), of_documents in zip(encoded, segments, strict=True)
        ]
        for shares in fill_in_order(whole, replace(capabilities, documents_per_pass=None)):
            requests, indices = [], []
            for number, documents in shares:
                request, places = encoded[number]
                found = request.pieces or []
                kept = [place for document in documents for place in segments[number][document]]
                requests.append(request.take(kept))
                indices.append([places[found[place].document] for place in kept])
            yield requests, indices

    def score(self, planned: PlannedPass) -> ScoredPass:
        """Run a pass. If it fails, run its halves, and so on, until the failing documents are found.

        Raises:
            EngineError: the engine no longer scores anything, not even a known request.
        """
        outcome = Outcome(failures=dict(planned.faults))
        cached = 0
        seconds = 0.0
        if planned.lookup is not None and planned.lookup.entries:
            outcome.take_from_cache(planned.indices, planned.lookup.entries)
            cached = len(outcome.margins)
        elif planned.requests:
            with self._one_at_a_time:
                started = time.perf_counter()
                for call in self._calls(planned):
                    self._score(*call, outcome)
                if self._pieces is not None:  # a piece without a score leaves its document without one
                    for index in outcome.failures:
                        outcome.margins.pop(index, None)
                if not outcome.margins:
                    self._prove_that_it_lives(outcome.failures)
                seconds = time.perf_counter() - started
            # The margins of smaller passes are not those that the whole pass gives.
            if self._recall is not None and planned.lookup is not None and not outcome.was_split:
                self._recall.remember(planned.lookup, outcome.entries())
        return ScoredPass(
            planned.window.number,
            planned.number,
            planned.count,
            columns=self._columns(planned, outcome.margins),
            failures=list(_failure_rows(planned.window, outcome.failures)),
            tokens=outcome.tokens,
            cached=cached,
            fraction=planned.window.fraction,
            window_checksum=planned.window.checksum,
            tokenization_seconds=self._tokenization_seconds.pop(planned.window.number, 0.0),
            engine_seconds=seconds,
        )

    def _calls(self, planned: PlannedPass) -> Iterator[_Shares]:
        """Yield what the engine gets in one call: the whole pass, or parts of it if its pieces exceed the budget."""
        if self._pieces is None:
            yield _Shares(planned.requests, planned.indices)
            return
        for shares in fill_in_order(planned.requests, self._engine.capabilities):
            requests = [planned.requests[number].take(segments) for number, segments in shares]
            yield _Shares(
                requests, [[planned.indices[number][place] for place in segments] for number, segments in shares]
            )

    def _score(
        self, requests: Sequence[EncodedRequest], indices: Sequence[Sequence[Sequence[int]]], outcome: Outcome
    ) -> None:
        """Add margins with their pieces, and failures, to the outcome."""
        try:
            results = self._engine.score(requests)
        except EngineClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - any error of a pass is traced to its documents
            outcome.was_split = True
            smaller = _smaller_passes(requests, indices)
            if not smaller:
                reason = str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
                outcome.failures.update(dict.fromkeys(indices[0][0], reason))
            for each in smaller:
                self._score(*each, outcome)
            return
        for request, result, places in zip(requests, results, indices, strict=True):
            faults = result.faults()
            for place, (value, same) in enumerate(zip(result.values.tolist(), places, strict=True)):
                if place in faults:
                    outcome.failures.update(dict.fromkeys(same, faults[place]))
                    continue
                piece = None if request.pieces is None else request.pieces[place]
                outcome.add(same, value, piece)
                if self._recall is not None:
                    outcome.keep(same, request, place, value)
        outcome.tokens += sum(result.computed_tokens for result in results)

    def _prove_that_it_lives(self, failures: dict[int, str]) -> None:
        """Check the engine after a pass without any score: a dead engine would turn all further pairs into errors."""
        known = self._encoder.encode("what is this?", ["a text that every model can score"], self._instruction)
        try:
            values = self._engine.score([known])[0].values
        except Exception as error:
            reason = next(iter(failures.values()))
            raise EngineError(
                f"the engine no longer scores anything: {error}; the pass failed with: {reason}"
            ) from error
        if not np.isfinite(values).all():
            raise EngineError(f"the engine gives {values[0]} for every text; check the model's weights and dtype")

    def _columns(self, planned: PlannedPass, margins: dict[int, tuple[float, Piece | None]]) -> list[list[Any]]:
        truncated: dict[int, int] = {}
        for request, places in zip(planned.requests, planned.indices, strict=True):
            if any(request.truncated_tokens):
                for tokens, same in zip(request.truncated_tokens, places, strict=True):
                    for index in same:
                        truncated[index] = truncated.get(index, 0) + tokens
        start = planned.window.start
        pairs = [planned.window.pairs[index] for index in margins]
        columns: list[list[Any]] = [
            [start + index for index in margins],
            [pair.line for pair in pairs],
            [pair.query_id for pair in pairs],
            [pair.doc_id for pair in pairs],
            [margin for margin, _ in margins.values()],
            [truncated.get(index, 0) for index in margins] if truncated else [0] * len(margins),
        ]
        if self._include_text:
            columns += [[pair.query for pair in pairs], [pair.document for pair in pairs]]
        elif self._pieces is not None:
            columns += [[""] * len(pairs), [""] * len(pairs)]
        if self._pieces is not None:
            pieces = [piece for _, piece in margins.values() if piece is not None]
            columns += [[piece.start for piece in pieces], [piece.end for piece in pieces]]
        return columns


def _smaller_passes(requests: Sequence[EncodedRequest], indices: Sequence[Sequence[Sequence[int]]]) -> list[_Shares]:
    """The two passes to try after one failed: half of its requests each, or half of its only request's documents.

    Empty if the pass has only one document.
    """
    if shares := halves(list(zip(requests, indices, strict=True))):
        return [_Shares(*zip(*half, strict=True)) for half in shares]
    documents = halves(range(len(requests[0].segments)))
    return [_Shares([requests[0].take(half)], [[indices[0][place] for place in half]]) for half in documents]


def _segments_of_documents(request: EncodedRequest) -> list[list[int]]:
    """For each document of a request in pieces, the positions of its segments."""
    found: list[list[int]] = []
    for place, piece in enumerate(request.pieces or []):
        if piece.document == len(found):
            found.append([])
        found[-1].append(place)
    return found


def _failure_rows(window: Window, failures: dict[int, str]) -> Iterator[FailedRow]:
    for index, reason in failures.items():
        pair: Pair = window.pairs[index]
        yield FailedRow(window.start + index, pair.line, pair.query_id, pair.doc_id, reason)


def score_windows(
    scorer: Scorer, windows: Iterator[tuple[Window, Collection[int]]]
) -> Iterator[Callable[[], ScoredPass]]:
    """Yield a function for each encoded pass that is not done yet, in order; calling it runs the pass.

    Args:
        scorer: encodes in the thread that iterates, and scores in the thread that calls a function.
        windows: windows, each with the numbers of its passes that are done.
    """
    for window, done in windows:
        for planned in scorer.plan(window):
            if planned.number not in done:
                yield lambda planned=planned: scorer.score(planned)  # type: ignore[misc]
