"""The remote engine: text, or token ids, go out over HTTP; scores come back. docs/remote.md says what to whom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...config import EngineConfig, PromptSettings
from ...errors import InvalidInputError
from ...models import resolve_tokenizer
from ...prompt import PromptEncoder, load_tokenizer
from .engine import RemoteEngine
from .options import RemoteOptions
from .texts import RenderedEncoder, TextEncoder

if TYPE_CHECKING:
    from ...config import RerankerSettings
    from ...prompt import Encoder

__all__ = [
    "RemoteEngine",
    "RemoteOptions",
    "configure",
    "create",
    "make_encoder",
    "prompt_settings",
    "tokenizer_folder",
]


def tokenizer_folder(settings: RerankerSettings) -> Path | None:
    """The folder of the tokenizer that prompts are made with here; None if the service makes them."""
    return resolve_tokenizer(settings.model) if RemoteOptions.of(settings).prompts_are_ours else None


def make_encoder(settings: RerankerSettings, folder: Path | None) -> Encoder:
    """What makes the service's requests of texts."""
    options = RemoteOptions.of(settings)
    if folder is None:
        return TextEncoder(options)
    encoder = PromptEncoder(load_tokenizer(folder), settings.template, settings.max_length)
    return encoder if options.sends_ids else RenderedEncoder(encoder)


def prompt_settings(engine: str, _folder: Path, _settings: RerankerSettings) -> PromptSettings:
    """Asked for by those who make prompts for an engine in this process, which offline jobs are."""
    raise InvalidInputError("engine", engine, "a job runs the model itself: use an engine of this machine")


def configure(engine: str, _folder: Path, settings: RerankerSettings) -> EngineConfig:
    """See `EngineModule`. Two rerankers with the same one share connections and the limit of concurrent requests."""
    options = RemoteOptions.of(settings)
    return EngineConfig(engine, Path(), "remote", "remote", settings.token_budget, options=options.as_json())


def create(config: EngineConfig) -> RemoteEngine:
    """See `EngineModule`."""
    return RemoteEngine(RemoteOptions.from_config(config), token_budget=config.token_budget)
