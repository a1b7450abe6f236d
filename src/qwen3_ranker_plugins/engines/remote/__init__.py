"""The remote engine: text, or token ids, go out over HTTP; scores come back. docs/remote.md says what to whom."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...config import EngineConfig
from ...models import resolve_tokenizer
from ...prompt import PromptEncoder, load_tokenizer
from .. import needed
from ..token_rows import marker_id
from .engine import RemoteEngine
from .options import RemoteOptions
from .texts import RenderedEncoder, TextEncoder

if TYPE_CHECKING:
    from pathlib import Path

    from ...config import RerankerSettings
    from ...prompt import Encoder

__all__ = ["RemoteEngine", "RemoteOptions", "configure", "create", "make_encoder", "model_folder"]


def model_folder(_engine: str, settings: RerankerSettings) -> Path | None:
    """See `EngineModule`: where the tokenizer is; None if the service makes the prompts."""
    return resolve_tokenizer(settings.model) if RemoteOptions.of(settings).prompts_are_ours else None


def make_encoder(_engine: str, folder: Path | None, settings: RerankerSettings) -> Encoder:
    """See `EngineModule`."""
    options = RemoteOptions.of(settings)
    if folder is None:
        return TextEncoder(options)
    encoder = PromptEncoder(load_tokenizer(folder), settings.template, settings.max_length)
    return encoder if options.sends_ids else RenderedEncoder(encoder)


def configure(engine: str, folder: Path | None, settings: RerankerSettings) -> EngineConfig:
    """See `EngineModule`: two rerankers with the same one share connections and the limit of concurrent requests."""
    options = RemoteOptions.of(settings)
    if options.route == "packed" and options.marker_id is None:
        options = replace(options, marker_id=marker_id(load_tokenizer(needed(folder, engine))))
    return EngineConfig("remote", None, "remote", "remote", settings.token_budget, options=options.as_json())


def create(config: EngineConfig) -> RemoteEngine:
    """See `EngineModule`."""
    return RemoteEngine(RemoteOptions.from_config(config), token_budget=config.token_budget)
