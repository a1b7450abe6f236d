"""Where an output goes, and what it must not replace: looked at before anything is scored."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable
from pathlib import Path

from ..data.files import is_pattern
from ..errors import InvalidInputError
from .checkpoint import job_folder

_STANDARD_OUTPUT = "-"


def resolve_output(output: str | os.PathLike[str]) -> Path:
    """The file that an output stands for: a link is followed, so that its target is replaced and not the link.

    Raises:
        InvalidInputError: it cannot be a file.
    """
    name = os.fspath(output)
    if "://" in name:
        raise InvalidInputError("OUTPUT", name, "outputs are local files: write one, and copy it to its place")
    if name == _STANDARD_OUTPUT:
        raise InvalidInputError("OUTPUT", name, "standard output is for the command line; give a file")
    path = Path(name)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def errors_file(output: Path) -> Path:
    """Where the pairs without a score go."""
    return output.with_name(f"{output.name}.errors.jsonl")


def check_place(output: Path) -> None:
    """Refuse an output that cannot be written as a file.

    Raises:
        InvalidInputError: says why.
    """
    for path in (output, errors_file(output)):
        try:
            if path.exists() and not path.is_file():
                kind = "folder" if path.is_dir() else "device or a pipe"
                raise InvalidInputError("OUTPUT", str(path), f"is a {kind}: give the name of a file")
        except OSError as error:
            raise InvalidInputError("OUTPUT", str(path), f"cannot be written: {error.strerror}") from error


def check_against_inputs(output: Path, source: str, inputs: Iterable[Path]) -> None:
    """Refuse an output that would replace an input, or be read as one by the next run.

    Args:
        source: INPUT as it was given, which may be a pattern.
        inputs: files and folders that are read.

    Raises:
        InvalidInputError: names both.
    """
    written = (output, errors_file(output))
    for path in inputs:
        for each in written:
            if each.exists() and path.exists() and each.samefile(path):
                raise InvalidInputError("OUTPUT", str(each), f"is the input {path}: give another output")
        folder = job_folder(output)
        if path.is_dir() and _within(output, path) and output.parent.exists():
            raise InvalidInputError(
                "OUTPUT",
                str(output),
                f"lies in the input folder {path}, and would be part of the input of the next run",
            )
        if _within(path, folder):
            raise InvalidInputError("INPUT", str(path), f"lies in {folder}, which is the job's own: copy it first")
    if is_pattern(source):
        pattern = os.path.abspath(source)  # noqa: PTH100 - Path.absolute keeps ".."
        for each in written:
            if fnmatch.fnmatch(os.path.abspath(each), pattern):  # noqa: PTH100
                raise InvalidInputError(
                    "OUTPUT", str(each), f"matches the input {source}, and would be part of the input of the next run"
                )


def _within(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents
