"""Reads the objects of a JSON lines or Parquet file, for commands that rank documents with fields."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from .files import plain_name, pyarrow_or_raise
from .formats import SUFFIXES
from .jsonl import read_json_lines


def read_records(name: str) -> Iterator[tuple[int, Any]]:
    """(line or row from 1, value) of a JSON lines file (also .gz or .zst), a Parquet file, or standard input for "-".

    Raises:
        InvalidInputError: it cannot be read; names the line.
        MissingDependencyError: Parquet needs pyarrow.
    """
    kind = SUFFIXES.get(Path(plain_name(name)).suffix)
    if name == "-":
        yield from _lines_of_standard_input()
    elif not Path(name).is_file():
        raise InvalidInputError("FILE", name, "is not a file; documents with fields need JSON lines or Parquet")
    elif kind == "parquet":
        yield from _rows(name)
    elif kind == "jsonl":
        yield from read_json_lines(Path(name))
    else:
        raise InvalidInputError("FILE", name, "documents with fields need a .jsonl, .ndjson, .json or .parquet file")


def _lines_of_standard_input() -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise InvalidInputError("stdin", f"line {number}", f"not JSON: {error}") from error


def _rows(name: str) -> Iterator[tuple[int, Any]]:
    pyarrow_or_raise()
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(name).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, pa.ArrowException) as error:
        raise InvalidInputError("FILE", name, f"not a Parquet file that can be read: {error}") from error
