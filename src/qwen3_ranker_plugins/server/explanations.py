"""The request field `explain` and the explanations in answers. Both exist only in this server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ..types import Explanation, ScoredDocument
from .fields import Span, present

ExplainField = Annotated[
    bool | Literal["sentences"] | None,
    Field(
        description='True: each result has an explanation. "sentences": it also says how much each sentence of the '
        "judged text adds to the logit; for this, each text is scored again once per sentence, without that sentence."
    ),
]


class SentenceContribution(Span):
    """What a sentence adds: the logit of the judged text minus the logit of that text without the sentence."""

    contribution: float


class ExplanationAnswer(BaseModel):
    """Why a result has its score and its rank. Offsets count code points of the judged text."""

    margin: float = Field(description="logit(yes) - logit(no).")
    score: float = Field(description="P(yes), calibrated if the server has a calibration.")
    judged: Span = Field(description="The part of the text that is in the prompt; the rest was cut.")
    truncated_tokens: int
    prompt: str | None = Field(
        default=None, description="The whole prompt that the model read; missing if a remote service builds it."
    )
    prompt_tokens: int | None = None
    rank: int = Field(description="Rank of the result, from 1.")
    rank_before: int = Field(description="Position in the request, from 1.")
    sentences: list[SentenceContribution] | None = Field(
        default=None, description="Sentences of the judged part. If there are more than 64, adjacent ones are merged."
    )

    @classmethod
    def of(cls, hit: ScoredDocument) -> ExplanationAnswer | None:
        """The explanation of a hit; None if there is none."""
        explanation: Explanation | None = hit.explanation
        if explanation is None:
            return None
        start, end = explanation.judged
        sentences = explanation.sentences
        return cls(
            margin=hit.margin,
            score=hit.score,
            judged=Span(start=start, end=end),
            truncated_tokens=hit.truncated_tokens,
            prompt=explanation.prompt,
            prompt_tokens=explanation.prompt_tokens,
            rank=explanation.rank,
            rank_before=explanation.rank_before,
            sentences=None
            if sentences is None
            else [
                SentenceContribution(start=each.start, end=each.end, contribution=each.contribution)
                for each in sentences
            ],
        )


def add_details(items: Sequence[dict[str, Any]], hits: Sequence[ScoredDocument]) -> None:
    """Add the piece and the explanation of each hit to its item, if there are any.

    Args:
        items: objects of an answer; changed in place.
        hits: the hit of each item. All of them have a piece, or none, and likewise an explanation.
    """
    if not hits or (hits[0].piece is None and hits[0].explanation is None):
        return
    for item, hit in zip(items, hits, strict=True):
        item.update(present(piece=Span.of(hit.piece), explanation=ExplanationAnswer.of(hit)))
