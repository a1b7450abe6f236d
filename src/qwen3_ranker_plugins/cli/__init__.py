"""The command line, a module for each command."""

from .app import main

__all__ = ["main"]
