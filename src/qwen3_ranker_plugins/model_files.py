"""What is wrong with a file of a model that cannot be read, and what to do about it.

A link to nothing, a folder and a git-lfs pointer must pass neither for a damaged file nor for one that was left out,
because the checkpoint would then be scored as if the file said nothing.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .errors import UnsupportedModelError

#: First bytes of what `git clone` leaves in place of a large file if git-lfs is not installed.
_LFS_POINTER = b"version https://git-lfs"


def is_listed(path: Path) -> bool:
    """Whether a folder has an entry of this name, even if it is a link to nothing."""
    return os.path.lexists(path)


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose names match a pattern, sorted.

    Hidden files are left out, as by the shell and by vLLM. macOS writes a `._model.safetensors`, which holds no
    weights, for a `model.safetensors` that it copies to a foreign disk.
    """
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def check_file(path: Path) -> None:
    """Make sure that a path leads to a file with content of its own.

    Raises:
        UnsupportedModelError: it is missing, a link to nothing, a folder, a git-lfs pointer, empty, or not readable.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise UnsupportedModelError(reason_and_remedy(path, error)) from error
    if start == _LFS_POINTER:
        raise UnsupportedModelError(
            f"{path} is a git-lfs pointer, not the file itself: install git-lfs, and run `git lfs pull` in its folder"
        )
    if not start:
        raise UnsupportedModelError(f"{path} is empty: download it again")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        UnsupportedModelError: see `check_file`; or it is no text.
    """
    check_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(reason_and_remedy(path, error)) from error


def reason_and_remedy(path: Path, error: BaseException) -> str:
    """A sentence about a file that could not be read."""
    number = error.errno if isinstance(error, OSError) else None
    links = [each for each in (path, path.parent) if each.is_symlink()]
    if number in (errno.ENOENT, errno.ELOOP) and links:
        where = "which is not there" if number == errno.ENOENT else "which leads back to it"
        return (
            f"{links[0]} is a link to {links[0].readlink()}, {where}: copy the checkpoint again with `cp -rL`, which "
            "copies files in place of links, or download it again"
        )
    if number == errno.ENOENT:
        return f"{path} is missing: download the checkpoint again"
    if number == errno.EISDIR:
        return f"{path} is a folder instead of a file: remove it, and download the file again"
    if number == errno.ENOTDIR:
        return f"{path} cannot be read, because {path.parent} is not a folder: download the checkpoint again"
    return f"{path} cannot be read ({error}); {remedy_of_reading(error)}"


def remedy_of_reading(error: BaseException) -> str:
    """The remedy for a model file that could not be read: only a damaged file has to be downloaded again."""
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        return "the file may be sound: make it readable on this machine, and try again"
    return "download it again"
