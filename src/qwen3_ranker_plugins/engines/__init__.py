"""Engines by name, imported when they are first used: importing this package loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, cast

from ..config import EngineConfig, PromptSettings, canonical_engine
from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import RerankerSettings
    from .base import Engine


@dataclass(frozen=True)
class Entry:
    """Where an engine is and what it needs.

    Attributes:
        module: in this package, with the functions of `EngineModule`.
        requires: modules that it imports.
        install: the command that installs them.
    """

    module: str
    requires: tuple[str, ...]
    install: str


_VLLM = ("vllm_engine", ("vllm", "torch", "transformers"), 'pip install "qwen3-ranker-plugins[vllm]"')

#: Every engine of `config.ENGINES` but "auto".
ENTRIES: dict[str, Entry] = {
    "packed": Entry("packed", ("torch", "transformers"), 'pip install "qwen3-ranker-plugins[packed]"'),
    "vllm_score": Entry(*_VLLM),
    "vllm_generate": Entry(*_VLLM),
}


class EngineModule(Protocol):
    """What an engine's module offers."""

    def prompt_settings(self, engine: str, folder: Path, settings: RerankerSettings) -> PromptSettings:
        """What prompts for this engine are made of; its own options may hold some of it.

        Raises:
            InvalidInputError: the engine has no such option, or its value is unusable.
        """

    def configure(self, engine: str, folder: Path, settings: RerankerSettings) -> EngineConfig:
        """What settings stand for on this machine.

        Raises:
            InvalidInputError: as `prompt_settings`, or the device is not there.
        """

    def create(self, config: EngineConfig) -> Engine:
        """Start the engine.

        Raises:
            RankerError: it cannot be started.
        """


def _module(engine: str) -> EngineModule:
    return cast("EngineModule", import_module(f".{ENTRIES[engine].module}", __package__))


def missing_modules(engine: str) -> list[str]:
    """Modules that the engine needs and this Python has not got."""
    return [module for module in ENTRIES[engine].requires if not _installed(module)]


def _installed(module: str) -> bool:
    """Whether it can be imported; a folder of that name in the working directory, such as a clone, does not count."""
    found = find_spec(module)
    return found is not None and found.origin is not None


def choose_engine(engine: str) -> tuple[str, str]:
    """(the engine that a setting stands for, why).

    Raises:
        InvalidInputError: there is no such engine.
        MissingDependencyError: what the engine needs is not installed.
    """
    engine = canonical_engine(engine)
    asked_for = "packed" if engine == "auto" else engine
    if missing := missing_modules(asked_for):
        raise MissingDependencyError(
            f"engine {asked_for!r} needs {' and '.join(missing)}: {ENTRIES[asked_for].install}"
        )
    if engine == "auto":
        return asked_for, "the packed engine computes a query once for all its documents, on a GPU or a CPU"
    return asked_for, "asked for"


def prompt_settings(engine: str, folder: Path, settings: RerankerSettings) -> PromptSettings:
    """What prompts for an engine are made of; its own options may hold some of it.

    Raises:
        InvalidInputError: the engine has no such option, or its value is unusable.
    """
    return _module(engine).prompt_settings(engine, folder, settings)


def engine_config(engine: str, folder: Path, settings: RerankerSettings) -> EngineConfig:
    """The configuration that settings stand for on this machine; settings with the same one share an engine.

    Raises:
        InvalidInputError: the device is not there, or the engine has no such option.
    """
    return _module(engine).configure(engine, folder, settings)


def create_engine(config: EngineConfig) -> Engine:
    """Start the engine of a configuration.

    Raises:
        RankerError: it cannot be started; the message says what to do.
    """
    return _module(config.engine).create(config)
