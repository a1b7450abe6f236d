"""Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from ..errors import InvalidInputError
from .files import InputFile, pyarrow_or_raise
from .pairs import FLAT, Fields, Pair, RecordReader, checked, unusable
from .source import FileSource


class ParquetSource(FileSource):
    """Parquet with the columns query_id, doc_id, query, document; or query, documents and perhaps query_id.

    Columns that a file of a partitioned data set lacks are taken from its path (`query_id=7/part-0.parquet`).

    Raises:
        MissingDependencyError: pyarrow is not installed.
        InvalidInputError: not a Parquet file, or it has other columns.
    """

    def __init__(self, file: InputFile, fields: Fields) -> None:
        pyarrow_or_raise()
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().__init__(file)
        self._records = RecordReader(fields)
        flat = fields.names(*FLAT)
        try:
            self._file = pq.ParquetFile(file.open() if file.is_remote else file.location)
        except pa.ArrowInvalid as error:
            raise InvalidInputError("INPUT", file.location, f"not a Parquet file: {error}") from error
        names = self._file.schema_arrow.names
        self.fields_seen = dict.fromkeys(names)
        self._of_path = {name: value for name, value in _partition(file.name).items() if name not in names}
        known = {*names, *self._of_path}
        query_id, query, documents = self._records.query_id, self._records.query, self._records.documents
        form, columns = fields.form, flat
        if form is not None:  # the object in `document`, or else columns, are the fields of a document
            columns = [*flat[:3], *([flat[3]] if flat[3] in known else form.fields or ())]
            columns += [name for name in form.fields or () if name in known and name not in columns]
        self._is_flat = set(columns) <= known and len(columns) > 3
        if not self._is_flat and not {query, documents} <= known:
            raise InvalidInputError(
                "INPUT",
                file.location,
                f"has columns {sorted(known)}; needs {columns}, or {query}, {documents}: give other names with "
                "--columns NAME=FIELD,..., such as qid=query_id,passage=document",
            )
        self._wanted = columns if self._is_flat else [name for name in (query_id, query, documents) if name in known]
        self._columns = [name for name in self._wanted if name in names]
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
            except (OSError, pa.ArrowException) as error:  # the groups after a damaged one can still be read
                for lost in range(row, end):
                    yield unusable(lost + 1, f"row group {group} of the file is damaged: {error}")
            row = end
        self._read = row

    def _pairs(self, batch: Any, row: int) -> list[Pair]:
        """The pairs of a batch whose first row has the number `row` + 1."""
        try:
            if self._is_flat and self._records.form is None:
                columns = [self._values(batch, name) for name in self._wanted]
                return [checked(number, *fields) for number, fields in enumerate(zip(*columns, strict=True), row + 1)]
            return [
                pair
                for number, record in enumerate(batch.to_pylist(), row + 1)
                for pair in self._records.pairs(record | self._of_path, number)
            ]
        except UnicodeDecodeError as error:  # Parquet writers should check this, but not all do
            if batch.num_rows == 1:
                return [unusable(row + 1, f"not UTF-8 at byte {error.start} of a text")]
            return [pair for at in range(batch.num_rows) for pair in self._pairs(batch.slice(at, 1), row + at)]

    def _values(self, batch: Any, name: str) -> list[Any]:
        return [self._of_path[name]] * batch.num_rows if name in self._of_path else batch.column(name).to_pylist()

    def fraction(self) -> float:
        """Fraction of the rows."""
        return float(self._read / self._rows)


def _partition(name: str) -> dict[str, str]:
    """The columns that Hive's layout of folders puts into a path."""
    parts = (part.partition("=") for part in name.split("/")[:-1])
    return {key: unquote(value) for key, equals, value in parts if equals}
