"""What happens to a request beside the engine: its check on the way in, its order on the way out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import RankingOptions, check_positive, check_text
from .engines.base import Margins
from .errors import InvalidInputError, ScoringError
from .prompt import EncodedRequest
from .types import Request, RerankResult, ScoredDocument, Usage


@dataclass(frozen=True)
class Texts:
    """A checked request, of which equal documents are scored once.

    Attributes:
        query, instruction, max_document_tokens: as in `Request`, the configured instruction filled in.
        documents: as given.
        distinct: their texts, each once.
        source: for each document, its place among the distinct texts.
        started: perf_counter() when the check began.
    """

    query: str
    instruction: str | None
    max_document_tokens: int | None
    documents: list[str]
    distinct: list[str]
    source: NDArray[np.intp]
    started: float


def checked(request: Request, configured_instruction: str | None) -> Texts:
    """Check a request's texts.

    Raises:
        InvalidInputError: names the argument, its value and the remedy.
    """
    started = time.perf_counter()
    check_text("query", request.query)
    check_positive("max_document_tokens", request.max_document_tokens)
    instruction = configured_instruction if request.instruction is None else request.instruction
    if instruction is not None:
        check_text("instruction", instruction)
    documents = _checked_documents(request.documents)
    places: dict[str, int] = {}
    source = [places.setdefault(document, len(places)) for document in documents]
    return Texts(
        request.query,
        instruction,
        request.max_document_tokens,
        documents,
        list(places),
        np.asarray(source, dtype=np.intp),
        started,
    )


def _checked_documents(documents: Sequence[str]) -> list[str]:
    if isinstance(documents, (str, bytes)) or not isinstance(documents, Sequence):
        raise InvalidInputError("documents", documents, "needs a list of strings")
    for index, document in enumerate(documents):
        if type(document) is not str:  # a name is not made for each of a thousand that are right
            check_text(f"documents[{index}]", document, may_be_empty=True)
    return list(documents)


@dataclass
class Prepared:
    """A checked and encoded request.

    Attributes:
        documents: as given.
        source: for each document, its place among the distinct texts that were encoded.
        encoded: the distinct texts.
        started: perf_counter() when its preparation began.
        finished: perf_counter() when its last document was scored.
    """

    documents: Sequence[str]
    source: NDArray[np.intp]
    encoded: EncodedRequest
    started: float
    finished: float | None = None

    @property
    def distinct(self) -> int:
        """Texts that have to be scored."""
        return len(self.encoded.segments)

    @property
    def truncated(self) -> list[tuple[int, int]]:
        """(position in the input, tokens cut off) of every document that is not read whole."""
        cut = self.encoded.truncated_tokens
        return [(index, cut[place]) for index, place in enumerate(self.source.tolist()) if cut[place]]

    def stop_clock(self, _future: Future[Margins]) -> None:
        """The last document is scored."""
        self.finished = time.perf_counter()

    def margins(self, margins: Margins) -> NDArray[np.float32]:
        """Margins in input order.

        Raises:
            ScoringError: one of them is missing or not finite.
        """
        values = margins.values[self.source]
        reasons = {
            int(i): f"its margin is {margins.values[i]}" for i in np.flatnonzero(~np.isfinite(margins.values))
        } | dict(margins.failures)
        if reasons:
            failed = {index: reasons[place] for index, place in enumerate(self.source.tolist()) if place in reasons}
            values[list(failed)] = np.nan
            raise ScoringError(failed, values)
        return values

    def scores(self, margins: Margins) -> NDArray[np.float32]:
        """P(yes) in input order."""
        return _sigmoid(self.margins(margins)).astype(np.float32)

    def result(self, margins: Margins, options: RankingOptions) -> RerankResult:
        """Order, threshold, cut."""
        values = self.margins(margins).astype(np.float64)
        scores, confidences = _sigmoid(values), np.tanh(np.abs(values) / 2)
        keep = np.ones(len(values), dtype=np.bool_)
        if options.score_threshold is not None:
            keep &= scores >= options.score_threshold
        if options.min_confidence is not None:
            keep &= confidences >= options.min_confidence
        order = np.argsort(-values, kind="stable")
        kept = order[keep[order]][: options.top_k]
        indices: list[int] = kept.tolist()
        # Whole arrays become lists of Python's numbers at once, which takes half the time of one number after another.
        columns = (each[kept].tolist() for each in (scores, values, confidences, self._truncated(margins)[self.source]))
        hits = _scored_documents(indices, [self.documents[index] for index in indices], *columns)
        return RerankResult(hits, self._usage(margins))

    def _truncated(self, margins: Margins) -> NDArray[np.int64]:
        """For each distinct text, the tokens cut off by the encoder and by the engine."""
        cut = np.asarray(self.encoded.truncated_tokens, dtype=np.int64)
        for place, tokens in margins.truncated.items():
            cut[place] += tokens
        return cut

    def _usage(self, margins: Margins) -> Usage:
        prompts = margins.prompt_tokens
        if prompts is None:
            lengths = np.asarray(self.encoded.lengths, dtype=np.int64)
            prompts = self.encoded.prefix_length * len(self.source) + int(lengths[self.source].sum())
        return Usage(
            documents=len(self.source),
            prompt_tokens=prompts,
            computed_tokens=margins.computed_tokens,
            seconds=(time.perf_counter() if self.finished is None else self.finished) - self.started,
        )


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


def _sigmoid(margins: NDArray[np.floating]) -> NDArray[np.float64]:
    """1 / (1 + exp(-margin)), in the form that does not overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * margins.astype(np.float64)))
