"""The values that go into and come out of a reranker. All are immutable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload


@dataclass(frozen=True, slots=True)
class Pieces:
    """How long documents are judged in pieces; see docs/long-documents.md.

    A document with more tokens than a piece, or than fit the prompt, is cut. Its pieces are judged like documents, and
    the one with the highest margin decides.

    Attributes:
        tokens: most tokens of a piece, without the rest of the prompt; fewer if the prompt leaves less room.
        overlap: most tokens that a piece shares with the one before; at most half of `tokens`.
        limit: most pieces of a document. What follows them is not read and counts as truncated.
    """

    tokens: int = 512
    overlap: int = 64
    limit: int = 64


DEFAULT_PIECES = Pieces()


@dataclass(frozen=True, slots=True)
class Request:
    """One query and the documents to be judged for it: the unit of work.

    Attributes:
        query: what the user asked; not empty.
        documents: texts in any order; may be empty.
        instruction: the task, as in the model's prompt; None means as configured.
        max_document_tokens: cut each document to at most this many tokens; None cuts only what does not fit the prompt.
        pieces: judge long documents in such pieces; None means as configured.
    """

    query: str
    documents: Sequence[str]
    instruction: str | None = None
    max_document_tokens: int | None = None
    pieces: Pieces | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """What a sentence of a document adds to its margin.

    Attributes:
        start, end: it is `document[start:end]`, with the white space after it.
        margin: of what was judged without this sentence.
        contribution: the document's margin - `margin`; positive if the sentence speaks for the document.
    """

    start: int
    end: int
    margin: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a document came to its score and its place.

    Attributes:
        prompt: the text of all ids that the model read; None if a service makes the prompt.
        prompt_tokens: their number; None if a service makes the prompt.
        judged: (start, end) of the part of the document that the prompt holds: all of it, what is left of it where it
            is cut, or the piece that decided. A service may have cut more than is known here.
        rank: place in the result, from 1.
        rank_before: place in the input, from 1.
        sentences: what each sentence of that part adds, if asked for; None otherwise. Of more than 64 sentences,
            neighbouring ones count as one.
    """

    prompt: str | None
    prompt_tokens: int | None
    judged: tuple[int, int]
    rank: int
    rank_before: int
    sentences: tuple[Sentence, ...] | None = None


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A document with its judgement.

    Attributes:
        index: position in the input.
        document: the text as it was given.
        score: P(yes) = sigmoid(margin), in [0, 1]; with a calibration, the calibrated P(yes).
        margin: logit(yes) - logit(no); orders documents whose scores both round to 1.0.
        confidence: |P(yes) - P(no)| = tanh(|margin| / 2), in [0, 1]: how decided the model is, either way; with a
            calibration, of the calibrated P(yes).
        truncated_tokens: tokens cut off the end of the document so that the prompt fits; 0 if it was read whole. A
            lower bound for a document of more than 65,536 characters, which is tokenized only as far as it is read.
        piece: (start, end) of the piece that decided, which is `document[start:end]`, if documents are judged in
            pieces; all of a document that is not cut. None if documents are judged as one.
        explanation: of the score and the place; None unless asked for.
    """

    index: int
    document: str
    score: float
    margin: float
    confidence: float
    truncated_tokens: int = 0
    piece: tuple[int, int] | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call cost.

    Attributes:
        documents: documents in the input, equal texts counted each time.
        prompt_tokens: tokens of all prompts, as if each document or piece had been scored on its own. From a remote
            service: as it counted them, equal texts once; 0 if it does not say.
        computed_tokens: tokens that went through the model. From a remote service: as `prompt_tokens`.
        seconds: wall time from the beginning of the request's tokenization to its last score, waiting included.
        pieces: texts that were judged, equal ones counted each time: pieces of documents, or else whole documents.
        cached_documents: documents in the input whose score came from the cache: `prompt_tokens` counts them, except
            for a remote service, and `computed_tokens` does not.
    """

    documents: int
    prompt_tokens: int
    computed_tokens: int
    seconds: float
    pieces: int = 0
    cached_documents: int = 0

    @property
    def shared_tokens(self) -> int:
        """Tokens that did not have to be computed again: shared prefixes, equal documents, cached scores."""
        return self.prompt_tokens - self.computed_tokens


@dataclass(frozen=True, slots=True)
class RerankResult(Sequence[ScoredDocument]):
    """Documents in their new order, best first, and what the call cost. Behaves as a sequence of hits.

    Attributes:
        hits: what is left after thresholds and top_k.
        usage: counts every document of the input.
    """

    hits: tuple[ScoredDocument, ...]
    usage: Usage

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[ScoredDocument]:
        return iter(self.hits)

    @overload
    def __getitem__(self, item: int) -> ScoredDocument: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[ScoredDocument]: ...
    def __getitem__(self, item: int | slice) -> ScoredDocument | Sequence[ScoredDocument]:
        return self.hits[item]
