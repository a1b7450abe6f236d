"""Writes ranked rows as JSONL, CSV, Parquet or a TREC run: first into the job's folder, then moved in one step."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring, encode_basestring_ascii
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from ..calibration import Calibration, log_odds_line
from ..data.files import pyarrow_or_raise
from ..errors import InvalidInputError
from ..prompt import as_utf8
from .rows import ScoredRow

FORMATS = ("jsonl", "parquet", "trec", "csv")
_SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
    ".trec": "trec", ".run": "trec", ".txt": "trec",
    ".csv": "csv",
}  # fmt: skip

_ROW_GROUP = 20_000
_ROW_GROUP_CHARACTERS = 16 * 2**20
_TAG = "qwen3-ranker"
_FIELDS = ("query_id", "doc_id", "relevance_score", "margin", "confidence", "rank", "truncated")
_PIECE_FIELDS = ("piece_start", "piece_end")

#: Key in Parquet's metadata; its value is JSON that describes how the scores were made.
METADATA_KEY = "qwen3_ranker"


def format_of(output: Path, asked_for: str | None) -> str:
    """The format of an output: the given one, or else that of its suffix.

    Raises:
        InvalidInputError: the format or the suffix is unknown, or the output is Parquet with .gz.
        MissingDependencyError: the format is Parquet, and pyarrow is not installed.
    """
    plain = output.with_suffix("") if is_packed(output) else output
    name = _SUFFIXES.get(plain.suffix) if asked_for is None else asked_for
    if name not in FORMATS:
        if asked_for is None:
            suffixes = ", ".join(_SUFFIXES)
            raise InvalidInputError(
                "OUTPUT", str(output), f"use one of {suffixes} (all except Parquet also with .gz), or give --format"
            )
        raise InvalidInputError("format", asked_for, f"use one of {', '.join(FORMATS)}")
    if name == "parquet":
        if is_packed(output):
            raise InvalidInputError("OUTPUT", str(output), "Parquet has its own compression: leave .gz out")
        pyarrow_or_raise()
    return name


def is_packed(output: Path) -> bool:
    """Whether an output is gzipped."""
    return output.suffix == ".gz"


def relevance_score(log_odds: float) -> float:
    """P(yes) = sigmoid(log_odds); the log-odds are the margin, or the calibrated margin if there is a calibration."""
    return 0.5 + 0.5 * math.tanh(0.5 * log_odds)


def confidence(log_odds: float) -> float:
    """|P(yes) - P(no)| for log-odds of P(yes)."""
    return math.tanh(0.5 * abs(log_odds))


@dataclass(frozen=True)
class Contents:
    """What an output holds besides ids, scores and ranks.

    Attributes:
        processing_time: whether it holds the field of that name.
        include_text: whether it holds the texts.
        pieces: whether it holds the piece with the highest margin of each document; TREC runs have no field for it.
        calibration: maps margins to scores; None for their sigmoid.
    """

    processing_time: bool
    include_text: bool
    pieces: bool
    calibration: Calibration | None


class Writer(ABC):
    """Writes one query after the other.

    Args:
        path: the final path, which is replaced by `publish` and untouched until then.
        temporary: the file that is written first, on the same file system.
        contents: what is written of each row.
    """

    def __init__(self, path: Path, temporary: Path, contents: Contents) -> None:
        self.path = path
        self._temporary = temporary
        self._processing_time = contents.processing_time
        self._include_text = contents.include_text
        self._pieces = contents.pieces
        self._slope, self._intercept = log_odds_line(contents.calibration)

    def fault(self, row: ScoredRow) -> str | None:  # noqa: ARG002 - some formats need it
        """Why a row cannot be written in this format; None if it can."""
        return None

    @abstractmethod
    def write(self, query_id: str, rows: Sequence[ScoredRow], rank: int) -> None:
        """Add rows of a query in their final order, the first of them at `rank`."""

    @abstractmethod
    def _close(self) -> None:
        """Finish the temporary file and sync it to the disk."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._temporary.unlink(missing_ok=True)

    def publish(self) -> None:
        """Finish the file and move it to its final path."""
        self._close()
        self._temporary.replace(self.path)


