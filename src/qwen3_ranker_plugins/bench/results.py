"""Result files: raw values, and everything needed to know what was measured, where, and how to repeat it.

Each kind of result is a dataclass derived from `Result`, in the package that measures it. A file contains its fields as
JSON, with the kind and the version of the format. The figures in it are for other readers; here they are recomputed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import InvalidInputError
from .machine import Environment

#: Version of the format; it is increased when a file of an earlier version could be misread.
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """The fields that all kinds of results have.

    Attributes:
        about: the environment of the measurement.
        settings: the settings of the measurement, as JSON values.
        seed: seed of every random choice; None if there is none.
    """

    kind: ClassVar[str]

    about: Environment
    settings: dict[str, Any]
    seed: int | None

    def as_json(self) -> dict[str, Any]:
        """The result as it is written to a file."""
        return {
            "kind": self.kind,
            "format": FORMAT,
            **{each.name: plain(getattr(self, each.name)) for each in fields(self)},
        }


def plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, sequences as lists; a dataclass may have its own `as_json`."""
    if hasattr(value, "as_json"):
        return value.as_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def write_result(path: Path, result: Result) -> None:
    """Write a value as JSON on one line; create the folder if necessary.

    Raises:
        InvalidInputError: the file cannot be written.
    """
    text = json.dumps(result.as_json(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text; create the folder if necessary.

    Raises:
        InvalidInputError: the file cannot be written.
    """
    make_folder(path.parent)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError("output", str(path), f"{error.strerror}; give a path that can be written") from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents; called before measuring, so that no measurement is lost.

    Raises:
        InvalidInputError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError("output", str(folder), f"{error.strerror}; give a folder") from error
