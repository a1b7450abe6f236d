"""Inputs -> pairs, one at a time, in the order of the input.

A source is read from its beginning by every run, so that windows and their passes are the same each time.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, MissingDependencyError
from .pairs import Pair, checked, pairs_of, unusable

#: A line longer than this is reported and skipped: it would have to be held whole to be read.
MAX_LINE_BYTES = 64 * 2**20

SeedPair = tuple[str, str, str, str]


class Source(ABC):
    """Where pairs come from."""

    @abstractmethod
    def __iter__(self) -> Iterator[Pair]:
        """The pairs from the beginning."""

    @abstractmethod
    def fraction(self) -> float:
        """How much of the input has been read, from 0 to 1."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What must be unchanged for a job to go on: name -> value."""


class JsonlSource(Source):
    """JSON lines, flat and nested ones in any mixture; gzipped if the name ends in .gz."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)

    def __iter__(self) -> Iterator[Pair]:
        for number, line in self._lines:
            if isinstance(line, Pair):
                yield line
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                yield unusable(number, f"not JSON: {error}")
            except RecursionError:
                yield unusable(number, "not JSON that can be read: it is nested too deeply")
            else:
                if type(record) is dict and "documents" not in record:
                    get = record.get
                    yield checked(number, get("query_id"), get("doc_id"), get("query"), get("document"))
                else:
                    yield from pairs_of(record, number)

    def fraction(self) -> float:
        """By bytes of the file as it lies on the disk."""
        return self._lines.fraction()

    def identity(self) -> dict[str, str]:
        """The file's name, size and time."""
        return file_identity("input", self._lines.path)


class Lines:
    """(number from 1, text) of each line that is not blank, or a fault in the text's place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = max(1, path.stat().st_size)
        self._read = 0.0

    def __iter__(self) -> Iterator[tuple[int, str | Pair]]:
        with self.path.open("rb", buffering=0) as raw:
            # A larger buffer around the unpacked stream would lose what it holds where the stream breaks off.
            lines = gzip.GzipFile(fileobj=raw) if self.path.suffix == ".gz" else io.BufferedReader(raw, 2**20)
            number = 0
            try:
                while line := lines.readline(MAX_LINE_BYTES):
                    number += 1
                    if number % 512 == 1:
                        self._read = raw.tell() / self._size
                    if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                        while (line := lines.readline(MAX_LINE_BYTES)) and not line.endswith(b"\n"):
                            pass
                        yield number, unusable(number, f"the line is longer than {MAX_LINE_BYTES} bytes")
                        continue
                    try:
                        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    except UnicodeDecodeError as error:
                        yield number, unusable(number, f"not UTF-8 at byte {error.start} of the line")
                        continue
                    if text and not text.isspace():
                        yield number, text
            except (EOFError, OSError, zlib.error) as error:
                if self.path.suffix != ".gz":
                    raise
                yield number + 1, unusable(number + 1, f"the gzip stream breaks off here: {error}")
            self._read = 1.0

    def fraction(self) -> float:
        """How much of the file has been read, from 0 to 1."""
        return min(1.0, self._read)


class ParquetSource(Source):
    """Parquet with the columns query_id, doc_id, query, document; or query, documents and perhaps query_id.

    Raises:
        MissingDependencyError: pyarrow is not installed.
        InvalidInputError: not a Parquet file, or it has other columns.
    """

    def __init__(self, path: Path) -> None:
        pyarrow_or_raise()
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path = path
        try:
            self._file = pq.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise InvalidInputError("INPUT", str(path), f"not a Parquet file: {error}") from error
        names = set(self._file.schema_arrow.names)
        flat = ["query_id", "doc_id", "query", "document"]
        self._columns = [name for name in ("query_id", "query", "documents") if name in names]
        if set(flat) <= names:
            self._columns = flat
        elif not {"query", "documents"} <= names:
            raise InvalidInputError(
                "INPUT", str(path), f"has columns {sorted(names)}; needs {flat}, or query, documents"
            )
        self._rows = max(1, self._file.metadata.num_rows)
        self._read = 0

    def __iter__(self) -> Iterator[Pair]:
        import pyarrow as pa

        row = 0
        for group in range(self._file.num_row_groups):
            end = row + self._file.metadata.row_group(group).num_rows
            try:
                for batch in self._file.iter_batches(1024, row_groups=[group], columns=self._columns):
                    self._read = row
                    yield from self._pairs(batch, row)
                    row += batch.num_rows
            except (OSError, pa.ArrowException) as error:  # what is behind the damaged group can still be read
                for lost in range(row, end):
                    yield unusable(lost + 1, f"row group {group} of the file is damaged: {error}")
            row = end
        self._read = row

    def _pairs(self, batch: Any, row: int) -> list[Pair]:
        """Of rows from `row` + 1 on."""
        try:
            if "document" in self._columns:
                columns = [batch.column(name).to_pylist() for name in self._columns]
                return [checked(number, *fields) for number, fields in enumerate(zip(*columns, strict=True), row + 1)]
            return [
                pair for number, record in enumerate(batch.to_pylist(), row + 1) for pair in pairs_of(record, number)
            ]
        except UnicodeDecodeError as error:  # Parquet's writers should check, and not all do
            if batch.num_rows == 1:
                return [unusable(row + 1, f"not UTF-8 at byte {error.start} of a text")]
            return [pair for at in range(batch.num_rows) for pair in self._pairs(batch.slice(at, 1), row + at)]

    def fraction(self) -> float:
        """By rows."""
        return float(self._read / self._rows)

    def identity(self) -> dict[str, str]:
        """The file's name, size and time."""
        return file_identity("input", self._path)


