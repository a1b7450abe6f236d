"""Checks, before anything is scored, that the output can be written and replaces no input."""

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
    """The file to write. A link is followed, so that its target is replaced and not the link.

    Raises:
        InvalidInputError: the output is a URL or standard output.
    """
    name = os.fspath(output)
    if "://" in name:
        raise InvalidInputError("OUTPUT", name, "outputs are local files: write one, and then copy it there")
    if name == _STANDARD_OUTPUT:
        raise InvalidInputError("OUTPUT", name, "standard output is for the command line; give a file")
    path = Path(name)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def errors_file(output: Path) -> Path:
    """The file for the pairs without a score."""
    return output.with_name(f"{output.name}.errors.jsonl")


def check_place(output: Path) -> None:
    """Refuse an output that cannot be written as a file.

    Raises:
        InvalidInputError: it is a folder, a device or a pipe, or cannot be accessed.
    """
    for path in (output, errors_file(output)):
        try:
            if path.exists() and not path.is_file():
                kind = "folder" if path.is_dir() else "device or a pipe"
                raise InvalidInputError("OUTPUT", str(path), f"is a {kind}: give the name of a file")
        except OSError as error:
            raise InvalidInputError("OUTPUT", str(path), f"cannot be written: {error.strerror}") from error


def check_against_inputs(output: Path, source: str, inputs: Iterable[Path]) -> None:
    """Refuse an output that would replace an input, or that the next run would read as input.

    Args:
        output: the file that will be written.
        source: INPUT as it was given, which may be a pattern.
        inputs: files and folders that are read.

    Raises:
        InvalidInputError: the output or the job's folder conflicts with an input; names both.
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
                f"is in the input folder {path}: the next run would read it as input; give a path elsewhere",
            )
        if _within(path, folder):
            raise InvalidInputError(
                "INPUT", str(path), f"is in {folder}, the job's own folder: copy it elsewhere first"
            )
    if is_pattern(source):
        pattern = os.path.abspath(source)  # noqa: PTH100 - Path.absolute keeps ".."
        for each in written:
            if fnmatch.fnmatch(os.path.abspath(each), pattern):  # noqa: PTH100
                raise InvalidInputError(
                    "OUTPUT",
                    str(each),
                    f"matches the input {source}: the next run would read it as input; give another name",
                )


def _within(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents
