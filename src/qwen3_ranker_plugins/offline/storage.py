"""Files that survive a kill: replaced in one step, or only ever appended to."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from .errors import StorageError

#: Seconds between two syncs: how much work a power cut may cost.
SYNC_SECONDS = 1.0


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn an `OSError` from writing a file into a `StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}; what was committed is intact: make room and run the "
            "same command again to continue"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step; after an error or a kill, it has its former content.

    Raises:
        StorageError: the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with storage(path):
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that new names in it survive a power cut. Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Appender:
    """A file that only grows. Nothing stays in a buffer of this process; a thread syncs it every `SYNC_SECONDS`.

    Attributes:
        length: length of the file in bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self.length = os.fstat(self._file.fileno()).st_size
        self._error: StorageError | None = None
        self._stop = threading.Event()
        self._changed = False
        self._thread = threading.Thread(target=self._run, name="qwen3-ranker-sync", daemon=True)
        self._thread.start()

    def append(self, content: bytes) -> None:
        """Hand content to the operating system.

        Raises:
            StorageError: this write or an earlier sync failed.
        """
        if self._error is not None:
            raise self._error
        self.length += len(content)
        rest = memoryview(content)
        with storage(self._path):
            while rest:  # a disk that fills up accepts a part first, and refuses the rest
                rest = rest[self._file.write(rest) :]
        self._changed = True

    def sync(self) -> None:
        """Wait until the content is on the disk.

        Raises:
            StorageError: as `append`.
        """
        if self._error is not None:
            raise self._error
        with storage(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the thread and close the file."""
        self._stop.set()
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        while not self._stop.wait(SYNC_SECONDS):
            if self._changed:
                self._changed = False
                try:
                    self.sync()
                except StorageError as error:
                    self._error = error
                    return
