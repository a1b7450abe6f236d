"""The description of how a checkpoint judges a document, as `spec_reader` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidInputError, UnsupportedModelError

if TYPE_CHECKING:
    from ..prompt.tokenizer import ModelTokenizer

_SCORING = re.compile(r"\s*(?P<positive>[^\s/-]+)\s*(?:-\s*(?P<negative>[^\s/-]+)\s*)?(?:/\s*(?P<divisor>[0-9.]+)\s*)?")
#: `scoring=` of a sequence classifier: the margin is the output of its score head.
SCORE_HEAD = "score-head"


@dataclass(frozen=True)
class Scoring:
    """How a margin is computed from the model's output at the last position of a prompt.

    Label tokens: margin = (logit[positive] - logit[negative]) / divisor, or logit[positive] / divisor if `negative` is
    None. A score head (`positive` is None): margin = (weight . hidden + bias) / divisor.

    Attributes:
        positive, negative: texts of the label tokens.
        divisor: a positive number.
    """

    positive: str | None
    negative: str | None = None
    divisor: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Scoring:
        """`"yes - no"`, `"Yes / 5"`, `"1 - 0"`, `"score-head"` or `"score-head / 5"`.

        Raises:
            InvalidInputError: it is none of these.
        """
        if isinstance(text, str) and (match := _SCORING.fullmatch(text)):
            try:
                divisor = float(match["divisor"] or 1)
            except ValueError:
                divisor = 0.0
            if divisor > 0:
                if text.partition("/")[0].strip() == SCORE_HEAD:
                    return cls(None, None, divisor)
                return cls(match["positive"], match["negative"], divisor)
        raise InvalidInputError(
            "scoring", text, f"use label tokens such as 'yes - no', '1 - 0' or 'Yes / 5', or {SCORE_HEAD!r}"
        )

    @property
    def is_score_head(self) -> bool:
        """Whether a score head is read instead of label tokens."""
        return self.positive is None

    def __str__(self) -> str:
        if self.positive is None:
            text = SCORE_HEAD
        else:
            text = self.positive if self.negative is None else f"{self.positive} - {self.negative}"
        return text if self.divisor == 1 else f"{text} / {self.divisor:g}"


@dataclass(frozen=True)
class ModelSpec:
    """Everything that turns a query and a document into a margin, and where each part comes from.

    Attributes:
        architecture: the class in `architectures`.
        decoder: "qwen3", "qwen2" or "qwen3_vl".
        family: name of the `Family` whose defaults apply where the checkpoint states nothing.
        scoring: see `Scoring`.
        template: text of the prompt with an instruction, see `prompt.Template`.
        template_without_instruction: text of the prompt without one; None if there is always one.
        instruction: the default instruction; None for none.
        empty_document: takes the place of a document without text in the prompt.
        max_positions: maximum length of a prompt in tokens that the position embeddings cover.
        quantization: `quant_method` of config.json; None if the weights are plain.
        sources: name of an attribute -> where it was read.
    """

    architecture: str
    decoder: str
    family: str
    scoring: Scoring
    template: str
    template_without_instruction: str | None
    instruction: str | None
    empty_document: str
    max_positions: int
    quantization: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def facts(self) -> dict[str, str]:
        """The description for logs and reports, each part with its source."""

        def with_source(name: str, value: str) -> str:
            return f"{value} ({self.sources[name]})" if name in self.sources else value

        return {
            "architecture": with_source("architecture", self.architecture),
            "family": with_source("family", self.family),
            "scoring": with_source("scoring", str(self.scoring)),
            "template": with_source("template", "its own"),
            "instruction": with_source("instruction", self.instruction or "none"),
            "max_positions": str(self.max_positions),
            "quantization": self.quantization or "none",
        }


def label_ids(scoring: Scoring, tokenizer: ModelTokenizer, folder: Path) -> tuple[int, int | None]:
    """Ids of the positive and the negative label token.

    Raises:
        UnsupportedModelError: a label is not one token.
    """
    ids = [None if word is None else tokenizer.find(word) for word in (scoring.positive, scoring.negative)]
    for word, found in zip((scoring.positive, scoring.negative), ids, strict=True):
        if word is not None and found is None:
            raise UnsupportedModelError(
                f"{folder} cannot be scored as {str(scoring)!r}: its tokenizer splits {word!r} into "
                f"{len(tokenizer.encode(word))} tokens, so there is no single logit to read; use a "
                "Qwen3-Reranker checkpoint, or give its labels as scoring="
            )
    positive, negative = ids
    assert positive is not None  # noqa: S101 - a score head has no label ids
    return positive, negative
