"""A store in an SQLite file, which several processes may share and which a kill leaves usable.

SQLite comes with Python. diskcache was not chosen: it stores pickles, and whoever can write to such a file can run code
in every process that reads it. Here values are numbers with a checksum, and keys are digests: no text is in the file.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InvalidInputError
from .store import Store

_logger = logging.getLogger(__name__)

#: "Q3RC", the application id in the file's header, so that no other file is taken for a cache.
APPLICATION_ID = 0x51335243
#: Version of the file format, raised when a file of an earlier version could be misread.
FORMAT = 1
#: Bytes of a row besides its value: its key, its time, and the space that B-trees leave empty.
ROW_BYTES = 60

_WRITABLE = "give a path that can be written, on a disk with free space"
#: Primary result codes of SQLite for a file that is no database, a damaged one, or one without the table.
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)

_CHECKSUM_BYTES = 4
_KEYS_AT_A_TIME = 500
#: Seconds between two transactions, so that many small requests share one.
_PAUSE = 0.2
_BUSY_TIMEOUT = 30.0
#: The share of rows that is deleted when the file is full.
_EVICTED_SHARE = 0.1
#: Number of rows written after which the table is counted again, because other processes write too.
_RECOUNT = 100_000
#: The time of last use is exact to this many seconds, so that not every hit has to write.
_TIME_UNIT = 3600


class FileStore(Store):
    """Stores values as rows of one table; a thread writes them, so that no caller waits for the disk.

    Args:
        path: path of the file, which is created if it does not exist.
        limit: maximum size of the table in bytes; SQLite's journal takes a few MB more.

    Raises:
        InvalidInputError: the file cannot be opened, or is not a cache of this version.
    """

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(limit)
        self.path = path
        self._reading = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: dict[bytes, bytes] = {}
        self._used: set[bytes] = set()
        self._closing = False
        self._rows = self._bytes = self._written = 0
        self._reader = self._open()
        self._writer = _connect(path)
        # In WAL mode, a power cut loses only the last rows.
        self._writer.execute("PRAGMA synchronous = NORMAL")
        self._thread = threading.Thread(target=self._write, name="qwen3-ranker-cache", daemon=True)
        self._thread.start()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `Store`."""
        with self._changed:
            waiting = [self._waiting.get(key) for key in keys]
        missing = [key for key, value in zip(keys, waiting, strict=True) if value is None]
        found = self._read(missing) if missing and self.failure is None else {}
        return [found.get(key) if value is None else value for key, value in zip(keys, waiting, strict=True)]

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        now, found = _time(), {}
        used: set[bytes] = set()
        try:
            with self._reading:
                for start in range(0, len(keys), _KEYS_AT_A_TIME):
                    part = keys[start : start + _KEYS_AT_A_TIME]
                    places = ",".join("?" * len(part))
                    rows = self._reader.execute(f"SELECT key, value, used FROM scores WHERE key IN ({places})", part)  # noqa: S608 - question marks
                    for key, stored, last in rows:
                        value = stored[:-_CHECKSUM_BYTES]
                        if stored[-_CHECKSUM_BYTES:] == _checksum(key, value):  # a damaged row is a miss
                            found[key] = value
                            if last != now:
                                used.add(key)
        except sqlite3.Error as error:
            self._fail(error)
            return {}
        if used:
            with self._changed:
                self._used |= used
                self._changed.notify()
        return found

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """See `Store`. Returns before the values are on the disk; `get` finds them."""
        if self.failure is not None:
            return
        with self._changed:
            self._waiting.update(values)
            self._changed.notify()

    def size(self) -> tuple[int, int]:
        """See `Store`."""
        return (self._rows, self._bytes) if self.failure is None else (0, 0)

    def close(self) -> None:
        """See `Store`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        with self._reading:
            self._reader.close()
        self._writer.close()

    def _open(self) -> sqlite3.Connection:
        """A connection to a cache file of this version, which is created if it does not exist.

        Raises:
            InvalidInputError: the file is not one.
        """
        remedy = "give another path, or delete the file if it is an old cache"
        try:
            connection = _connect(self.path)
        except sqlite3.Error as error:
            raise InvalidInputError("cache_path", str(self.path), f"{error}; {_WRITABLE}") from error
        try:
            _make(connection)
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if application == APPLICATION_ID and version == FORMAT:
                connection.execute("SELECT key, value, used FROM scores LIMIT 1").fetchone()
                return connection
            fault = "is the database of another program"
            if application == APPLICATION_ID:
                fault = f"has format {version}, and this version reads {FORMAT}"
        except sqlite3.Error as error:
            fault = f"cannot be read as a cache ({error})"
            # The lower byte is the kind of error. Deleting the file does not help on a full disk.
            if error.sqlite_errorcode & 0xFF not in _DAMAGED:
                fault, remedy = f"cannot be written ({error})", _WRITABLE
        connection.close()
        raise InvalidInputError("cache_path", str(self.path), f"{fault}; {remedy}")

    def _write(self) -> None:
        """What the writing thread runs, until the store is closed and all values are written."""
        try:
            self._count()
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._used or self._closing)
                    values, used, closing = dict(self._waiting), self._used, self._closing
                    self._used = set()
                if values or used:
                    self._write_rows(values, used)
                if closing:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, _PAUSE)
        except sqlite3.Error as error:
            self._fail(error)

    def _write_rows(self, values: Mapping[bytes, bytes], used: set[bytes]) -> None:
        now = _time()
        with _transaction(self._writer):
            rows = ((key, value + _checksum(key, value), now) for key, value in values.items())
            self._writer.executemany("INSERT OR REPLACE INTO scores (key, value, used) VALUES (?, ?, ?)", rows)
            self._writer.executemany("UPDATE scores SET used = ? WHERE key = ?", ((now, key) for key in used))
        with self._changed:
            for key, value in values.items():
                if self._waiting.get(key) is value:
                    del self._waiting[key]
        self._rows += len(values)
        self._bytes += sum(ROW_BYTES + _CHECKSUM_BYTES + len(value) for value in values.values())
        self._written += len(values)
        if self._bytes > self.limit or self._written >= _RECOUNT:
            self._count()
            while self._bytes > self.limit and self._rows:
                self._evict()

    def _count(self) -> None:
        self._written = 0
        query = "SELECT count(*), coalesce(sum(length(value)), 0) FROM scores"
        self._rows, values = self._writer.execute(query).fetchone()
        self._bytes = values + ROW_BYTES * self._rows

    def _evict(self) -> None:
        count = max(1, int(self._rows * _EVICTED_SHARE))
        with _transaction(self._writer):
            gone = self._writer.execute(
                "DELETE FROM scores WHERE key IN (SELECT key FROM scores ORDER BY used LIMIT ?)", (count,)
            ).rowcount
        self.evictions += gone
        self._count()

    def _fail(self, error: sqlite3.Error) -> None:
        """Continue without the file, because a fault of the cache must not fail requests."""
        with self._changed:
            first = self.failure is None
            self.failure = self.failure or str(error)
            self._waiting.clear()
        if first:
            _logger.warning(
                "the cache %s cannot be used and is left alone: %s; scores are computed. Free space, or delete the "
                "file if it is damaged, and start again",
                self.path,
                error,
            )


class _transaction:  # noqa: N801 - used as a function
    """A write transaction, which waits for those of other processes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)


def _make(connection: sqlite3.Connection) -> None:
    """Create the table in an empty file; other files stay as they are."""
    if connection.execute("PRAGMA schema_version").fetchone()[0]:
        return
    connection.execute("PRAGMA journal_mode = WAL")
    with _transaction(connection):  # another process may have created it first
        if not connection.execute("PRAGMA schema_version").fetchone()[0]:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, value BLOB, used INTEGER) WITHOUT ROWID")


def _checksum(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key)).to_bytes(_CHECKSUM_BYTES, "little")


def _time() -> int:
    return int(time.time()) // _TIME_UNIT
