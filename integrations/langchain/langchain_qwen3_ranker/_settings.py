"""What both classes are made of: the settings of a `Reranker`, and the `Reranker` made of them at first use."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from pydantic.json_schema import SkipJsonSchema

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.config import DEFAULT_MODEL, RerankerSettings
from qwen3_ranker_plugins.prompt import DEFAULT_MAX_LENGTH

_RERANKER_SETTINGS = ("model", "engine", "device", "dtype", "template", "max_length", "token_budget", "engine_options")


class _Loaded:
    """Where an object keeps what it made. Copies and pickles of it are empty: they may have other settings."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reranker: Reranker | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Loaded, ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Loaded)  # pydantic compares private attributes; equal settings make equal objects

    __hash__ = None  # type: ignore[assignment]


class Qwen3Settings(BaseModel):
    """Which model scores, and how.

    The model is loaded when the first document is scored. Objects with equal engine settings in one process share
    one model, and callers that run at the same time share forward passes. Thread-safe.

    Raises:
        ValidationError: a ValueError; names the argument, its value and the remedy.
    """

    # Our own messages show what is wrong; pydantic's would add the whole input, and a key with it.
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True)

    model: str = Field(default=DEFAULT_MODEL, frozen=True)
    """A name on the Hugging Face hub, a folder, or "bundled:tiny"."""
    engine: str = Field(default="auto", frozen=True)
    """Name of an engine, or "auto"."""
    device: str = Field(default="auto", frozen=True)
    """One of "auto", "cpu", "cuda" and "cuda:N"."""
    dtype: str = Field(default="auto", frozen=True)
    """One of "auto", "float32", "bfloat16" and "float16"."""
    template: str = Field(default="standard", frozen=True)
    """One of "standard", "standard-hf" and "compact", or the text of a template with {query} and {document}."""
    max_length: int = Field(default=DEFAULT_MAX_LENGTH, frozen=True)
    """Longest prompt in tokens; longer documents are cut at their end."""
    token_budget: int | None = Field(default=None, frozen=True)
    """Tokens of one forward pass, which bounds memory; None chooses by device."""
    engine_options: dict[str, Any] = Field(default_factory=dict, frozen=True)
    """The engine's own options, by name."""
    instruction: str | None = None
    """The task that documents are judged for; None for the reranker's own."""
    reranker: SkipJsonSchema[Reranker | None] = Field(default=None, exclude=True, repr=False, frozen=True)
    """A ready reranker in place of the settings above, which must then be left out. It stays its maker's to close."""

    _loaded: _Loaded = PrivateAttr(default_factory=_Loaded)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        """Refuse at once what could only fail when the model is loaded."""
        RerankerSettings(instruction=self.instruction, **self._settings())
        if self.reranker is not None:
            if given := [name for name in _RERANKER_SETTINGS if name in self.model_fields_set]:
                raise InvalidInputError(given[0], getattr(self, given[0]), "leave it out where `reranker` is given")
            # What is dumped is what scores. (Past the frozen fields, and without counting as given.)
            self.__dict__.update({name: getattr(self.reranker.settings, name) for name in _RERANKER_SETTINGS})
        return self

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._loaded = _Loaded()  # noqa: SLF001 - of this class
        return copied

    def close(self) -> None:
        """Give up the model; the last object that uses it frees it. Also happens when this is garbage.

        It is loaded again when it is needed again. A `reranker` that was given stays open.
        """
        with self._loaded.lock:
            reranker, self._loaded.reranker = self._loaded.reranker, None
        if reranker is not None:
            reranker.close()

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _RERANKER_SETTINGS}

    def _ready(self) -> Reranker:
        if self.reranker is not None:
            return self.reranker
        with self._loaded.lock:
            if self._loaded.reranker is None:
                self._loaded.reranker = Reranker(**self._settings())
            return self._loaded.reranker

    async def _ready_async(self) -> Reranker:
        # Read once: another thread may close this between two looks.
        reranker = self.reranker or self._loaded.reranker
        return await asyncio.to_thread(self._ready) if reranker is None else reranker
