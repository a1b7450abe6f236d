"""Engines: encoded requests in, margins out. `registry` finds them by name and imports one when it is first used."""

from .registry import (
    ENTRIES,
    EngineModule,
    Entry,
    choose_engine,
    create_engine,
    engine_module,
    missing_modules,
    needed,
)

__all__ = [
    "ENTRIES",
    "EngineModule",
    "Entry",
    "choose_engine",
    "create_engine",
    "engine_module",
    "missing_modules",
    "needed",
]
