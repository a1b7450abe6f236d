"""Writes the committed rows to the output: queries in the order of the input, documents in that of `ranking.rank_key`.

If the pairs of each query are consecutive in the input, as they usually are, the windows are read once, and only one
query is in memory at a time. Otherwise the rows are sorted on disk twice: by query, to find each query's first
position, and then by that position. In that case only the set of a query's document ids is in memory.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import IO, Any

from ..ranking import rank_key
from .rows import FailedRow, Row, ScoredRow
from .writers import Writer

_first, _query_id = itemgetter(0), attrgetter("query_id")

#: The values by which a row is sorted, then the row itself.
SortKey = tuple[Any, ...]

#: Maximum number of rows, and of characters of their texts, that are sorted in memory at a time.
RUN_ROWS = 50_000
RUN_CHARACTERS = 32 * 2**20
_CHUNK = 512
_SLICE = 10_000


@dataclass
class Counts:
    """Numbers of pairs that were and were not written to the output."""

    pairs: int = 0
    scored: int = 0
    errors: int = 0
    truncated: int = 0
    queries: int = 0


def merge(windows: Iterable[list[Row]], writer: Writer, errors: IO[str], folder: Path, *, grouped: bool) -> Counts:
    """Write all rows; those without a score go to `errors`.

    If several rows have the same query id and document id, the first is kept and the others are errors.

    Args:
        windows: rows in input order.
        writer: writes the rows with a score.
        errors: gets a line of JSON for each other row.
        folder: holds the sorted runs while rows are sorted on disk.
        grouped: the pairs of each query are consecutive, and few enough to be in memory.
    """
    counts = Counts()
    accepted = _accepted(windows, writer, errors, counts)
    if grouped:
        for query_id, group in groupby(accepted, key=_query_id):
            rows = list(group)
            if len({row.doc_id for row in rows}) < len(rows):
                rows = list(_distinct(rows, errors, counts))
            rows.sort(key=lambda row: rank_key(row.margin, row.position))
            _count(rows, counts)
            counts.queries += 1
            writer.write(query_id, rows, 1)
        return counts
    by_query = external_sort(((row.query_id, row.position, row) for row in accepted), folder, "query")
    keyed = _with_first_position(by_query, errors, counts)
    ordered = external_sort(keyed, folder, "rank")
    for _, group_of_keys in groupby(ordered, key=_first):
        counts.queries += 1
        rank = 1
        for rows in _slices(ScoredRow._make(key[-1]) for key in group_of_keys):
            _count(rows, counts)
            writer.write(rows[0].query_id, rows, rank)
            rank += len(rows)
    return counts


def _accepted(windows: Iterable[list[Row]], writer: Writer, errors: IO[str], counts: Counts) -> Iterator[ScoredRow]:
    """Yield rows that have a score and can be written in this format; report the others."""
    takes_all = type(writer).fault is Writer.fault
    for rows in windows:
        counts.pairs += len(rows)
        for row in rows:
            if isinstance(row, FailedRow):
                _report(row, row.reason, errors, counts)
            elif takes_all or (reason := writer.fault(row)) is None:
                yield row
            else:
                _report(row, reason, errors, counts)


def _distinct(rows: Iterable[ScoredRow], errors: IO[str], counts: Counts) -> Iterator[ScoredRow]:
    """Yield the first row of each document, from rows of one query in input order; report the others."""
    lines: dict[str, int | str] = {}
    for row in rows:
        if row.doc_id in lines:
            kept = lines[row.doc_id]
            _report(row, f"line {kept} has the same query_id and doc_id and was kept", errors, counts)
        else:
            lines[row.doc_id] = row.line
            yield row


def _report(row: Row, reason: str, errors: IO[str], counts: Counts) -> None:
    counts.errors += 1
    file, _, line = row.line.rpartition(":") if isinstance(row.line, str) else ("", "", row.line)
    record = {"query_id": row.query_id, "doc_id": row.doc_id, "line": int(line), "reason": reason}
    errors.write(json.dumps({"file": file, **record} if file else record) + "\n")


def report_errors(rows: Iterable[Row], errors: IO[str]) -> None:
    """Write the rows that have no score."""
    for row in rows:
        if isinstance(row, FailedRow):
            _report(row, row.reason, errors, Counts())


def _count(rows: list[ScoredRow], counts: Counts) -> None:
    counts.scored += len(rows)
    counts.truncated += sum(1 for row in rows if row.truncated)


def _with_first_position(by_query: Iterator[SortKey], errors: IO[str], counts: Counts) -> Iterator[SortKey]:
    for _, group in groupby(by_query, key=_first):
        first = None
        for row in _distinct((ScoredRow._make(key[-1]) for key in group), errors, counts):
            first = row.position if first is None else first
            yield (first, *rank_key(row.margin, row.position), row)


def _slices(rows: Iterable[ScoredRow]) -> Iterator[list[ScoredRow]]:
    batch: list[ScoredRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _SLICE:
            yield batch
            batch = []
    if batch:
        yield batch


def external_sort(rows: Iterable[SortKey], folder: Path, name: str) -> Iterator[SortKey]:
    """Yield rows in the order of their keys, with only a part of them in memory.

    Args:
        rows: JSON values: the sort values first, the `ScoredRow` last. Rows from disk have a list in its place.
        folder: holds the sorted runs, `sort-NAME-*`, until all rows are yielded.
        name: distinguishes the runs of one sort from those of another.
    """
    runs: list[Path] = []
    run: list[SortKey] = []
    characters = 0
    for row in rows:
        run.append(row)
        characters += len(row[-1].query) + len(row[-1].document)
        if len(run) == RUN_ROWS or characters >= RUN_CHARACTERS:
            runs.append(_write_run(run, folder / f"sort-{name}-{len(runs)}"))
            run, characters = [], 0
    run.sort()
    with ExitStack() as stack:
        stored = [_read_run(stack.enter_context(path.open("rb"))) for path in runs]
        yield from heapq.merge(*stored, run)
    for path in runs:
        path.unlink()


def _write_run(run: list[SortKey], folder: Path) -> Path:
    run.sort()
    with folder.open("wb") as file:
        for start in range(0, len(run), _CHUNK):
            file.write(json.dumps(run[start : start + _CHUNK], separators=(",", ":")).encode() + b"\n")
    return folder


def _read_run(file: IO[bytes]) -> Iterator[SortKey]:
    for line in file:
        yield from map(tuple, json.loads(line))


def sync(file: IO[Any]) -> None:
    """Wait until everything that was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())
