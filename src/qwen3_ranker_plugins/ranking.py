"""The steps of a request before and after the engine: checking it, and ordering its documents."""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache, partial
from itertools import pairwise, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cache import Entry, ScoreCache, Segment
from .calibration import Calibration
from .checks import check_pieces, check_positive, check_text
from .config import RankingOptions
from .dispatch import Submission
from .engines.base import Margins
from .errors import InvalidInputError, ScoringError
from .prompt import EncodedRequest, Piece
from .types import Pieces, Request, RerankResult, ScoredDocument, Usage

_logger = logging.getLogger(__name__)


class PreparedRequest:
    """A checked request, which is submitted once and then ranks its documents. Equal documents are scored once.

    Attributes:
        query, instruction, max_document_tokens, pieces: as in `Request`, with configured values in place of None.
        documents: the documents as given.
        distinct: the distinct texts; those whose score a cache holds come first.
        num_known: number of distinct texts whose score a cache holds; the engine does not score them again.
        submission: the state of the request in the engine; cancel its future to give up the request.

    Args:
        request: the request as the caller gave it.
        configured_instruction: for a request without an instruction of its own.
        calibration: maps margins to calibrated scores; None for the sigmoid of margins.
        configured_pieces: for a request without pieces of its own; None judges each document as a whole.

    Raises:
        InvalidInputError: names the argument, its value and the remedy.
    """

    def __init__(
        self,
        request: Request,
        configured_instruction: str | None,
        calibration: Calibration | None = None,
        configured_pieces: Pieces | None = None,
    ) -> None:
        self._started = time.perf_counter()
        self._calibration = calibration
        check_text("query", request.query)
        if request.max_document_tokens is not None:
            check_positive("max_document_tokens", request.max_document_tokens)
        if request.instruction is not None:
            check_text("instruction", request.instruction)
        self.query = request.query
        self.instruction = configured_instruction if request.instruction is None else request.instruction
        self.max_document_tokens = request.max_document_tokens
        if request.pieces is not None:
            check_pieces(request.pieces)
        self.pieces = configured_pieces if request.pieces is None else request.pieces
        if isinstance(request.documents, (str, bytes)) or not isinstance(request.documents, Sequence):
            raise InvalidInputError("documents", request.documents, "needs a list of strings")
        self.documents = list(request.documents)
        for index, document in enumerate(self.documents):
            if type(document) is not str:  # faster than check_text, which formats a name for every document
                check_text(f"documents[{index}]", document, may_be_empty=True)
        places: dict[str, int] = {}
        # For each document, its place among the distinct texts.
        self._source = np.asarray(
            [places.setdefault(document, len(places)) for document in self.documents], dtype=np.intp
        )
        self.distinct = list(places)
        self.num_known = 0
        #: The distinct texts that the engine has to score.
        self.unknown = self.distinct
        #: Whether scores may come from a cache.
        self.cached = True
        self.submission = Submission(len(places))
        self._prefix_length = 0
        self._lengths: list[int] = []
        self._cut: list[int] = []
        self._found = None if self.pieces is None else PiecesOfDocuments()

    def add(self, encoded: EncodedRequest) -> int:
        """Record the sizes of the next distinct texts. Returns the position of their first segment."""
        first = len(self._lengths)
        if self._found is not None and encoded.pieces is not None:
            self.submission.expect_more(self._found.add(encoded.pieces))
        self._prefix_length = encoded.prefix_length
        self._lengths.extend(encoded.lengths)
        self._cut.extend(encoded.truncated_tokens)
        return first

    def recall(self, cache: ScoreCache) -> None:
        """Take the scores that a cache holds, and store the others in it when they are known."""
        keys = cache.keys(self.query, self.instruction, self.max_document_tokens, self.pieces, self.distinct)
        found = cache.get(keys)
        known = [place for place, entry in enumerate(found) if entry is not None]
        new = [place for place, entry in enumerate(found) if entry is None]
        if new:
            self.submission.on_complete = partial(self._remember, cache, [keys[place] for place in new])
        if known:
            order = [*known, *new]
            rank = np.empty(len(order), dtype=np.intp)
            rank[order] = np.arange(len(order))
            self._source = rank[self._source]
            self.distinct = [self.distinct[place] for place in order]
            self.num_known = len(known)
            self.unknown = self.distinct[len(known) :]
            self._replay([entry for entry in found if entry is not None])

    def _replay(self, entries: Sequence[Entry]) -> None:
        """Record the cached margins of the first distinct documents."""
        segments = [segment for entry in entries for segment in entry.segments]
        self._prefix_length = entries[0].prefix_length
        self._lengths.extend(segment.length for segment in segments)
        self._cut.extend(segment.truncated for segment in segments)
        if self._found is not None:
            pieces = [
                Piece(number, segment.start, segment.end)
                for number, entry in enumerate(entries)
                for segment in entry.segments
            ]
            self.submission.expect_more(self._found.add(pieces))
        values = np.asarray([segment.margin for segment in segments], dtype=np.float32)
        # A remote service already counted the tokens of these prompts when it scored them.
        counted = 0 if any(entry.counted_elsewhere for entry in entries) else None
        self.submission.record(list(range(len(segments))), Margins(values, 0, prompt_tokens=counted))

    def _remember(self, cache: ScoreCache, keys: Sequence[bytes], margins: Margins) -> None:
        """Store the newly scored documents in the cache."""
        faults, cut = margins.faults(), margins.truncated
        values = margins.values.tolist()
        entries = {}
        for document, key in enumerate(keys, start=self.num_known):
            places = [document] if self._found is None else self._found.places(document)
            if faults and any(place in faults for place in places):
                continue
            segments = [
                Segment(
                    values[place],
                    self._lengths[place],
                    self._cut[place] + cut.get(place, 0),
                    *((0, 0) if self._found is None else self._found.range(place)),
                )
                for place in places
            ]
            counted_elsewhere = margins.prompt_tokens is not None
            entries[key] = Entry(self._prefix_length, segments, self._found is not None, counted_elsewhere)
        cache.put(entries)

    @property
    def num_segments(self) -> int:
        """Number of texts encoded so far: distinct documents, or their pieces."""
        return len(self._lengths)

    @property
    def num_tokens(self) -> int:
        """Number of tokens encoded so far; the prefix counts once."""
        return self._prefix_length + sum(self._lengths)

    @property
    def truncated(self) -> list[tuple[int, int]]:
        """(position in the input, tokens cut off) of every encoded document that was truncated."""
        if not any(self._cut):
            return []
        cut = self._of_documents(np.add, self._cut).tolist()
        return [(index, cut[place]) for index, place in enumerate(self._source.tolist()) if cut[place]]

    def cancel(self) -> None:
        """Drop the documents that no pass has taken. Has no effect if the request is scored already."""
        self.submission.future.cancel()

    def scores(self) -> NDArray[np.float32]:
        """P(yes) in input order, float32 [n_documents]. Waits for the engine, and raises the errors of `result`."""
        return sigmoid(self._log_odds(self._margins(self.submission.future.result()))).astype(np.float32)

    def result(self, options: RankingOptions) -> RerankResult:
        """Order by margin, apply the thresholds, keep at most top_k. Waits for the engine.

        Raises:
            ScoringError: a margin is missing or not finite.
            EngineError: the pass failed.
            CancelledError: the request was cancelled.
        """
        margins = self.submission.future.result()
        values = self._margins(margins).astype(np.float64)
        log_odds = self._log_odds(values)
        scores, confidences = sigmoid(log_odds), np.tanh(np.abs(log_odds) / 2)
        keep = np.ones(len(values), dtype=np.bool_)
        if options.score_threshold is not None:
            keep &= scores >= options.score_threshold
        if options.min_confidence is not None:
            decided = confidences >= options.min_confidence
            if np.any(scores[~decided] >= likely_relevant(options.score_threshold)):
                warn_of_min_confidence(options.min_confidence, options.score_threshold)
            keep &= decided
        order = best_first(values)
        kept = order[keep[order]][: options.top_k]
        indices: list[int] = kept.tolist()
        cut = np.asarray(self._cut, dtype=np.int64)
        for place, tokens in margins.truncated.items():
            cut[place] += tokens
        cut = self._of_documents(np.add, cut)
        pieces: list[tuple[int, int] | None] = [None] * len(indices)
        if self._found is not None:
            best = self._found.best(margins.values)
            pieces = [best[place] for place in self._source[kept].tolist()]
        # Converting whole arrays to lists takes half the time of converting one number after another.
        columns = (each[kept].tolist() for each in (scores, values, confidences, cut[self._source]))
        hits = _scored_documents(
            indices, [self.documents[index] for index in indices], *columns, pieces, [None] * len(indices)
        )
        return RerankResult(hits, self._usage(margins))

    def _margins(self, margins: Margins) -> NDArray[np.float32]:
        """Margins in input order.

        Raises:
            ScoringError: one of them is missing or not finite.
        """
        values = self._of_documents(np.maximum, margins.values)[self._source]
        if faults := margins.faults():
            if self._found is not None:
                faults = {self._found.document_of(place): reason for place, reason in reversed(faults.items())}
            failed = {index: faults[place] for index, place in enumerate(self._source.tolist()) if place in faults}
            values[list(failed)] = np.nan
            raise ScoringError(failed, values)
        return values

    def _log_odds(self, margins: NDArray[np.floating]) -> NDArray[np.floating]:
        """The logarithm of P(yes) / P(no): the margins, calibrated if there is a calibration."""
        return margins if self._calibration is None else self._calibration.apply(margins)

    def _usage(self, margins: Margins) -> Usage:
        prompts, pieces = margins.prompt_tokens, len(self._source)
        if self._found is not None:
            pieces = int(self._of_documents(np.add, np.ones(len(self._lengths), dtype=np.int64))[self._source].sum())
        if prompts is None:
            lengths = self._of_documents(np.add, np.asarray(self._lengths, dtype=np.int64))
            prompts = self._prefix_length * pieces + int(lengths[self._source].sum())
        finished = self.submission.finished
        return Usage(
            documents=len(self._source),
            prompt_tokens=prompts,
            computed_tokens=margins.computed_tokens,
            seconds=max(0.0, (time.perf_counter() if finished is None else finished) - self._started),
            pieces=pieces,
            cached_documents=int((self._source < self.num_known).sum()) if self.num_known else 0,
        )

    def _of_documents(self, combine: np.ufunc, values: Any) -> NDArray[Any]:
        """One value for each distinct text, from one for each segment."""
        values = np.asarray(values)
        return values if self._found is None else self._found.combined(combine, values)


