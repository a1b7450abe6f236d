"""Engines: encoded requests in, margins out. `registry` finds them by name and imports one when it is first used."""

from .registry import (
    EngineEntry,
    EngineModule,
    ResolvedSettings,
    choose_engine,
    create_engine,
    device_names,
    engine_entry,
    engine_module,
    missing_modules,
)

__all__ = [
    "EngineEntry",
    "EngineModule",
    "ResolvedSettings",
    "choose_engine",
    "create_engine",
    "device_names",
    "engine_entry",
    "engine_module",
    "missing_modules",
]
