"""The settings of a `Reranker` as fields of a pydantic model, for adapters of frameworks that are built on pydantic.

Needs pydantic, which those frameworks install.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from .adapters import LazyReranker
from .checks import canonical_devices, plain
from .config import DEFAULT_MODEL, RerankerSettings
from .errors import InvalidInputError
from .prompt import DEFAULT_MAX_LENGTH
from .reranker import Reranker
from .types import DEFAULT_PIECES

_RERANKER_SETTINGS = (
    "model",
    "engine",
    "device",
    "dtype",
    "template",
    "max_length",
    "token_budget",
    "engine_options",
    "adapter",
    "scoring",
    "devices",
    "calibration",
    "cache",
    "cache_path",
    "long_documents",
    "piece_tokens",
    "piece_overlap",
    "max_pieces",
)


class Qwen3Settings(BaseModel):
    """Which model scores, and how.

    The model is loaded when the first document is scored. Objects with equal engine settings in one process share one
    model, and concurrent callers share forward passes. Thread-safe.

    Raises:
        ValidationError: a ValueError that names the argument, its value and the remedy.
    """

    # Our own messages show what is wrong; pydantic's would repeat the whole input, including a key in it.
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True)

    model: str = Field(default=DEFAULT_MODEL, frozen=True)
    """Name of a model on the Hugging Face hub, path of a folder, or "bundled:tiny"."""
    engine: str = Field(default="auto", frozen=True)
    """Name of an engine, or "auto"."""
    device: str = Field(default="auto", frozen=True)
    """One of "auto", "cpu", "cuda" and "cuda:N"."""
    dtype: str = Field(default="auto", frozen=True)
    """One of "auto", "float32", "bfloat16" and "float16"."""
    template: str = Field(default="standard", frozen=True)
    """One of "standard", "standard-hf" and "compact", or the text of a template with {query} and {document}."""
    max_length: int = Field(default=DEFAULT_MAX_LENGTH, frozen=True)
    """Maximum length of a prompt in tokens; longer documents are truncated at their end."""
    token_budget: int | None = Field(default=None, frozen=True)
    """Maximum number of tokens in one forward pass, which bounds memory; None chooses by device."""
    engine_options: dict[str, Any] = Field(default_factory=dict, frozen=True)
    """Options of the engine, by name."""
    adapter: str | None = Field(default=None, frozen=True)
    """A LoRA adapter for the model: path of a folder, or name on the hub. "none" ignores an adapter in the model's own
    folder; None uses that one, if there is one."""
    scoring: str | None = Field(default=None, frozen=True)
    """How the model judges, such as "yes - no", which takes precedence over what its checkpoint says."""
    devices: str | None = Field(default=None, frozen=True)
    """Run one engine on each of these devices, each in its own process: "all" for every visible GPU, or names such as
    "cuda:0,cuda:1"; a list of names is stored as such a text. None runs one engine, on `device`."""
    calibration: str | None = Field(default=None, frozen=True)
    """Calibration file, which maps margins to scores that agree with labels and keeps the order; None for P(yes)
    itself."""
    cache: int | str | None = Field(default=None, frozen=True)
    """Maximum size of a cache of scores, such as "256MB", stored as a number of bytes; None for no cache."""
    cache_path: str | None = Field(default=None, frozen=True)
    """File of the cache, which outlives the process; None keeps it in memory."""
    long_documents: str = Field(default="truncate", frozen=True)
    """"truncate" cuts off the end of a document that does not fit the prompt; "pieces" judges a document of more than
    `piece_tokens` tokens in pieces and ranks it by the best one."""
    piece_tokens: int = Field(default=DEFAULT_PIECES.tokens, frozen=True)
    """Maximum number of tokens of a piece."""
    piece_overlap: int = Field(default=DEFAULT_PIECES.overlap, frozen=True)
    """Maximum number of tokens that a piece shares with the previous one."""
    max_pieces: int = Field(default=DEFAULT_PIECES.limit, frozen=True)
    """Maximum number of pieces of a document; the text after the last one is not read."""
    instruction: str | None = None
    """The task for which documents are judged; None for the default of the model, or of `reranker`."""
    reranker: SkipJsonSchema[Reranker | None] = Field(default=None, exclude=True, repr=False, frozen=True)
    """A reranker to use in place of the settings above, which must then be left out. Its owner closes it. It cannot be
    used in a process that was forked from the one that made it."""

    _lazy: LazyReranker = PrivateAttr(default_factory=LazyReranker)

    @field_validator("devices", mode="before")
    @classmethod
    def _devices_as_text(cls, value: object) -> str | None:
        return canonical_devices(value)

    @model_validator(mode="before")
    @classmethod
    def _make_plain(cls, data: Any) -> Any:
        """Paths, members of enumerations and scalars of numpy become builtin values, which every dump can hold."""
        if not isinstance(data, dict):
            return data
        return {name: _plain(value) for name, value in data.items()}

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        """Refuse invalid settings now, not when the model is loaded."""
        settings = RerankerSettings(instruction=self.instruction, **self._settings())
        self.__dict__["engine_options"] = settings.engine_options
        self.__dict__["cache"] = settings.cache
        if self.reranker is not None:
            if given := [name for name in _RERANKER_SETTINGS if name in self.model_fields_set]:
                raise InvalidInputError(given[0], getattr(self, given[0]), "leave it out if `reranker` is given")
            # A dump has to show the settings that score. (This bypasses the frozen fields, and does not mark them as
            # given.)
            self.__dict__.update({name: getattr(self.reranker.settings, name) for name in _RERANKER_SETTINGS})
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _plain(value))

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._lazy = LazyReranker()  # noqa: SLF001 - of this class
        return copied

    def close(self) -> None:
        """Release the model; the last object that uses it frees it. Garbage collection does the same.

        It is loaded again when it is needed. A `reranker` that was given stays open.
        """
        self._lazy.close()

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _RERANKER_SETTINGS}

    def _ready(self) -> Reranker:
        return self.reranker or self._lazy.get(self._make_reranker)

    async def _ready_async(self) -> Reranker:
        return self.reranker or await self._lazy.get_async(self._make_reranker)

    def _make_reranker(self) -> Reranker:
        return Reranker(**self._settings())


def _plain(value: Any) -> Any:
    return [plain(each) for each in value] if isinstance(value, list) else plain(value)
