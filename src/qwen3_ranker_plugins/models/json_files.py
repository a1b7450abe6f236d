"""JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError, remedy_of_reading


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file.

    Raises:
        UnsupportedModelError: there is no such file, or it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModelError(
            f"{path.parent} has no {path.name}: give the folder of a transformers model"
        ) from error
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"{path} cannot be read ({error}); {remedy_of_reading(error)}") from error
    if not isinstance(found, dict):
        raise UnsupportedModelError(f"{path} holds no JSON object; download it again")
    return found