class _TextWriter(Writer):
    """Writes lines of text, and an index of where each query begins."""

    def __init__(self, path: Path, temporary: Path, index: Path, contents: Contents) -> None:
        super().__init__(path, temporary, contents)
        self._raw = temporary.open("wb")
        self._file = cast("BinaryIO", self._raw)
        if is_packed(path):  # without a time and a name, so that equal jobs give equal bytes
            self._file = cast("BinaryIO", gzip.GzipFile("", "wb", fileobj=self._raw, mtime=0))
        self._index = index.open("w", encoding="utf-8")
        self._offset = self._file.write(self._heading().encode("utf-8"))

    def _heading(self) -> str:
        return ""

    def write(self, query_id: str, rows: Sequence[ScoredRow], rank: int) -> None:
        content = self._lines(query_id, rows, rank).encode("utf-8")
        self._index.write(f"[{encode_basestring_ascii(query_id)},{self._offset},{len(rows)}]\n")
        self._file.write(content)
        self._offset += len(content)

    @abstractmethod
    def _lines(self, query_id: str, rows: Sequence[ScoredRow], rank: int) -> str: ...

    def _close(self) -> None:
        if self._file is not self._raw:
            self._file.close()
        for file in (self._raw, self._index):
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._file, self._raw, self._index):
            with contextlib.suppress(OSError):  # it is closed already, or the disk is full
                file.close()
        super().__exit__(kind, error, trace)


class JsonlWriter(_TextWriter):
    """Writes one JSON object per line."""

    def _lines(self, query_id: str, rows: Sequence[ScoredRow], rank: int) -> str:
        # Formatted by hand: json.dumps takes three times as long, which would be half the cost of a pair.
        start = f'{{"query_id": {encode_basestring(query_id)}, "doc_id": '
        lines: list[str] = []
        for place, row in enumerate(rows, start=rank):
            _, _, _, doc_id, margin, truncated, seconds, query, document, start_of_piece, end_of_piece = row
            decided = math.tanh(0.5 * (self._slope * margin + self._intercept))
            piece = f', "piece_start": {start_of_piece}, "piece_end": {end_of_piece}' if self._pieces else ""
            time = f', "processing_time": {seconds!r}' if self._processing_time else ""
            texts = f', "query": {_quoted(query)}, "document": {_quoted(document)}' if self._include_text else ""
            lines.append(
                f'{start}{encode_basestring(doc_id)}, "relevance_score": {0.5 + 0.5 * decided!r}, '
                f'"margin": {margin!r}, "confidence": {abs(decided)!r}, "rank": {place}, '
                f'"truncated": {truncated}{piece}{time}{texts}}}\n'
            )
        return "".join(lines)


class CsvWriter(_TextWriter):
    """Writes a heading, and a row for each pair, quoted as in RFC 4180."""

    def _heading(self) -> str:
        times, texts = ["processing_time"] * self._processing_time, ["query", "document"] * self._include_text
        return ",".join([*_FIELDS, *_PIECE_FIELDS * self._pieces, *times, *texts]) + "\n"

    def _lines(self, query_id: str, rows: Sequence[ScoredRow], rank: int) -> str:
        lines = io.StringIO()
        write = csv.writer(lines, lineterminator="\n").writerow
        for place, row in enumerate(rows, start=rank):
            odds = self._slope * row.margin + self._intercept
            values = [query_id, row.doc_id, relevance_score(odds), row.margin, confidence(odds), place]
            texts = [as_utf8(row.query), as_utf8(row.document)] * self._include_text
            piece = [row.piece_start, row.piece_end] * self._pieces
            write([*values, row.truncated, *piece, *[row.seconds] * self._processing_time, *texts])
        return lines.getvalue()


