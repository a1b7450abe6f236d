"""What happens to a request before and after the engine: its check, and the order of its documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration
from .config import RankingOptions, check_positive, check_text
from .dispatch import Submission
from .engines.base import Margins
from .errors import InvalidInputError, ScoringError
from .prompt import EncodedRequest
from .types import Request, RerankResult, ScoredDocument, Usage


class PreparedRequest:
    """A checked request, of which equal documents are scored once. It is made once, submitted once, and ranks itself.

    Attributes:
        query, instruction, max_document_tokens: as in `Request`, the configured instruction filled in.
        documents: as given.
        distinct: their texts, each once.
        submission: settled by the engine; cancel its future to give up.

    Args:
        request: as the caller gave it.
        configured_instruction: for a request without an instruction of its own.
        calibration: makes scores of margins; None for their sigmoid.

    Raises:
        InvalidInputError: names the argument, its value and the remedy.
    """

    def __init__(
        self, request: Request, configured_instruction: str | None, calibration: Calibration | None = None
    ) -> None:
        self._started = time.perf_counter()
        self._calibration = calibration
        check_text("query", request.query)
        check_positive("max_document_tokens", request.max_document_tokens)
        if request.instruction is not None:
            check_text("instruction", request.instruction)
        self.query = request.query
        self.instruction = configured_instruction if request.instruction is None else request.instruction
        self.max_document_tokens = request.max_document_tokens
        self.documents = _checked_documents(request.documents)
        places: dict[str, int] = {}
        # For each document, its place among the distinct texts.
        self._source = np.asarray(
            [places.setdefault(document, len(places)) for document in self.documents], dtype=np.intp
        )
        self.distinct = list(places)
        self.submission = Submission(len(places))
        self._prefix_length = 0
        self._lengths: list[int] = []
        self._cut: list[int] = []

    def add(self, encoded: EncodedRequest) -> int:
        """Note the sizes of the next distinct texts; returns the place of the first of them."""
        first = len(self._lengths)
        self._prefix_length = encoded.prefix_length
        self._lengths.extend(encoded.lengths)
        self._cut.extend(encoded.truncated_tokens)
        return first

    @property
    def num_tokens(self) -> int:
        """Tokens of what has been encoded, with the prefix computed once."""
        return self._prefix_length + sum(self._lengths)

    @property
    def truncated(self) -> list[tuple[int, int]]:
        """(position in the input, tokens cut off) of every encoded document that is not read whole."""
        cut = self._cut
        return (
            [(index, cut[place]) for index, place in enumerate(self._source.tolist()) if cut[place]] if any(cut) else []
        )

    def cancel(self) -> None:
        """Drop what no pass has taken, if the engine has not settled the request."""
        self.submission.future.cancel()

    def scores(self) -> NDArray[np.float32]:
        """P(yes) in input order. Waits for the engine, and raises as `result`."""
        return sigmoid(self._log_odds(self._margins(self.submission.future.result()))).astype(np.float32)

    def result(self, options: RankingOptions) -> RerankResult:
        """Order by margin, apply thresholds, cut. Waits for the engine.

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
            keep &= confidences >= options.min_confidence
        order = np.argsort(-values, kind="stable")
        kept = order[keep[order]][: options.top_k]
        indices: list[int] = kept.tolist()
        cut = np.asarray(self._cut, dtype=np.int64)
        for place, tokens in margins.truncated.items():
            cut[place] += tokens
        # Whole arrays become lists of Python's numbers at once, which takes half the time of one number after another.
        columns = (each[kept].tolist() for each in (scores, values, confidences, cut[self._source]))
        hits = _scored_documents(indices, [self.documents[index] for index in indices], *columns)
        return RerankResult(hits, self._usage(margins))

    def _margins(self, margins: Margins) -> NDArray[np.float32]:
        """Margins in input order.

        Raises:
            ScoringError: one of them is missing or not finite.
        """
        values = margins.values[self._source]
        if faults := margins.faults():
            failed = {index: faults[place] for index, place in enumerate(self._source.tolist()) if place in faults}
            values[list(failed)] = np.nan
            raise ScoringError(failed, values)
        return values

    def _log_odds(self, margins: NDArray[np.floating]) -> NDArray[np.floating]:
        """The logarithm of P(yes) / P(no): the margins, or what the calibration makes of them."""
        return margins if self._calibration is None else self._calibration.apply(margins)

    def _usage(self, margins: Margins) -> Usage:
        prompts = margins.prompt_tokens
        if prompts is None:
            lengths = np.asarray(self._lengths, dtype=np.int64)
            prompts = self._prefix_length * len(self._source) + int(lengths[self._source].sum())
        finished = self.submission.finished
        return Usage(
            documents=len(self._source),
            prompt_tokens=prompts,
            computed_tokens=margins.computed_tokens,
            seconds=max(0.0, (time.perf_counter() if finished is None else finished) - self._started),
        )


def _checked_documents(documents: Sequence[str]) -> list[str]:
    if isinstance(documents, (str, bytes)) or not isinstance(documents, Sequence):
        raise InvalidInputError("documents", documents, "needs a list of strings")
    for index, document in enumerate(documents):
        if type(document) is not str:  # a name is not made for each of a thousand that are right
            check_text(f"documents[{index}]", document, may_be_empty=True)
    return list(documents)


_FIELDS: list[Callable[[ScoredDocument, Any], None]] = [
    getattr(ScoredDocument, field.name).__set__ for field in fields(ScoredDocument)
]


def _scored_documents(*columns: list[Any]) -> tuple[ScoredDocument, ...]:
    """One document for each row of the columns, which are in the order of its fields.

    Field by field through the slots: the frozen class's own `__init__` takes more than twice as long for many.
    """
    documents = tuple(map(object.__new__, repeat(ScoredDocument, len(columns[0]))))
    for assign, column in zip(_FIELDS, columns, strict=True):
        for document, value in zip(documents, column, strict=True):
            assign(document, value)
    return documents


def sigmoid(margins: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 / (1 + exp(-margin)), in the form that does not overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * margins.astype(np.float64)))