class PairsSource(Source):
    """(query_id, doc_id, query, document) tuples in memory, as the seed's `process_large_dataset` takes them."""

    def __init__(self, pairs: Sequence[SeedPair]) -> None:
        self._pairs = pairs
        self._read = 0

    def __iter__(self) -> Iterator[Pair]:
        for number, fields in enumerate(self._pairs, start=1):
            self._read = number
            try:
                query_id, doc_id, query, document = fields
            except (TypeError, ValueError):
                yield unusable(number, "needs (query_id, doc_id, query, document)")
            else:
                yield checked(number, query_id, doc_id, query, document)

    def fraction(self) -> float:
        """By tuples."""
        return self._read / max(1, len(self._pairs))

    def identity(self) -> dict[str, str]:
        """A hash over all tuples."""
        digest = hashlib.sha256()
        for fields in self._pairs:
            digest.update(repr(fields).encode("utf-8", "backslashreplace"))
        return {"input": f"{len(self._pairs)} pairs, sha256 {digest.hexdigest()[:16]}"}


def open_source(source: str | Path | Sequence[SeedPair], run: Path | None, folder: Path) -> Source:
    """The source that an INPUT stands for.

    Args:
        source: a file, a BEIR folder, "ir_datasets:ID", or tuples.
        run: the TREC run that says which documents of a BEIR folder or data set belong to which query.
        folder: where an index of a corpus may be kept.

    Raises:
        InvalidInputError, MissingDependencyError: it cannot be read; the message says why.
    """
    if not isinstance(source, (str, Path)):
        return PairsSource(source)
    from .corpus import BeirSource, IrDatasetsSource

    if str(source).startswith("ir_datasets:"):
        return IrDatasetsSource(str(source).removeprefix("ir_datasets:"), run)
    path = Path(source)
    if path.is_dir():
        return BeirSource(path, run, folder)
    if not path.is_file():
        raise InvalidInputError("INPUT", str(path), "there is no such file")
    if run is not None:
        raise InvalidInputError(
            "run", str(run), "goes with a BEIR folder or an ir_datasets id, not with a file of pairs"
        )
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return JsonlSource(path)
    if name.endswith((".parquet", ".pq")):
        return ParquetSource(path)
    raise InvalidInputError("INPUT", str(path), "use .jsonl, .jsonl.gz, .parquet, a BEIR folder or ir_datasets:ID")


def file_identity(role: str, path: Path) -> dict[str, str]:
    """What changes when a file is written again."""
    status = path.stat()
    return {role: f"{path.name}, {status.st_size} bytes, changed at {status.st_mtime_ns} ns"}


def pyarrow_or_raise() -> None:
    """Raise MissingDependencyError unless pyarrow is there."""
    if find_spec("pyarrow") is None:
        raise MissingDependencyError('Parquet needs pyarrow: pip install "qwen3-ranker-plugins[offline]"')
