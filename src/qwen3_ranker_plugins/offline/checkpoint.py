"""What survives a kill: the folder `OUTPUT.job` with a lock, a fingerprint, part files and a manifest.

    lock               held while a process works on the output; holds its process id
    fingerprint.json   of the job that the parts belong to
    part-00000.jsonl   finished passes, one a line: its columns, its failures; every run writes a part of its own
    manifest           a line for each pass: checksum, window, pass, passes of the window, part, offset, length, ...
    summary.json       the job is done: what it counted, and what output it wrote
    queries.jsonl      [query_id, offset, rows] of the output, for `get_top_documents`

A pass counts once its manifest line is written, and its part holds what the line's checksum was made of. Everything
else is what a kill left behind, and is removed by the next run. What was handed to the kernel survives the death of the
process, so a commit does not wait for the disk; a thread syncs both files every second, for power cuts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
import zlib
from array import array
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import numpy as np

from .errors import CheckpointError, JobLockedError, StorageError
from .scoring import Row, ScoredPass

#: What a power cut may cost.
SYNC_SECONDS = 1.0

_MARGINS, _TEXTS = 4, 6  # places in the columns of a pass
_FIELDS = 9  # window, number, count, part, offset, length, checksum of the rows, pairs, errors


def job_folder(output: Path) -> Path:
    """Where the checkpoint of an output lies."""
    return output.with_name(f"{output.name}.job")


class Checkpoint:
    """The folder of one output, locked until `close`.

    Args:
        output: the file that the job will write.

    Raises:
        JobLockedError: another process has it.
        StorageError: the folder cannot be made.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = job_folder(output)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("a+")
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise JobLockedError(f"{output} is being written by process {holder}: wait for it, or end it") from error
        with storage(self.folder / "lock"):
            self._lock.truncate(0)
            self._lock.write(f"{os.getpid()}\n")
            self._lock.flush()
        self._part: _Appender | None = None
        self._part_number = 0
        self._manifest: _Appender | None = None

    def close(self) -> None:
        """Give the lock back."""
        for appender in (self._part, self._manifest):
            if appender is not None:
                appender.close()
        self._lock.close()

    @property
    def _manifest_path(self) -> Path:
        return self.folder / "manifest"

    @property
    def empty(self) -> bool:
        """No job has begun here."""
        return not (self.folder / "fingerprint.json").exists()

    def match(self, fingerprint: Mapping[str, str]) -> None:
        """Refuse to go on with another job's parts; a new folder takes the fingerprint.

        Raises:
            CheckpointError: names every field that differs.
        """
        path = self.folder / "fingerprint.json"
        known = self._read_json(path)
        different = [name for name in fingerprint if name in known and known[name] != fingerprint[name]]
        if different:
            changes = "\n".join(f"  {name}: {known[name]} -> {fingerprint[name]}" for name in different)
            raise CheckpointError(
                f"{self.folder} belongs to a job with different settings or input:\n{changes}\n"
                "Run with those settings to continue it, give another output, or start over with --restart"
            )
        if known.keys() != known.keys() | fingerprint.keys():
            write_atomically(path, json.dumps(known | dict(fingerprint), indent=2))

    def restart(self) -> None:
        """Remove everything but the lock."""
        for path in self.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def summary(self) -> dict[str, Any]:
        """What a finished job wrote here; empty for one that is not finished."""
        return self._read_json(self.folder / "summary.json")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The output is in its place: keep the summary, drop the parts."""
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2))
        self.drop_parts()

    def forget_summary(self) -> None:
        """The output is gone."""
        (self.folder / "summary.json").unlink()

    def drop_parts(self) -> None:
        """Remove what only an unfinished job needs."""
        for path in self.folder.iterdir():
            if path.name.startswith(("part-", "manifest", "texts.sqlite", "sort-")):
                path.unlink()

    def resume(self) -> Done:
        """Check what is there, cut off what does not count, and open a new part.

        Raises:
            StorageError: see `append`.
        """
        with storage(self.folder):
            entries = self._valid_entries()
            ends: dict[int, int] = {}
            for entry in entries.tolist():
                ends[entry[3]] = max(ends.get(entry[3], 0), entry[4] + entry[5])
            for path in self.folder.glob("sort-*"):
                path.unlink()
            numbers = [-1]
            for path in self.folder.glob("part-*.jsonl"):
                number = int(path.stem.removeprefix("part-"))
                numbers.append(number)
                if number in ends:
                    os.truncate(path, ends[number])
                else:
                    path.unlink()
            self._part_number = max(numbers) + 1
            self._part = _Appender(self._part_path(self._part_number))
            # Written anew, so that nothing follows a torn or damaged line.
            write_atomically(self._manifest_path, "".join(map(_manifest_line, entries.tolist())))
            self._manifest = _Appender(self._manifest_path)
            _sync_folder(self.folder)
        return Done(entries)

    def append(self, scored: ScoredPass) -> None:
        """Commit a pass: its content to the part, then its line to the manifest. A kill from here on does not lose it.

        Raises:
            StorageError: no space left, or whatever the system says; nothing half-written counts.
        """
        assert self._part is not None and self._manifest is not None, "resume() comes first"  # noqa: S101, PT018
        content = _pack(scored)
        place = [self._part_number, self._part.length, len(content), zlib.crc32(content)]
        line = [scored.window, scored.number, scored.count, *place, scored.pairs, len(scored.failures)]
        self._part.append(content)
        self._manifest.append(_manifest_line(line).encode())

    def sync(self) -> None:
        """Wait until everything that was committed is on the disk.

        Raises:
            StorageError: it cannot be written.
        """
        for appender in (self._part, self._manifest):
            if appender is not None:
                appender.sync()

    def windows(self) -> Iterator[list[Row]]:
        """The rows of each window in input order, complete and checked.

        Raises:
            CheckpointError: passes are missing, or were damaged after they were committed.
        """
        entries = self._entries()
        position = 0
        with contextlib.ExitStack() as stack:
            parts: dict[int, IO[bytes]] = {}
            for window in np.split(entries, np.flatnonzero(np.diff(entries[:, 0])) + 1) if len(entries) else []:
                rows: list[Row] = []
                for entry in window.tolist():
                    number, offset, length, checksum = entry[3:7]
                    if number not in parts:
                        parts[number] = stack.enter_context(self._part_path(number).open("rb"))
                    content = _read_at(parts[number], offset, length)
                    if zlib.crc32(content) != checksum:
                        raise CheckpointError(f"{self._part_path(number)} was damaged at byte {offset}: run again")
                    rows += _unpack(content)
                rows.sort(key=itemgetter(0))
                if [row[0] for row in rows] != list(range(position, position + len(rows))):
                    raise CheckpointError(f"{self.folder} lacks pairs of window {window[0, 0]}, or has them twice")
                position += len(rows)
                yield rows

    def committed(self) -> Iterator[Row]:
        """All rows that are committed, as they come."""
        for entry in self._entries().tolist():
            with self._part_path(entry[3]).open("rb") as part:
                yield from _unpack(_read_at(part, entry[4], entry[5]))

    def _part_path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.jsonl"

    def _entries(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The manifest's lines that are whole, int64 [passes, 9]."""
        numbers: array[int] = array("q")
        if self._manifest_path.exists():
            with self._manifest_path.open("rb") as lines:
                for line in lines:
                    numbers.extend(_parse_manifest_line(line))
        entries = np.array(numbers, dtype=np.int64).reshape(-1, _FIELDS)
        return entries[np.unique(entries[:, :2], axis=0, return_index=True)[1]]  # a pass counts once

    def _valid_entries(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Those whose rows are in the parts as they were written."""
        entries = self._entries()
        valid = np.zeros(len(entries), dtype=np.bool_)
        with contextlib.ExitStack() as stack:
            parts: dict[int, IO[bytes]] = {}
            for place, entry in enumerate(entries.tolist()):
                number, offset, length, checksum = entry[3:7]
                if number not in parts and self._part_path(number).exists():
                    parts[number] = stack.enter_context(self._part_path(number).open("rb"))
                if number in parts:
                    valid[place] = zlib.crc32(_read_at(parts[number], offset, length)) == checksum
        return entries[valid]

    def _read_json(self, path: Path) -> dict[str, Any]:
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} was damaged ({error}): start over with --restart") from error
        return content if isinstance(content, dict) else {}


class Done:
    """Which passes are done.

    Attributes:
        pairs, errors: in them.
    """

    def __init__(self, entries: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._entries = entries[np.argsort(entries[:, 0], kind="stable")]
        self.pairs = int(entries[:, 7].sum())
        self.errors = int(entries[:, 8].sum())

    def done(self, window: int) -> tuple[Collection[int], bool]:
        """(numbers of a window's passes that are done, whether these are all)."""
        start, end = np.searchsorted(self._entries[:, 0], [window, window + 1])
        if start == end:
            return (), False
        numbers = frozenset(self._entries[start:end, 1].tolist())
        return numbers, len(numbers) == self._entries[start, 2]


def write_atomically(path: Path, text: str) -> None:
    """Replace a file, or leave it as it was.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with storage(path):
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)


def _manifest_line(entry: Sequence[int]) -> str:
    text = " ".join(map(str, entry))
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _parse_manifest_line(line: bytes) -> list[int]:
    """The entry, or nothing if the line is not as it was written."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return []
    return [int(number) for number in text.split()]


def _pack(scored: ScoredPass) -> bytes:
    """A line of a part. Margins are float32 in base64: exact, and three times as fast as 17 digits."""
    columns = [*scored.columns]
    columns[_MARGINS] = b64encode(np.array(columns[_MARGINS], dtype="<f4").tobytes()).decode()  # type: ignore[call-overload]
    return (json.dumps([columns, scored.seconds_each, scored.failures], separators=(",", ":")) + "\n").encode()


def _unpack(content: bytes) -> list[Row]:
    columns, seconds, failures = json.loads(content)
    columns[_MARGINS] = np.frombuffer(b64decode(columns[_MARGINS]), dtype="<f4").tolist()
    rows: list[Row] = list(zip(*columns[:_TEXTS], repeat(seconds, len(columns[0])), *columns[_TEXTS:], strict=True))
    return rows + [tuple(row) for row in failures]


class _Appender:
    """A file that only grows. Nothing stays in a buffer of this process; a thread syncs it now and then.

    Attributes:
        length: of the file.
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
        """Hand content to the kernel.

        Raises:
            StorageError: this write or an earlier sync failed.
        """
        if self._error is not None:
            raise self._error
        self.length += len(content)
        rest = memoryview(content)
        with storage(self._path):
            while rest:  # a disk that fills up takes a part first, and refuses the rest
                rest = rest[self._file.write(rest) :]
        self._changed = True

    def sync(self) -> None:
        """Wait for the disk.

        Raises:
            StorageError: as `append`.
        """
        if self._error is not None:
            raise self._error
        with storage(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the thread."""
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


def _read_at(file: IO[bytes], offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _sync_folder(folder: Path) -> None:
    """So that new names in it survive a power cut too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn what the system says when a file cannot be written into a `StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}; what was committed is intact: make room and run the "
            "same command again to go on"
        ) from error
