"""Engines by name, from the entry point group `qwen3_ranker_plugins.engines`. Nothing here loads torch.

An installed distribution, this one included, registers an engine in its pyproject.toml:

    [project.entry-points."qwen3_ranker_plugins.engines"]
    mine = "my_package:MY_ENGINE"

where `MY_ENGINE` is an `EngineEntry`. `Reranker(engine="mine")`, YAML, the command line and offline jobs take the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol, cast

from ..config import canonical_engine, engine_entry_point
from ..errors import EngineError, InvalidInputError, MissingDependencyError
from .garbage_collection import no_garbage_collection

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import EngineConfig, RerankerSettings
    from ..prompt import Encoder
    from .base import Engine


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """What an engine's entry point names: where the engine is and what it needs.

    Attributes:
        module: absolute name of the module with the functions of `EngineModule`, imported at the first use.
        requires: modules that it imports. They are looked up before `module` is imported.
        install: the command that installs them.
        own_process: whether the engine starts a process for its model itself, so that its replicas need no worker
            process.
    """

    module: str
    requires: tuple[str, ...]
    install: str
    own_process: bool = False


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings:
    """What settings resolve to on this machine.

    Attributes:
        folder: where the engine reads the model, or its tokenizer only; None if it reads neither on this machine.
        encoder: makes the engine's requests from texts.
        config: how to start the engine; rerankers with equal configurations share an engine.
    """

    folder: Path | None
    encoder: Encoder
    config: EngineConfig


class EngineModule(Protocol):
    """The functions of an engine's module. One module may serve several names."""

    def resolve(self, engine: str, settings: RerankerSettings) -> ResolvedSettings:
        """Check the engine's own options, find the model, and fill in what settings leave open.

        Raises:
            InvalidInputError: an option is unknown or unusable, or the device does not exist.
            ModelNotFoundError, UnsupportedModelError: see `models.resolve_model`.
        """

    def create(self, config: EngineConfig) -> Engine:
        """Start the engine.

        Raises:
            RankerError: it cannot be started; the message says what to do.
        """


def engine_entry(engine: str) -> EngineEntry:
    """The entry that is registered under a name.

    Raises:
        InvalidInputError: no such engine is registered, it is registered twice, or its entry point is unusable.
    """
    point = engine_entry_point(engine)
    try:
        entry = point.load()
    except Exception as error:  # third-party code, which may raise anything while it is imported
        raise InvalidInputError(
            "engine", engine, f"its entry point {point.value!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(entry, EngineEntry):
        raise InvalidInputError(
            "engine",
            engine,
            f"its entry point {point.value!r} has to be an EngineEntry, not a {type(entry).__name__}",
        )
    return entry


def engine_module(engine: str) -> EngineModule:
    """The module of an engine that `choose_engine` returned."""
    # What imports of torch and vLLM make stays, and searching it takes a quarter of their time.
    with no_garbage_collection():
        return cast("EngineModule", import_module(engine_entry(engine).module))


def missing_modules(engine: str) -> list[str]:
    """Modules that the engine needs and that are not installed."""
    return [module for module in engine_entry(engine).requires if not _installed(module)]


def _installed(module: str) -> bool:
    """Whether it can be imported; a folder of that name in the working directory, such as a clone, does not count."""
    found = find_spec(module)
    return found is not None and found.origin is not None


def choose_engine(engine: str) -> tuple[str, str]:
    """(the engine that a setting selects, why).

    Raises:
        InvalidInputError: there is no such engine.
        MissingDependencyError: what the engine needs is not installed.
    """
    engine = canonical_engine(engine)
    asked_for = "packed" if engine == "auto" else engine
    if missing := missing_modules(asked_for):
        raise MissingDependencyError(
            f"engine {asked_for!r} needs {' and '.join(missing)}: {engine_entry(asked_for).install}"
        )
    if engine == "auto":
        return asked_for, "the packed engine computes a query once for all its documents, on a GPU or a CPU"
    return asked_for, "asked for"


def create_engine(config: EngineConfig) -> Engine:
    """Start the engine of a configuration.

    Raises:
        RankerError: it cannot be started; the message says what to do.
    """
    engine = engine_module(config.engine).create(config)
    try:
        check_files(config)
    except BaseException:
        engine.close()
        raise
    return engine


def check_files(config: EngineConfig) -> None:
    """Check that the model's files are still those for which the configuration was made.

    An encoder, a cache of scores and other replicas may belong to the same configuration. So an engine that is
    restarted must not silently load another model.

    Raises:
        EngineError: a file has changed.
    """
    if config.files is not None and config.files.have_changed:
        folders = " or ".join(str(folder) for folder in config.files.folders)
        raise EngineError(
            f"the model's files in {folders} have changed since this reranker was made: make a new one, or restart the "
            "server"
        )


def device_names(devices: str) -> list[str]:
    """The devices that `RerankerSettings.devices` means on this machine.

    Raises:
        InvalidInputError: it is "all", and there is no GPU.
    """
    if devices != "all":
        return devices.split(",")
    from .devices import all_gpus  # imports torch

    return all_gpus()
