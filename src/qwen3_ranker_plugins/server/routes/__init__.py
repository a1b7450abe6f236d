"""The routes of the server: one module for each family of wire shapes, and one for each kind of page.

All modules here are found automatically; see `shapes.routers` for what a module defines. A new wire shape is a new
module.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def modules() -> list[ModuleType]:
    """All modules of routes, ordered by name."""
    return [import_module(f"{__name__}.{each.name}") for each in sorted(iter_modules(__path__), key=lambda m: m.name)]
