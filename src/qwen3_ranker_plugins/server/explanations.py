"""The field `explain` of a request, and what answers hold for it. No other service has them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from ..types import Explanation, ScoredDocument
from .fields import Span

ExplainField = Annotated[
    bool | Literal["sentences"] | None,
    Field(
        description='True: each result has an explanation. "sentences": also what each sentence of what was judged '
        "adds to the logit, for which every text is scored again without each of its sentences."
    ),
]


class SentenceContribution(Span):
    """What a sentence adds: the logit of what was judged, minus the logit of the same without this sentence."""

    contribution: float


class ExplanationAnswer(BaseModel):
    """How a result came to its score and its place. Offsets are into the text that was judged, in code points."""

    margin: float = Field(description="logit(yes) - logit(no).")
    score: float = Field(description="P(yes), calibrated if the server has a calibration.")
    judged: Span = Field(description="The part of the text that the prompt holds; what follows it was cut.")
    truncated_tokens: int
    prompt: str | None = Field(default=None, description="All that the model read; missing if a service makes prompts.")
    prompt_tokens: int | None = None
    rank: int = Field(description="From 1.")
    rank_before: int = Field(description="Place in the request, from 1.")
    sentences: list[SentenceContribution] | None = Field(
        default=None, description="Those of the judged part. Of more than 64, neighbouring ones count as one."
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
