"""Copies standard input to a file, because a job that continues reads its input from the beginning."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import BinaryIO

from ..data.files import InputFile, packing_of
from .storage import storage


def spool_standard_input(folder: Path, stream: BinaryIO | None = None) -> InputFile:
    """Copy a stream into the job's folder.

    Returns:
        The copy. Its name shows whether it is compressed, but not its format.

    Raises:
        StorageError: the copy cannot be written.
    """
    stream = sys.stdin.buffer if stream is None else stream
    path = folder / "input"
    beginning = stream.read(4)
    with storage(path), path.open("wb") as copy:
        copy.write(beginning)
        shutil.copyfileobj(stream, copy, 2**20)
    return InputFile(str(path), f"standard-input{packing_of(beginning)}")
