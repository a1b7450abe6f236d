"""Fields, requests and answers that several wire shapes share.

Unknown fields are refused, because they might have been meant to change the ranking. Fields described as "No effect"
are sent by clients of other services and cannot change a ranking here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..documents import LONGEST_TEMPLATE, MOST_FIELDS
from ..types import Usage

NO_EFFECT = "No effect; accepted because clients of other services send it."

#: A character that Python's `str.strip` keeps. `\S` differs: in OpenAPI's regular expressions U+001C is not a space.
NOT_BLANK = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
#: Deeper nesting could be read but not written again: pydantic's serializer stops at 255 levels.
DEEPEST_DOCUMENT = 100

#: Examples of the OpenAPI document.
EXAMPLE_QUERY = "how do I close a file?"
EXAMPLE_DOCUMENTS: list[JsonValue] = ["The with statement closes the file at its end.", "Bread needs yeast."]


def only_null(remedy: str) -> BeforeValidator:
    """Validator that accepts only null, for a field that clients send and that would change the ranking.

    Args:
        remedy: text of the error.
    """

    def check(value: object) -> None:
        if value is not None:
            raise PydanticCustomError("refused_field", "{remedy}", {"remedy": remedy})

    return BeforeValidator(check)


def present(**fields: object) -> dict[str, Any]:
    """An object of an answer: the fields that are not None.

    A plain dict, because making and writing a model for each of 1000 results takes several times as long. The models
    describe the answers in the OpenAPI document; tests compare the two.
    """
    return {name: value for name, value in fields.items() if value is not None}


def _is_no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("refused_field", "must be a number")
    return value


def _is_bool(value: object) -> object:
    if not isinstance(value, bool):
        raise PydanticCustomError("refused_field", "must be false")
    return value


#: Only 0, and only false: in Python the two are equal, so that a plain Literal accepts either.
Zero = Annotated[Literal[0], BeforeValidator(_is_no_bool)]
No = Annotated[Literal[False], BeforeValidator(_is_bool)]


def _as_bool(value: bool | str) -> bool:
    return value if isinstance(value, bool) else value.lower() == "true"


def _no_arguments(value: object) -> object:
    if value not in (None, {}, "", "{}"):
        raise PydanticCustomError("refused_field", "no additional arguments are supported; send an empty object")
    return value


Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Count = Annotated[int, Field(ge=0, le=2**53)]
#: Xinference's clients write booleans as text.
Flag = Annotated[bool | Literal["true", "false", "True", "False"], AfterValidator(_as_bool)]
ScoreThreshold = Annotated[
    Probability | None,
    Field(
        description="Only results whose P(yes) is at least this. P(yes) is calibrated if the server has a calibration; "
        "the threshold applies to it even if the answer contains logits. Only this server has this field."
    ),
]
EmptyArguments = Annotated[
    Literal["", "{}"] | Annotated[dict[str, JsonValue], Field(max_length=0)] | None, BeforeValidator(_no_arguments)
]
NotBlank = Annotated[str, Field(min_length=1, json_schema_extra={"pattern": NOT_BLANK})]
Query = Annotated[NotBlank, Field(description="The query that documents are judged for; not blank.")]
Instruction = Annotated[
    NotBlank | None,
    Field(description="The task in the model's prompt; not blank. Null: the configured one."),
]
Model = Annotated[
    str | None,
    Field(description="A name from /v1/models. Null: the served model. Other names: see strict_model_names."),
]


_TEMPLATE = "the template is chosen when the server starts (--template); the field instruction sets the task"


class WireRequest(BaseModel):
    """A request body, validated strictly: the text "3" is not a number, and 1 is not a boolean."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class TaskFields(WireRequest):
    """Fields of vLLM's and Cohere's requests that affect the prompt, and fields that have no effect."""

    model: Model = None
    instruction: Instruction = None
    max_tokens_per_doc: Count | None = Field(
        default=None, description="Each document is cut to at most this many tokens. 0 or null: it is cut only to fit."
    )
    use_activation: bool | None = Field(
        default=None, description="vLLM's. False: scores are logit(yes) - logit(no) instead of P(yes)."
    )
    truncate_prompt_tokens: Literal[-1] | Positive | None = Field(
        default=None,
        description="vLLM's. Each document is cut to at most this many tokens, as by max_tokens_per_doc; the prompt "
        "around it is never cut. -1: the model's limit.",
    )
    additional_data: EmptyArguments = Field(default=None, description=f"vLLM's. Must be empty. {NO_EFFECT}")
    truncation_side: Literal["right"] | None = Field(
        default=None, description="vLLM's. Only right: documents are cut at their end."
    )
    max_tokens_per_query: Zero | None = Field(default=None, description="vLLM's. Only 0, because a query is never cut.")
    chat_template_kwargs: Annotated[None, only_null(_TEMPLATE)] = Field(
        default=None, description=f"vLLM's. Only null: {_TEMPLATE}."
    )
    user: str | None = Field(default=None, description=NO_EFFECT)
    priority: int | None = Field(default=None, description=NO_EFFECT)
    request_id: str | None = Field(default=None, description=f"{NO_EFFECT} The header X-Request-ID sets an id.")
    cache_salt: str | None = Field(default=None, description=NO_EFFECT)

    @property
    def document_limit(self) -> int | None:
        """Each document is cut to at most this many tokens; None: cut only to fit."""
        limits = (self.max_tokens_per_doc, self.truncate_prompt_tokens)
        return min((limit for limit in limits if limit is not None and limit > 0), default=None)


