"""Runs and judgements in the formats of TREC and BEIR."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ..errors import InvalidInputError
from .files import Lines
from .pairs import Pair


def read_run(path: Path) -> dict[str, list[str]]:
    """A TREC run: query id -> document ids by descending score, equal scores by rank.

    Raises:
        InvalidInputError: names the line.
    """
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for number, fields in _fields(path, "run", 6):
        query_id, _, doc_id, rank, score, _ = fields
        try:
            place = (-float(score), int(rank))
        except ValueError as error:
            raise InvalidInputError("run", f"{path.name}, line {number}", f"{error}; needs rank and score") from error
        if found.setdefault(query_id, {}).setdefault(doc_id, place) is not place:
            raise InvalidInputError("run", f"{path.name}, line {number}", f"{doc_id!r} appears twice for {query_id!r}")
    return {query_id: sorted(places, key=places.__getitem__) for query_id, places in found.items()}


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Judgements: BEIR's three columns with a heading, or TREC's four without.

    Raises:
        InvalidInputError: names the line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, fields in _fields(path, "qrels", 3, 4):
        if number == 1 and fields[-1] == "score":
            continue
        query_id, doc_id, grade = fields[0], fields[-2], fields[-1]
        try:
            qrels.setdefault(query_id, {})[doc_id] = int(grade)
        except ValueError as error:
            raise InvalidInputError(
                "qrels", f"{path.name}, line {number}", f"{error}; the grade must be a whole number"
            ) from error
    return qrels


def split_fields(line: str) -> list[str]:
    """The fields of a line: BEIR separates them by tabs, and its ids may hold blanks; TREC by any white space."""
    return next(csv.reader([line.strip("\r\n")], delimiter="\t")) if "\t" in line else line.split()


def _fields(path: Path, argument: str, *widths: int) -> Iterator[tuple[int, list[str]]]:
    if not path.is_file():
        raise InvalidInputError(argument, str(path), "there is no such file")
    for number, line in Lines(path):
        if isinstance(line, Pair):
            raise InvalidInputError(argument, f"{path.name}, line {number}", str(line.fault))
        fields = split_fields(line)
        if len(fields) not in widths:
            needed = " or ".join(map(str, widths))
            raise InvalidInputError(
                argument, f"{path.name}, line {number}", f"needs {needed} fields, and has {len(fields)}"
            )
        yield number, fields
