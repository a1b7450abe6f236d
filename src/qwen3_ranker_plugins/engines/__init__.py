"""Engines by name, imported when they are first used: importing this package loads no torch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..config import ENGINES, EngineConfig, check_choice, check_json
from ..errors import InvalidInputError, MissingDependencyError

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import RerankerSettings
    from .base import Engine

#: Modules that an engine imports, and the extra of this distribution that installs them.
REQUIREMENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "packed": (("torch", "transformers"), "packed"),
}


def missing_modules(engine: str) -> list[str]:
    """Modules that the engine needs and this Python has not got."""
    modules, _ = REQUIREMENTS[engine]
    return [module for module in modules if find_spec(module) is None]


def choose_engine(engine: str) -> tuple[str, str]:
    """(the engine that a setting stands for, why).

    Raises:
        InvalidInputError: there is no such engine.
        MissingDependencyError: what the engine needs is not installed.
    """
    check_choice("engine", engine, ENGINES)
    asked_for = "packed" if engine == "auto" else engine
    if missing := missing_modules(asked_for):
        _, extra = REQUIREMENTS[asked_for]
        raise MissingDependencyError(
            f'engine {asked_for!r} needs {" and ".join(missing)}: pip install "qwen3-ranker-plugins[{extra}]"'
        )
    if engine == "auto":
        return asked_for, "the packed engine computes a query once for all its documents, on a GPU or a CPU"
    return asked_for, "asked for"


def engine_config(engine: str, folder: Path, settings: RerankerSettings) -> EngineConfig:
    """The configuration that settings stand for on this machine; settings with the same one share an engine.

    Raises:
        InvalidInputError: the device is not there, or the engine has no such option.
    """
    from .packed import resolve

    if settings.engine_options:
        name, value = next(iter(settings.engine_options.items()))
        raise InvalidInputError(
            f"engine_options[{name!r}]", value, f"engine {engine!r} has no such option: leave it out"
        )

    device, dtype, token_budget = resolve(settings.device, settings.dtype, settings.token_budget)
    files = [folder / "config.json", *folder.glob("*.safetensors")]
    modified = max(file.stat().st_mtime_ns for file in files)
    options = check_json("engine_options", settings.engine_options)
    return EngineConfig(engine, folder, device, dtype, token_budget, modified, options)


def create_engine(config: EngineConfig) -> Engine:
    """Start the engine of a configuration.

    Raises:
        RankerError: it cannot be started; the message says what to do.
    """
    from .packed import PackedEngine

    return PackedEngine(config.folder, device=config.device, dtype=config.dtype, token_budget=config.token_budget)