class PiecesOfDocuments:
    """Which pieces belong to which document. The pieces of a document are adjacent."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._first: list[int] = []

    def add(self, pieces: Sequence[Piece]) -> int:
        """Record the pieces of the next documents. Returns the number of pieces minus the number of documents."""
        before = len(self._first)
        last = None
        for place, (document, start, end) in enumerate(pieces, start=len(self._ranges)):
            if document != last:
                self._first.append(place)
                last = document
            self._ranges.append((start, end))
        return len(pieces) - (len(self._first) - before)

    def places(self, document: int) -> range:
        """The positions of a document's pieces."""
        end = self._first[document + 1] if document + 1 < len(self._first) else len(self._ranges)
        return range(self._first[document], end)

    def range(self, place: int) -> tuple[int, int]:
        """(start, end) of a piece in its document, in characters."""
        return self._ranges[place]

    def combined(self, combine: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
        """One value per document: `combine` applied to the values of its pieces."""
        return combine.reduceat(values, self._first) if self._first else values

    def document_of(self, piece: int) -> int:
        """The number of the document that a piece belongs to."""
        return bisect_right(self._first, piece) - 1

    def best(self, margins: NDArray[np.float32]) -> list[tuple[int, int]]:
        """(start, end) of each document's piece with the highest margin; the first one if several are equal."""
        return [
            self._ranges[first if last == first + 1 else first + int(np.argmax(margins[first:last]))]
            for first, last in pairwise([*self._first, len(self._ranges)])
        ]


def best_first(margins: NDArray[np.floating]) -> NDArray[np.intp]:
    """The positions of margins in the order of a ranking: the highest first, equal ones in their input order."""
    order: NDArray[np.intp] = np.argsort(-margins, kind="stable")
    return order


def rank_key(margin: float, position: int) -> tuple[float, int]:
    """The sort key with which sorting gives the order of `best_first`, for rows that are not arrays."""
    return -margin, position


def likely_relevant(score_threshold: float | None) -> float:
    """The lowest score of a document that is likely relevant: the threshold, or 0.5 without one."""
    return 0.5 if score_threshold is None else score_threshold


@lru_cache(maxsize=256)
def warn_of_min_confidence(min_confidence: float, score_threshold: float | None = None) -> None:
    """Log that `min_confidence` dropped a document that is likely relevant, once for each pair of limits."""
    _logger.warning(
        "min_confidence=%g dropped a document with a score of at least %g: it keeps documents of which the model is "
        "certain, relevant or not. To drop irrelevant documents, use score_threshold",
        min_confidence,
        likely_relevant(score_threshold),
    )


_FIELDS: list[Callable[[ScoredDocument, Any], None]] = [
    getattr(ScoredDocument, field.name).__set__ for field in fields(ScoredDocument)
]


def _scored_documents(*columns: list[Any]) -> tuple[ScoredDocument, ...]:
    """One document for each row of the columns, which are in the order of its fields.

    Assigns the fields through their slots: the frozen class's own `__init__` takes more than twice as long.
    """
    documents = tuple(map(object.__new__, repeat(ScoredDocument, len(columns[0]))))
    for assign, column in zip(_FIELDS, columns, strict=True):
        for document, value in zip(documents, column, strict=True):
            assign(document, value)
    return documents


def sigmoid(margins: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 / (1 + exp(-margin)), in the form that does not overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * margins.astype(np.float64)))
