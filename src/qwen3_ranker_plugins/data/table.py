"""CSV and TSV with a heading."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator

from ..errors import InvalidInputError
from .files import MAX_LINE_BYTES, InputFile, Unpacked
from .pairs import FLAT, Fields, Pair, RecordReader, checked, unusable
from .source import FileSource

_logger = logging.getLogger("qwen3_ranker_plugins.offline")  # the logger of offline jobs


class TableSource(FileSource):
    """A table with a heading and one row for each pair.

    CSV is quoted as RFC 4180 says, so a field may hold line breaks. In TSV a quotation mark is a character like any
    other: files with unbalanced ones are common, and would otherwise swallow all rows up to the next one.

    Raises:
        InvalidInputError: the heading lacks a field, or the file has no heading.
    """

    def __init__(self, file: InputFile, fields: Fields, *, delimiter: str) -> None:
        super().__init__(file)
        self._records = RecordReader(fields)
        form = fields.form
        self._columns = fields.names(*FLAT) if form is None else [*fields.names(*FLAT[:3]), *(form.fields or ())]
        if form is not None and form.fields is None:
            raise InvalidInputError("rank_fields", None, f"name the columns of {file.location} that are judged")
        self._tabs = delimiter == "\t"
        self._fraction = 0.0
        self._warned = False
        with Unpacked(file, self.size) as unpacked:
            unreadable: tuple[type[Exception], ...] = (csv.Error, *unpacked.errors)
            try:
                self._heading = next(self._rows(unpacked), [])
            except unreadable as error:
                raise InvalidInputError("INPUT", file.location, f"its heading cannot be read: {error}") from error
        self.fields_seen = dict.fromkeys(self._heading)
        missing = [name for name in self._columns if name not in self._heading]
        if self._heading and missing:
            raise InvalidInputError(
                "INPUT",
                file.location,
                f"the heading is {', '.join(self._heading)}, and lacks {', '.join(missing)}: give names with --columns "
                "NAME=FIELD,..., such as qid=query_id,passage=document",
            )

    def _rows(self, unpacked: Unpacked) -> Iterator[list[str]]:
        csv.field_size_limit(MAX_LINE_BYTES)
        # Bytes that are not UTF-8 become lone surrogates, so that they make one row unusable and not the whole file.
        lines = io.TextIOWrapper(unpacked.stream, "utf-8-sig", errors="surrogateescape", newline="")
        if self._tabs:
            return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return csv.reader(lines, strict=True)

    def __iter__(self) -> Iterator[Pair]:
        if not self._heading:
            return
        places = [self._heading.index(name) for name in self._columns]
        with Unpacked(self.file, self.size) as unpacked:
            rows = self._rows(unpacked)
            next(rows)
            number = 1
            while True:
                number += 1
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    yield unusable(number, f"not CSV: {error}")
                    continue
                except unpacked.errors as error:
                    yield unusable(number, f"the {unpacked.packing} stream breaks off here: {error}")
                    break
                if row is None:
                    break
                if number % 512 == 0:
                    self._fraction = unpacked.fraction()
                if not row:
                    continue
                if len(row) != len(self._heading):
                    yield unusable(number, f"has {len(row)} fields, and the heading has {len(self._heading)}")
                    continue
                if self._tabs and not self._warned and any(_looks_quoted(field) for field in row):
                    self._warned = True
                    _logger.warning(
                        "%s: row %d looks quoted, as pandas' to_csv writes it, and quotation marks in TSV are read as "
                        "text: write it with quoting=csv.QUOTE_NONE, or as CSV or JSONL",
                        self.file.location,
                        number,
                    )
                pair = self._pair(number, [row[place] for place in places])
                broken = any("\udc80" <= character <= "\udcff" for text in pair[1:5] for character in _odd(text))
                yield unusable(number, "not UTF-8") if broken else pair
        self._fraction = 1.0

    def _pair(self, number: int, values: list[str]) -> Pair:
        if self._records.form is None:
            return checked(number, *values)
        query_id, doc_id, query, *judged = values
        return self._records.formed(number, query_id, doc_id, query, dict(zip(self._columns[3:], judged, strict=True)))

    def fraction(self) -> float:
        """Fraction of the bytes of the stored file, which may be compressed."""
        return min(1.0, self._fraction)


def _looks_quoted(field: str) -> bool:
    """Whether a field begins with a quotation mark, and contains a doubled one or lacks the closing one."""
    return field.startswith('"') and ('""' in field[1:] or field.count('"') % 2 == 1)


def _odd(text: str) -> str:
    """The text if it may hold lone surrogates, else "": this test is cheaper than a look at each character."""
    return "" if text.isascii() else text