class DocumentObject(BaseModel):
    """A document as an object. `text` is judged, or the fields that `rank_fields` or `document_template` names."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    text: str | None = None

    _names: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _remember_order(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        document = validate(value)
        if isinstance(value, dict):  # pydantic stores declared fields separately, which loses the order
            document._names = tuple(value)  # noqa: SLF001 - of this class
        if _deeper(document.model_extra, DEEPEST_DOCUMENT):
            raise PydanticCustomError("too_deep", f"nested more than {DEEPEST_DOCUMENT} levels deep")
        return document

    @property
    def fields(self) -> dict[str, Any]:
        """All fields as they were sent, in their order."""
        values = {"text": self.text, **(self.model_extra or {})}
        return {name: values[name] for name in self._names}


class StructuredRequest(WireRequest):
    """Selects the judged fields of documents that are objects. Documents that are strings are judged unchanged."""

    rank_fields: Annotated[list[str], Field(min_length=1, max_length=MOST_FIELDS)] | None = Field(
        default=None,
        description="Cohere's. The fields of each document that are judged, in this order. One field: its text alone. "
        "Several: joined as document_template says. A document that is a string counts as its field text. Null: as "
        "configured, by default text.",
    )
    document_template: Annotated[str, Field(min_length=1, max_length=LONGEST_TEMPLATE)] | None = Field(
        default=None,
        description="How fields are joined. yaml: as YAML, as Cohere does. lines: one line `name: value` per field. "
        "Any other text is a template with names of fields in braces, such as {title}, and replaces rank_fields. Null: "
        "as configured, by default yaml. With yaml or lines and no rank_fields, all fields are judged.",
    )
    return_judged_text: bool | None = Field(
        default=None,
        description="Whether each result has judged_text, the text that the model read. Null: as configured, by "
        "default no.",
    )


def _deeper(value: object, levels: int) -> bool:
    """Whether lists and objects are nested more than `levels` deep."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(child, levels - 1) for child in children)


class Span(BaseModel):
    """A part of a text. Offsets count characters (Unicode code points), not UTF-16 units."""

    start: int
    end: int

    @classmethod
    def of(cls, offsets: tuple[int, int] | None) -> Span | None:
        """From (start, end)."""
        return None if offsets is None else cls(start=offsets[0], end=offsets[1])


JudgedPiece = Annotated[
    Span | None,
    Field(
        description="The piece with the highest score, as a part of the judged text; the whole text if it was not cut "
        "into pieces. Missing unless documents are judged in pieces."
    ),
]


class TokenUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int = Field(
        description="Tokens of all prompts, as if each document or piece had been scored on its own."
    )
    total_tokens: int = Field(description="The same number, because nothing is generated.")
    computed_tokens: int = Field(description="Tokens that went through the model; a shared prefix counts once.")
    pieces: int | None = Field(
        default=None,
        description="Number of judged texts, if a document was judged in several pieces; missing otherwise.",
    )

    @classmethod
    def of(cls, usages: Iterable[Usage]) -> TokenUsage:
        """The sum over the rankings of one HTTP request."""
        usages = list(usages)
        prompts = sum(each.prompt_tokens for each in usages)
        computed = sum(each.computed_tokens for each in usages)
        judged = sum(each.pieces for each in usages)
        pieces = None if judged == sum(each.documents for each in usages) else judged
        return cls(prompt_tokens=prompts, total_tokens=prompts, computed_tokens=computed, pieces=pieces)


class ErrorBody(BaseModel):
    """What went wrong."""

    type: str = Field(description="The kind of error, for programs; such as queue_full.")
    message: str = Field(description="For people; never contains text of the request.")
    request_id: str
    param: str | None = Field(default=None, description="The field at fault.")


class ErrorResponse(BaseModel):
    """Every error has this shape."""

    error: ErrorBody
    detail: str = Field(description="The message again, where clients of Jina and vLLM look for it.")
