"""Why a document has its rank: the prompt, the part of the document in it, and what each sentence contributes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from .checks import check_choice
from .prompt import Encoder, PromptEncoder, sentence_ends
from .ranking import PreparedRequest
from .types import Explanation, Pieces, Request, RerankResult, ScoredDocument, Sentence

#: Type of the argument `explain`.
Explain = bool | Literal["sentences"]

#: A text with more sentences is split into this many parts of neighbouring sentences; each part is left out once.
MOST_PARTS = 64


def check_explain(explain: object) -> None:
    """Raise InvalidInputError unless the value is True, False or "sentences"."""
    if not isinstance(explain, bool):
        check_choice("explain", explain, ("sentences",))


class Explainer:
    """Explains the hits of one result.

    If sentences are requested, `without_sentences` is a request that has to be scored first. Its documents are the
    judged texts with one sentence left out, one for each sentence; all of them share one prefix.

    Args:
        encoder: encoder of the reranker that made the result.
        prepared: the request.
        result: its result.
        sentences: whether to measure what each sentence contributes.
    """

    def __init__(self, encoder: Encoder, prepared: PreparedRequest, result: RerankResult, *, sentences: bool) -> None:
        self._result = result
        self._explanations = list(_explanations(encoder, prepared, result))
        self._parts: list[list[tuple[int, int]]] = []
        self.without_sentences: Request | None = None
        if sentences and result.hits:
            self._parts = [
                _parts(hit.document, *explanation.judged)
                for hit, explanation in zip(result, self._explanations, strict=True)
            ]
            self.without_sentences = Request(
                prepared.query,
                [
                    hit.document[explanation.judged[0] : start] + hit.document[end : explanation.judged[1]]
                    for hit, explanation, parts in zip(result, self._explanations, self._parts, strict=True)
                    for start, end in parts
                ],
                prepared.instruction,
                prepared.max_document_tokens,
                prepared.pieces,
            )

    def explained(self, without_sentences: RerankResult | None = None) -> RerankResult:
        """The result with an explanation in each hit.

        Args:
            without_sentences: result of the request `without_sentences`, with all its hits. Its tokens and its time are
                added to the usage.
        """
        explanations, usage = self._explanations, self._result.usage
        if without_sentences is not None:
            margins = iter([hit.margin for hit in sorted(without_sentences, key=lambda hit: hit.index)])
            explanations = [
                replace(explanation, sentences=tuple(_sentences(hit, parts, margins)))
                for hit, explanation, parts in zip(self._result, explanations, self._parts, strict=True)
            ]
            more = without_sentences.usage
            usage = replace(
                usage,
                prompt_tokens=usage.prompt_tokens + more.prompt_tokens,
                computed_tokens=usage.computed_tokens + more.computed_tokens,
                seconds=usage.seconds + more.seconds,
            )
        hits = tuple(
            replace(hit, explanation=explanation) for hit, explanation in zip(self._result, explanations, strict=True)
        )
        return RerankResult(hits, usage)


def _explanations(encoder: Encoder, prepared: PreparedRequest, result: RerankResult) -> Iterator[Explanation]:
    """The explanation of each hit, without sentences."""
    texts = [hit.document if hit.piece is None else hit.document[slice(*hit.piece)] for hit in result]
    encoded = encoder.encode(
        prepared.query, texts, prepared.instruction, prepared.max_document_tokens if prepared.pieces is None else None
    )
    ids_are_known = isinstance(encoder, PromptEncoder)
    for place, hit in enumerate(result):
        prompt = encoder.tokenizer.text(encoded.prompt(place)) if isinstance(encoder, PromptEncoder) else None
        judged = hit.piece or (0, len(hit.document))
        if isinstance(encoder, PromptEncoder) and hit.piece is None and hit.truncated_tokens:
            kept = encoded.lengths[place] - len(encoder.suffix_ids)
            beginning = encoder.encode(prepared.query, [hit.document], prepared.instruction, kept, Pieces(kept, 0, 1))
            if beginning.pieces:
                judged = (0, beginning.pieces[0].end)
        yield Explanation(
            prompt=prompt,
            prompt_tokens=encoded.prefix_length + encoded.lengths[place] if ids_are_known else None,
            judged=judged,
            rank=place + 1,
            rank_before=hit.index + 1,
        )


def _parts(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """(start, end) of the sentences of `text[start:end]`; if there are too many, neighbouring ones are merged."""
    ends = sorted({*sentence_ends(text, start, end), end} - {start}) or [end]
    if len(ends) > MOST_PARTS:
        ends = [ends[(number + 1) * len(ends) // MOST_PARTS - 1] for number in range(MOST_PARTS)]
    return list(pairwise([start, *ends]))


def _sentences(hit: ScoredDocument, parts: list[tuple[int, int]], margins: Iterator[float]) -> Iterator[Sentence]:
    for start, end in parts:
        without = next(margins)
        yield Sentence(start, end, without, hit.margin - without)
