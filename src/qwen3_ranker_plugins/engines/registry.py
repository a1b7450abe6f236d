"""Engines by name, imported when they are first used: importing this package loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, cast

from ..config import EngineConfig, canonical_engine
from ..errors import InvalidInputError, MissingDependencyError

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import RerankerSettings
    from ..prompt import Encoder
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


_VLLM = Entry("vllm.engine", ("vllm", "torch", "transformers"), 'pip install "qwen3-ranker-plugins[vllm]"')

#: Every engine of `config.ENGINES` but "auto".
ENTRIES: dict[str, Entry] = {
    "packed": Entry("packed.engine", ("torch", "transformers"), 'pip install "qwen3-ranker-plugins[packed]"'),
    "vllm_score": _VLLM,
    "vllm_generate": _VLLM,
    "vllm_packed": _VLLM,
    "remote": Entry("remote", ("httpx", "tenacity"), 'pip install "qwen3-ranker-plugins[remote]"'),
}


class EngineModule(Protocol):
    """What an engine's module offers. All but `create` check the engine's own options on the way."""

    def model_folder(self, engine: str, settings: RerankerSettings) -> Path | None:
        """The folder with what the engine needs of the model on this machine; None if that is nothing.

        Raises:
            ModelNotFoundError, UnsupportedModelError: see `models.resolve_model`.
            InvalidInputError: the engine has no such option, or its value is unusable.
        """

    def make_encoder(self, engine: str, folder: Path | None, settings: RerankerSettings) -> Encoder:
        """What makes the engine's requests of texts; `folder` as of `model_folder`."""

    def configure(self, engine: str, folder: Path | None, settings: RerankerSettings) -> EngineConfig:
        """What settings stand for on this machine; settings with the same one share an engine.

        Raises:
            InvalidInputError: the device is not there.
        """

    def create(self, config: EngineConfig) -> Engine:
        """Start the engine.

        Raises:
            RankerError: it cannot be started; the message says what to do.
        """


def engine_module(engine: str) -> EngineModule:
    """The module of an engine that `choose_engine` has named."""
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


def create_engine(config: EngineConfig) -> Engine:
    """Start the engine of a configuration.

    Raises:
        RankerError: it cannot be started; the message says what to do.
    """
    return engine_module(config.engine).create(config)


def needed(folder: Path | None, engine: str) -> Path:
    """The folder, of an engine that cannot do without.

    Raises:
        InvalidInputError: it is None.
    """
    if folder is None:
        raise InvalidInputError("folder", None, f"engine {engine!r} needs the folder of a model")
    return folder
