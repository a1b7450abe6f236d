"""The values that go into and come out of a reranker. All are immutable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload


@dataclass(frozen=True, slots=True)
class Pieces:
    """How to cut long documents into pieces that are judged separately; see docs/long-documents.md.

    A document is cut if it has more tokens than a piece may have, or more than fit the prompt. Each piece is judged
    like a document, and the highest margin of its pieces becomes the margin of the document.

    Attributes:
        tokens: maximum number of tokens in a piece, without the rest of the prompt; fewer if the prompt leaves less
            room.
        overlap: maximum number of tokens that a piece shares with the previous one; at most half of `tokens`.
        limit: maximum number of pieces of a document. The text after the last piece is not read and counts as
            truncated.
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
        instruction: the task that the prompt states; None means as configured.
        max_document_tokens: cut each document to at most this many tokens; None cuts only what does not fit the prompt.
        pieces: how to cut long documents; None means as configured.
    """

    query: str
    documents: Sequence[str]
    instruction: str | None = None
    max_document_tokens: int | None = None
    pieces: Pieces | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """How much one sentence contributes to the margin of its document.

    Attributes:
        start, end: offsets in characters: the sentence, with the white space after it, is `document[start:end]`.
        margin: the margin of the judged text without this sentence.
        contribution: the document's margin - `margin`; positive if the sentence makes the document more relevant.
    """

    start: int
    end: int
    margin: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a document has its score and its rank.

    Attributes:
        prompt: the whole prompt, decoded from the ids that the model read; None if a remote service builds the prompt.
        prompt_tokens: number of tokens in the prompt; None if a remote service builds it.
        judged: (start, end) of the part of the document that the prompt holds, in characters: the whole document, the
            part before the cut if it was truncated, or the piece with the highest margin. A remote service may have cut
            off more than is known here.
        rank: rank in the result, counted from 1.
        rank_before: position in the input, counted from 1.
        sentences: the contribution of each sentence of that part; None unless requested. If there are more than 64
            sentences, neighbouring ones are merged.
    """

    prompt: str | None
    prompt_tokens: int | None
    judged: tuple[int, int]
    rank: int
    rank_before: int
    sentences: tuple[Sentence, ...] | None = None


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A document with its score.

    Attributes:
        index: position in the input.
        document: the text as it was given.
        score: P(yes) = sigmoid(margin), in [0, 1]; with a calibration, the calibrated P(yes).
        margin: logit(yes) - logit(no); orders documents whose scores both round to 1.0.
        confidence: |P(yes) - P(no)| = tanh(|margin| / 2), in [0, 1]: how certain the model is of its answer, whether
            yes or no; computed from the calibrated P(yes) if there is a calibration.
        truncated_tokens: number of tokens cut off the end of the document to make the prompt fit; 0 if it was read
            whole. A lower bound for a document of more than 65,536 characters, which is tokenized only as far as it is
            read.
        piece: (start, end) of the piece with the highest margin, `document[start:end]`, if documents are judged in
            pieces; the whole document if it was not cut. None if each document is judged as a whole.
        explanation: why the document has its score and rank; None unless requested.
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
        documents: number of documents in the input; equal texts count each time.
        prompt_tokens: number of tokens in all prompts, as if each document or piece had been scored on its own. For a
            remote service: the number that the service reports, which counts equal texts once; 0 if it reports none.
        computed_tokens: number of tokens that went through the model. For a remote service: the same as
            `prompt_tokens`.
        seconds: wall time from the start of the request's tokenization to its last score, including time in the queue.
        pieces: number of texts that were judged: pieces, or whole documents if they are not cut; equal texts count each
            time.
        cached_documents: number of documents in the input whose score came from the cache. `prompt_tokens` includes
            them, except for a remote service; `computed_tokens` does not.
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
        hits: the documents that pass the thresholds, at most top_k.
        usage: cost of the whole call, including documents that are not in `hits`.
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
