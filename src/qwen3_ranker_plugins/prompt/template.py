"""Templates: the text of a prompt with its fields, by name or the user's own."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ..errors import InvalidInputError

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
DEFAULT_MAX_LENGTH = 8192

# From the model card of Qwen/Qwen3-Reranker-0.6B, which shows both separators: "\n\n" in its vLLM example,
# "\n" in its transformers example.
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def _chat(system: str, user: str) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}{_SUFFIX}"


#: Named templates. Add one here, or pass the text itself as `template`.
#: `compact` replaces the judge's text by the instruction: it has fewer tokens, but the model was not trained on it.
TEMPLATES: dict[str, str] = {
    "standard": _chat(JUDGE, "<Instruct>: {instruction}\n\n<Query>: {query}\n\n<Document>: {document}"),
    "standard-hf": _chat(JUDGE, "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"),
    "compact": _chat("{instruction}", "<Query>: {query}\n<Document>: {document}"),
}

_FIELDS = ("instruction", "query", "document")
#: The field `{|}`: the texts before and after it are encoded separately.
BOUNDARY = "|"


@dataclass(frozen=True)
class Template:
    """A prompt with the fields {instruction}, {query} and {document}; {document} comes last.

    Literal braces are written `{{` and `}}`. Text after {document} is the suffix. `{|}` is a token
    boundary: the texts before and after it are encoded separately, as in the training of some rerankers.

    Raises:
        InvalidInputError: an unknown field, a missing or repeated one, or one after {document}.
    """

    text: str

    @classmethod
    def named(cls, template: str) -> Template:
        """A name from TEMPLATES, or the text of a template itself. Each is parsed once."""
        if isinstance(template, str) and template in TEMPLATES:
            return _parsed(TEMPLATES[template])
        if not isinstance(template, str) or "{document}" not in template:
            raise InvalidInputError(
                "template", template, f"give one of {', '.join(TEMPLATES)}, or a text with {{query}} and {{document}}"
            )
        return _parsed(template)

    def __post_init__(self) -> None:
        fields = [field for _, field in self.parts if field not in (None, BOUNDARY)]
        if unknown := [field for field in fields if field not in _FIELDS]:
            raise InvalidInputError("template", self.text, f"unknown field {{{unknown[0]}}}: use {', '.join(_FIELDS)}")
        if fields.count("query") != 1 or fields.count("document") != 1 or fields.count("instruction") > 1:
            raise InvalidInputError(
                "template", self.text, "needs {query} and {document} once, and {instruction} at most once"
            )
        if fields[-1] != "document":
            raise InvalidInputError("template", self.text, "{document} must be the last field")

    @cached_property
    def parts(self) -> list[tuple[str, str | None]]:
        """(literal text, field that follows it or None) in order."""
        try:
            parsed = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise InvalidInputError("template", self.text, f"{error}; write a literal brace as {{{{ or }}}}") from error
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise InvalidInputError("template", self.text, "fields take no format or conversion")
        return [(literal, field) for literal, field, _, _ in parsed]

    @property
    def prefix(self) -> list[tuple[str, str | None]]:
        """The parts up to {document}."""
        return self.parts[: self._document + 1]

    @property
    def suffix(self) -> list[str]:
        """The texts after {document}, which are encoded separately."""
        return [literal for literal, _ in self.parts[self._document + 1 :]]

    def render_prefix(self, fields: Mapping[str, str]) -> str:
        """The text before the document, with its fields filled in."""
        return "".join(literal + fields.get(field or "", "") for literal, field in self.prefix)

    @property
    def _document(self) -> int:
        return [field for _, field in self.parts].index("document")


@lru_cache(maxsize=16)
def _parsed(text: str) -> Template:
    return Template(text)
