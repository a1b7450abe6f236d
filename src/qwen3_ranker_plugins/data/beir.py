"""BEIR's layout: a folder with corpus.jsonl, queries.jsonl and qrels/*.tsv."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InvalidInputError
from .jsonl import read_json_lines


class BeirText(NamedTuple):
    """A document or a query.

    Attributes:
        title: "" if there is none.
    """

    id: str
    title: str
    text: str


def beir_file(folder: Path, name: str, argument: str) -> Path:
    """The file of that name, compressed or not.

    Raises:
        InvalidInputError: there is none; the message names `argument`.
    """
    for path in (folder / f"{name}.jsonl{packing}" for packing in ("", ".gz", ".zst")):
        if path.is_file():
            return path
    raise InvalidInputError(argument, str(folder), f"has no {name}.jsonl or {name}.jsonl.gz")


def read_beir(path: Path) -> Iterator[BeirText]:
    """The documents of a corpus, or the queries.

    Raises:
        InvalidInputError: names the line.
    """
    for number, record in read_json_lines(path):
        try:
            found = BeirText(str(record["_id"]), record.get("title") or "", record["text"])
        except (KeyError, TypeError, AttributeError) as error:
            remedy = 'each line needs {"_id": ..., "text": ...}'
            raise InvalidInputError(path.name, f"line {number}", f"{error!r}; {remedy}") from error
        for name, value in (("text", found.text), ("title", found.title)):
            if not isinstance(value, str):
                raise InvalidInputError(path.name, f"line {number}", f"{name} is {value}: needs a string")
        yield found
