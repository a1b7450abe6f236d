"""JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from .files import InputFile, Lines
from .pairs import Fields, Pair, RecordReader, checked, unusable
from .source import FIRST_RECORDS, FileSource


class JsonlSource(FileSource):
    """JSON lines, flat and nested records in any mixture."""

    def __init__(self, file: InputFile, fields: Fields) -> None:
        super().__init__(file)
        self._lines = Lines(file)
        self._records = RecordReader(fields)

    def __iter__(self) -> Iterator[Pair]:
        records = self._records
        query_id, doc_id, query, document = records.flat
        nested = records.documents
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
                if number <= FIRST_RECORDS and isinstance(record, dict):
                    self.fields_seen |= dict.fromkeys(record)
                if type(record) is dict and nested not in record and records.form is None:
                    get = record.get
                    yield checked(number, get(query_id), get(doc_id), get(query), get(document))
                else:
                    yield from records.pairs(record, number)

    def fraction(self) -> float:
        """Fraction of the bytes of the stored file, which may be compressed."""
        return self._lines.fraction()


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line of a file in which every line has to be valid.

    Raises:
        InvalidInputError: names the file and the line.
    """
    for number, line in Lines(path):
        if isinstance(line, Pair):
            raise InvalidInputError(path.name, f"line {number}", str(line.fault))
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise InvalidInputError(path.name, f"line {number}", f"not JSON: {error}") from error
