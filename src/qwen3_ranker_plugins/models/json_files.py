"""JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError
from ..model_files import read_text, reason_and_remedy


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file.

    Raises:
        UnsupportedModelError: there is no such file, or it is damaged.
    """
    found = read_any_json(path)
    if not isinstance(found, dict):
        raise UnsupportedModelError(f"{path} holds no JSON object; download it again")
    return found


def read_any_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UnsupportedModelError: there is no such file, or it is damaged.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModelError(reason_and_remedy(path, error)) from error


def shortened(value: object) -> str:
    """A value of a file for a message, at most 80 characters."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
