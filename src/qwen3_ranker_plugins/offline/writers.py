"""Ranked rows -> JSONL, Parquet or a TREC run: under a temporary name, then in one step under the right one."""

from __future__ import annotations

import contextlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from json.encoder import encode_basestring, encode_basestring_ascii
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..data.readers import pyarrow_or_raise
from ..errors import InvalidInputError
from .scoring import Row

FORMATS = ("jsonl", "parquet", "trec")
_SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
    ".trec": "trec", ".run": "trec", ".txt": "trec",
}  # fmt: skip

_ROW_GROUP = 20_000
_ROW_GROUP_CHARACTERS = 16 * 2**20
_TAG = "qwen3-ranker"


def format_of(output: Path, asked_for: str | None) -> str:
    """The format of an output, by its suffix unless it is named.

    Raises:
        InvalidInputError: neither says which.
    """
    name = _SUFFIXES.get(output.suffix) if asked_for is None else asked_for
    if name not in FORMATS:
        if asked_for is None:
            raise InvalidInputError("OUTPUT", str(output), f"use one of {', '.join(_SUFFIXES)}, or give --format")
        raise InvalidInputError("format", asked_for, f"use one of {', '.join(FORMATS)}")
    if name == "parquet":
        pyarrow_or_raise()
    return name


def relevance_score(margin: float) -> float:
    """P(yes) = sigmoid(margin)."""
    return 0.5 + 0.5 * math.tanh(0.5 * margin)


def confidence(margin: float) -> float:
    """|P(yes) - P(no)|."""
    return math.tanh(0.5 * abs(margin))


class Writer(ABC):
    """Writes one query after the other.

    Args:
        path: replaced when everything was written; untouched until then.
        processing_time: write that field.
        include_text: write the texts.
    """

    def __init__(self, path: Path, *, processing_time: bool, include_text: bool) -> None:
        self.path = path
        self._temporary = path.with_name(f"{path.name}.tmp")
        self._processing_time = processing_time
        self._include_text = include_text

    def fault(self, row: Row) -> str | None:  # noqa: ARG002 - some formats need it
        """Why a row cannot stand in this format; None if it can."""
        return None

    @abstractmethod
    def write(self, query_id: str, rows: Sequence[Row], rank: int) -> None:
        """Add rows of a query in their final order, the first of them at `rank`."""

    @abstractmethod
    def _close(self) -> None:
        """Finish the temporary file and have it synced."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._temporary.unlink(missing_ok=True)

    def publish(self) -> None:
        """Put the file in its place."""
        self._close()
        self._temporary.replace(self.path)


class _TextWriter(Writer):
    """Lines of text, with a note of where each query begins."""

    def __init__(self, path: Path, index: Path, *, processing_time: bool, include_text: bool) -> None:
        super().__init__(path, processing_time=processing_time, include_text=include_text)
        self._file = self._temporary.open("wb")
        self._index = index.open("w", encoding="utf-8")
        self._offset = 0

    def write(self, query_id: str, rows: Sequence[Row], rank: int) -> None:
        content = self._lines(query_id, rows, rank).encode("utf-8")
        self._index.write(f"[{encode_basestring_ascii(query_id)},{self._offset},{len(rows)}]\n")
        self._file.write(content)
        self._offset += len(content)

    @abstractmethod
    def _lines(self, query_id: str, rows: Sequence[Row], rank: int) -> str: ...

    def _close(self) -> None:
        for file in (self._file, self._index):
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._file, self._index):
            with contextlib.suppress(OSError):  # closed already, or the buffer's rest on a full disk
                file.close()
        super().__exit__(kind, error, trace)


class JsonlWriter(_TextWriter):
    """One object a line."""

    def _lines(self, query_id: str, rows: Sequence[Row], rank: int) -> str:
        # Put together by hand: json.dumps takes three times as long, which is half the cost of a pair.
        start = f'{{"query_id": {encode_basestring(query_id)}, "doc_id": '
        lines: list[str] = []
        for place, row in enumerate(rows, start=rank):
            doc_id, margin, truncated, seconds = row[3:7]
            decided = math.tanh(0.5 * margin)
            time = f', "processing_time": {seconds!r}' if self._processing_time else ""
            texts = f', "query": {_quoted(row[7])}, "document": {_quoted(row[8])}' if self._include_text else ""
            lines.append(
                f'{start}{encode_basestring(doc_id)}, "relevance_score": {0.5 + 0.5 * decided!r}, '
                f'"margin": {margin!r}, "confidence": {abs(decided)!r}, "rank": {place}, '
                f'"truncated": {truncated}{time}{texts}}}\n'
            )
        return "".join(lines)


class TrecWriter(_TextWriter):
    """`query_id Q0 doc_id rank margin tag`, the margin as score: it keeps the order where P(yes) is 1.0 for many."""

    def fault(self, row: Row) -> str | None:
        """White space separates fields."""
        for name, value in (("query_id", row[2]), ("doc_id", row[3])):
            if value.split() != [value]:
                return f"{name} {value!r} holds white space, which a TREC run cannot"
        return None

    def _lines(self, query_id: str, rows: Sequence[Row], rank: int) -> str:
        return "".join(
            f"{query_id} Q0 {row[3]} {place} {row[4]!r} {_TAG}\n" for place, row in enumerate(rows, start=rank)
        )


class ParquetWriter(Writer):
    """Row groups of some thousand rows; `query_id` has statistics, so that one query is found quickly."""

    def __init__(self, path: Path, *, processing_time: bool, include_text: bool) -> None:
        super().__init__(path, processing_time=processing_time, include_text=include_text)
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
            *([("processing_time", pa.float64())] if processing_time else []),
            *([("query", pa.string()), ("document", pa.string())] if include_text else []),
        ]
        self._schema = pa.schema(fields)
        self._columns: list[list[Any]] = [[] for _ in fields]
        self._characters = 0
        self._file = pq.ParquetWriter(self._temporary, self._schema, compression="zstd")

    def write(self, query_id: str, rows: Sequence[Row], rank: int) -> None:
        """Add rows; they are written when there are enough for a row group."""
        for place, row in enumerate(rows, start=rank):
            doc_id, margin, truncated, seconds = row[3:7]
            values = [query_id, doc_id, relevance_score(margin), margin, confidence(margin), place, truncated]
            if self._processing_time:
                values.append(seconds)
            if self._include_text:
                values += [_without_surrogates(row[7]), _without_surrogates(row[8])]
                self._characters += len(row[7]) + len(row[8])
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
            with contextlib.suppress(OSError):  # its footer no longer fits either
                self._file.close()
        super().__exit__(kind, error, trace)


def open_writer(name: str, path: Path, index: Path, *, processing_time: bool, include_text: bool) -> Writer:
    """The writer of a format; `index` is written by those that are searched by offset."""
    if name == "parquet":
        return ParquetWriter(path, processing_time=processing_time, include_text=include_text)
    kind = JsonlWriter if name == "jsonl" else TrecWriter
    return kind(path, index, processing_time=processing_time, include_text=include_text)


def _quoted(text: str) -> str:
    """A JSON string that can be encoded as UTF-8."""
    return encode_basestring(_without_surrogates(text))


def _without_surrogates(text: str) -> str:
    """Halves of surrogate pairs, which have no UTF-8 form, as U+FFFD: so the model read them too."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
