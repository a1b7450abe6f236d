"""The checkpoint of a job, which survives a kill: the folder `OUTPUT.job` with the following files.

    lock               locked while a process works on the output
    holder             the id of that process
    fingerprint.json   the fingerprint of the job that the parts belong to
    part-00000.jsonl   one line for each finished pass: its columns and its failures; every run writes its own part
    manifest           one line for each pass: the checksum of the line, then the numbers described at `_FIELDS`
    summary.json       exists when the job is done: its counts, and which output it wrote
    queries.jsonl      [query_id, offset, rows] of the output, for `get_top_documents`
    texts.sqlite       the texts of a BEIR folder
    input              a copy of standard input
    output, errors     the files that are being written; each is moved to its final path in one step

A pass counts once its manifest line is written and the content of its part matches the checksum in that line.
Everything else was left by a kill, and the next run removes it. Data that was handed to the operating system survives
the death of the process, so a commit does not wait for the disk. A thread syncs both files every second, so that a
power cut costs about a second of work.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from array import array
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import repeat, starmap
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np

from .errors import CheckpointError, JobLockedError, StorageError
from .fingerprint import OPTIONAL
from .rows import FailedRow, Row, ScoredRow
from .scoring import ScoredPass
from .storage import Appender, storage, sync_folder, write_atomically
from .windows import Window

_MARGINS, _TEXTS = 4, 6  # places in the columns of a pass
#: Window, number, count, part, offset, length, checksum of the rows, pairs, errors, checksum of the window. Lines of
#: earlier versions lack the last one.
_FIELDS = 10
_UNKNOWN = -1

#: The files that `restart` removes; the fingerprint first, because without it the others do not count.
_LEFT_BY_A_JOB = (
    "fingerprint.json*", "summary.json*", "manifest*", "part-*.jsonl", "queries.jsonl", "sort-*", "texts.sqlite*",
    "output", "errors",
)  # fmt: skip

#: Fields that fingerprints of earlier versions lack, with the value that those versions used.
_FORMERLY = {"columns": "", "input_format": "", "nested_titles": "ignored"}
#: Fields of the fingerprint that are only for people: a model of another name may give the same scores.
NOTES = ("model_name",)


def job_folder(output: Path) -> Path:
    """The folder of the checkpoint of an output."""
    return output.with_name(f"{output.name}.job")


def read_fingerprint(output: Path) -> dict[str, str]:
    """The fingerprint of the job that was begun for an output; empty if none was.

    Raises:
        CheckpointError: the fingerprint is damaged.
    """
    known = _read_json(job_folder(output) / "fingerprint.json")
    return _FORMERLY | known if known else {}


class Checkpoint:
    """The folder of one output, locked until `close`.

    Args:
        output: the file that the job will write.

    Raises:
        JobLockedError: another process has locked the folder.
        StorageError: the folder cannot be created.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = job_folder(output)
        self._part: Appender | None = None
        self._part_number = 0
        self._manifest: Appender | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.folder / "lock")
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise JobLockedError(
                f"{output} is being written by process {self._holder()}: wait for it, or end it"
            ) from error
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be created: {error.strerror}") from error
        try:
            with storage(self.folder / "holder"):
                (self.folder / "holder").write_text(f"{os.getpid()}\n", encoding="utf-8")
        except StorageError:
            self.close()
            raise

    def _holder(self) -> str:
        try:
            return (self.folder / "holder").read_text(encoding="utf-8").strip() or "unknown"
        except OSError:
            return "unknown"

    @property
    def is_bare(self) -> bool:
        """Whether the folder can be removed without loss: no pass is committed, and no output is finished."""
        return not self.summary() and not len(self._entries())

    def close(self) -> None:
        """Release the lock. If nothing was scored, remove the folder, too."""
        for appender in (self._part, self._manifest):
            if appender is not None:
                appender.close()
        for name in ("holder", "input"):
            (self.folder / name).unlink(missing_ok=True)
        if self.is_bare and not (self.folder / "texts.sqlite").exists():
            self.restart()
        if all(path.name == "lock" for path in self.folder.iterdir()):
            # Removed while it is locked: afterwards another process may have locked it.
            with contextlib.suppress(OSError):  # Windows does not remove open files
                (self.folder / "lock").unlink()
                self.folder.rmdir()
        self._lock.release()

    @property
    def _manifest_path(self) -> Path:
        return self.folder / "manifest"

    @property
    def begun(self) -> dict[str, str]:
        """The fingerprint of the job that was begun here; empty if none was."""
        return read_fingerprint(self.output)

    def match(self, fingerprint: Mapping[str, str], former: Mapping[str, str] | None = None) -> None:
        """Refuse to continue the parts of another job; store the fingerprint in a new folder.

        Args:
            fingerprint: the fingerprint of this run.
            former: fields as an earlier version would have written them; these match, too, and are then updated.

        Raises:
            CheckpointError: a field differs; the error names every such field.
        """
        known = self.begun
        former = former or {}
        # A job that was begun without an optional setting must not continue with it, nor the reverse.
        before = (dict(OPTIONAL) if known else {}) | known
        different = [
            name
            for name, value in fingerprint.items()
            if name in before and name not in NOTES and before[name] not in (value, former.get(name))
        ]
        if different:
            changes = "\n".join(
                f"  {name}: {before[name] or 'none'} -> {fingerprint[name] or 'none'}" for name in different
            )
            note = ""
            if any("changed at" in before[name] for name in different if name in former):
                note = (
                    "It was begun by an earlier version, which identifies files by name, size and modification time: "
                    "restore these (mv, touch -d) to continue it.\n"
                )
            raise CheckpointError(
                f"{self.folder} belongs to a job with different settings or input:\n{changes}\n{note}"
                "Run with those settings to continue it, give another output, or start over with --restart"
            )
        kept = {name: known[name] for name in NOTES if name in known}
        given = {name: value for name, value in fingerprint.items() if OPTIONAL.get(name) != value}
        if known != (merged := known | given | kept):
            write_atomically(self.folder / "fingerprint.json", json.dumps(merged, indent=2))

    def restart(self) -> None:
        """Remove the files that an earlier job has left, and nothing else."""
        for pattern in _LEFT_BY_A_JOB:
            for path in self.folder.glob(pattern):
                path.unlink()

    def summary(self) -> dict[str, Any]:
        """The summary that a finished job wrote; empty if the job is not finished."""
        return _read_json(self.folder / "summary.json")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Store the summary and drop the parts; called when the output is in its place."""
        write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2))
        self.drop_parts()

    def forget_summary(self) -> None:
        """Remove the summary; called when the output no longer exists."""
        (self.folder / "summary.json").unlink()

    def drop_parts(self) -> None:
        """Remove the files that only an unfinished job needs."""
        for path in self.folder.iterdir():
            if path.name.startswith(("part-", "manifest", "texts.sqlite", "sort-", "input", "output", "errors")):
                path.unlink()

    def resume(self) -> Done:
        """Check the committed passes, cut off everything that does not count, and open a new part.

        Returns:
            The passes that are done.

        Raises:
            StorageError: see `append`.
        """
        with storage(self.folder):
            entries = self._valid_entries()
            ends: dict[int, int] = {}
            for entry in entries.tolist():
                ends[entry[3]] = max(ends.get(entry[3], 0), entry[4] + entry[5])
            for name in ("sort-*", "output", "errors"):
                for path in self.folder.glob(name):
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
            self._part = Appender(self._part_path(self._part_number))
            # Rewritten, so that new lines do not follow an incomplete or damaged one.
            write_atomically(self._manifest_path, "".join(map(_manifest_line, entries.tolist())))
            self._manifest = Appender(self._manifest_path)
            sync_folder(self.folder)
        return Done(entries)

    def append(self, scored: ScoredPass) -> None:
        """Commit a pass: write its content to the part, then its line to the manifest. A kill then no longer loses it.

        Raises:
            StorageError: there is no space left, or the system reports another error. What is half written does not
                count.
        """
        assert self._part is not None and self._manifest is not None, "resume() comes first"  # noqa: S101, PT018
        content = _pack(scored)
        place = [self._part_number, self._part.length, len(content), zlib.crc32(content)]
        counts = [scored.pairs, len(scored.failures), scored.window_checksum]
        line = [scored.window, scored.number, scored.count, *place, *counts]
        self._part.append(content)
        self._manifest.append(_manifest_line(line).encode())

    def sync(self) -> None:
        """Wait until everything that was committed is on the disk.

        Raises:
            StorageError: a file cannot be written.
        """
        for appender in (self._part, self._manifest):
            if appender is not None:
                appender.sync()

    def windows(self) -> Iterator[list[Row]]:
        """Yield the rows of each window in input order, complete and checked.

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
                        raise CheckpointError(f"{self._part_path(number)} is damaged at byte {offset}: run again")
                    rows += _unpack(content)
                rows.sort(key=attrgetter("position"))
                if [row.position for row in rows] != list(range(position, position + len(rows))):
                    raise CheckpointError(f"{self.folder} lacks pairs of window {window[0, 0]} or has them twice")
                position += len(rows)
                yield rows

    def committed(self) -> Iterator[Row]:
        """Yield all committed rows, in no particular order."""
        for entry in self._entries().tolist():
            with self._part_path(entry[3]).open("rb") as part:
                yield from _unpack(_read_at(part, entry[4], entry[5]))

    def _part_path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.jsonl"

    def _entries(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The complete lines of the manifest, int64 [passes, 10]."""
        numbers: array[int] = array("q")
        if self._manifest_path.exists():
            with self._manifest_path.open("rb") as lines:
                for line in lines:
                    numbers.extend(_parse_manifest_line(line))
        entries = np.array(numbers, dtype=np.int64).reshape(-1, _FIELDS)
        return entries[np.unique(entries[:, :2], axis=0, return_index=True)[1]]  # a pass counts once

    def _valid_entries(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The entries whose rows are in the parts as they were written."""
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


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): start over with --restart") from error
    return content if isinstance(content, dict) else {}