class TrecWriter(_TextWriter):
    """Writes `query_id Q0 doc_id rank margin tag`. The margin keeps the order even if P(yes) is 1.0 for many pairs."""

    def fault(self, row: ScoredRow) -> str | None:
        """White space separates the fields of a TREC run, so ids must not contain it."""
        for name, value in (("query_id", row.query_id), ("doc_id", row.doc_id)):
            if value.split() != [value]:
                return f"{name} {value!r} contains white space, which a TREC run does not allow"
        return None

    def _lines(self, query_id: str, rows: Sequence[ScoredRow], rank: int) -> str:
        return "".join(
            f"{query_id} Q0 {row.doc_id} {place} {row.margin!r} {_TAG}\n" for place, row in enumerate(rows, start=rank)
        )


class ParquetWriter(Writer):
    """Writes row groups of some thousand rows, with statistics of `query_id`, so that a query is found quickly."""

    def __init__(self, path: Path, temporary: Path, made_by: Mapping[str, str], contents: Contents) -> None:
        super().__init__(path, temporary, contents)
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [
            ("query_id", pa.string()),
            ("doc_id", pa.string()),
            ("relevance_score", pa.float64()),
            ("margin", pa.float32()),
            ("confidence", pa.float64()),
            ("rank", pa.int64()),
            ("truncated", pa.int32()),
            *((name, pa.int64()) for name in _PIECE_FIELDS * contents.pieces),
            *([("processing_time", pa.float64())] if contents.processing_time else []),
            *([("query", pa.string()), ("document", pa.string())] if contents.include_text else []),
        ]
        self._schema = pa.schema(fields, {METADATA_KEY: json.dumps(dict(made_by), sort_keys=True)})
        self._columns: list[list[Any]] = [[] for _ in fields]
        self._characters = 0
        self._file = pq.ParquetWriter(self._temporary, self._schema, compression="zstd")

    def write(self, query_id: str, rows: Sequence[ScoredRow], rank: int) -> None:
        """Add rows; they are written once there are enough for a row group."""
        for place, row in enumerate(rows, start=rank):
            _, _, _, doc_id, margin, truncated, seconds, query, document, *piece = row
            odds = self._slope * margin + self._intercept
            values = [query_id, doc_id, relevance_score(odds), margin, confidence(odds), place, truncated]
            if self._pieces:
                values += piece
            if self._processing_time:
                values.append(seconds)
            if self._include_text:
                values += [as_utf8(query), as_utf8(document)]
                self._characters += len(query) + len(document)
            for column, value in zip(self._columns, values, strict=True):
                column.append(value)
        if len(self._columns[0]) >= _ROW_GROUP or self._characters > _ROW_GROUP_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, self._schema, strict=True)]
        self._file.write_table(pa.table(arrays, schema=self._schema))
        self._columns = [[] for _ in self._columns]
        self._characters = 0

    def _close(self) -> None:
        if self._columns[0]:
            self._flush()
        self._file.close()
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with contextlib.suppress(OSError):  # on a full disk, the footer cannot be written, either
                self._file.close()
        super().__exit__(kind, error, trace)


def open_writer(name: str, path: Path, folder: Path, made_by: Mapping[str, str], contents: Contents) -> Writer:
    """The writer of a format.

    Args:
        name: the format.
        path: the final path of the output.
        folder: the job's folder, with the unfinished output and, for formats of text, the index of queries.
        made_by: model, engine and settings, for formats that have metadata.
        contents: what is written of each row.
    """
    temporary = folder / "output"
    if name == "parquet":
        return ParquetWriter(path, temporary, made_by, contents)
    kinds: dict[str, type[JsonlWriter | TrecWriter | CsvWriter]] = {
        "jsonl": JsonlWriter,
        "trec": TrecWriter,
        "csv": CsvWriter,
    }
    return kinds[name](path, temporary, folder / "queries.jsonl", contents)


def _quoted(text: str) -> str:
    """A JSON string that can be encoded as UTF-8."""
    return encode_basestring(as_utf8(text))