class Done:
    """The passes that are done.

    Attributes:
        pairs: number of pairs in these passes.
        errors: number of pairs among them that have no score.
    """

    def __init__(self, entries: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._entries = entries[np.argsort(entries[:, 0], kind="stable")]
        self.pairs = int(entries[:, 7].sum())
        self.errors = int(entries[:, 8].sum())

    def done(self, window: int) -> tuple[Collection[int], bool]:
        """Returns (numbers of a window's passes that are done, whether these are all of its passes)."""
        start, end = np.searchsorted(self._entries[:, 0], [window, window + 1])
        if start == end:
            return (), False
        numbers = frozenset(self._entries[start:end, 1].tolist())
        return numbers, len(numbers) == self._entries[start, 2]

    def check(self, window: Window) -> None:
        """Refuse a window whose content differs from the content that was scored.

        Raises:
            CheckpointError: the content differs; the error names the lines.
        """
        start, end = np.searchsorted(self._entries[:, 0], [window.number, window.number + 1])
        if set(self._entries[start:end, 9].tolist()) - {_UNKNOWN, window.checksum}:
            first, last = window.pairs[0].line, window.pairs[-1].line
            raise CheckpointError(
                f"lines {first} to {last} of the input have changed since they were scored: restore their former "
                "content to continue, or start over with --restart"
            )


def _manifest_line(entry: Sequence[int]) -> str:
    text = " ".join(map(str, entry))
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _parse_manifest_line(line: bytes) -> list[int]:
    """The numbers of an entry; empty if the line is incomplete or damaged."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return []
    numbers = [int(number) for number in text.split()]
    return numbers + [_UNKNOWN] * (_FIELDS - len(numbers))


def _pack(scored: ScoredPass) -> bytes:
    """A line of a part. Margins are float32 in base64, which is exact and three times as fast as 17 decimal digits."""
    columns = [*scored.columns]
    columns[_MARGINS] = b64encode(np.array(columns[_MARGINS], dtype="<f4").tobytes()).decode()  # type: ignore[call-overload]
    failures = [(*row[:4], None, row.reason) for row in scored.failures]
    return (json.dumps([columns, scored.seconds_each, failures], separators=(",", ":")) + "\n").encode()


def _unpack(content: bytes) -> list[Row]:
    columns, seconds, failures = json.loads(content)
    columns[_MARGINS] = np.frombuffer(b64decode(columns[_MARGINS]), dtype="<f4").tolist()
    fields = (*columns[:_TEXTS], repeat(seconds, len(columns[0])), *columns[_TEXTS:])
    return [
        *starmap(ScoredRow, zip(*fields, strict=True)),
        *(FailedRow._make((*row[:4], row[5])) for row in failures),
    ]


def _read_at(file: IO[bytes], offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)
