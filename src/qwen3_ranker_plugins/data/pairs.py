"""A record of the input -> pairs. What is wrong with a record becomes a pair's `fault`, never an exception."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Pair(NamedTuple):
    """A query and a document to be judged together, or what stood in their place.

    Attributes:
        line: where it stands in the input, from 1: a line, or a row of a Parquet file.
        query_id, doc_id: "" where the input has none that can be read.
        query, document: the texts.
        fault: why there is nothing to score; None for a usable pair.
    """

    line: int
    query_id: str
    doc_id: str
    query: str
    document: str
    fault: str | None = None


def unusable(line: int, fault: str, query_id: str = "", doc_id: str = "") -> Pair:
    """A place in the input that holds nothing to score."""
    return Pair(line, query_id, doc_id, "", "", fault)


def pairs_of(record: object, line: int) -> Iterator[Pair]:
    """The pairs of one JSON object: flat, or one query with a list of documents.

    Flat: `query_id`, `doc_id`, `query`, `document`. Nested: `query`, `documents` (texts, or objects with `doc_id`
    and `text`) and `query_id`, which defaults to the line number; a document's id defaults to its place, from 0.
    Ids may be integers; they become their decimal form.
    """
    if not isinstance(record, dict):
        yield unusable(line, f"needs a JSON object, not {type(record).__name__}")
    elif "documents" in record:
        yield from _nested(record, line)
    else:
        yield checked(line, *(record.get(name) for name in ("query_id", "doc_id", "query", "document")))


def checked(line: int, query_id: object, doc_id: object, query: object, document: object) -> Pair:
    """A pair whose fields may be anything; None stands for a field that is not there."""
    if not (type(query_id) is type(doc_id) is type(query) is type(document) is str):  # all strings: the usual case
        query_id, doc_id = _as_id(query_id), _as_id(doc_id)
        for name, value in (("query_id", query_id), ("doc_id", doc_id), ("query", query), ("document", document)):
            if not isinstance(value, str):
                reason = "is missing" if value is None else f"needs a string, not {type(value).__name__}"
                known = (each if isinstance(each, str) else "" for each in (query_id, doc_id))
                return unusable(line, f"{name} {reason}", *known)
    assert isinstance(query_id, str) and isinstance(doc_id, str) and isinstance(query, str)  # noqa: S101, PT018 - for mypy
    assert isinstance(document, str)  # noqa: S101
    if not (query_id and doc_id and query_id.isascii() and doc_id.isascii()):
        for name, value in (("query_id", query_id), ("doc_id", doc_id)):
            if not value:
                return unusable(line, f"{name} is empty", query_id, doc_id)
            if fault := _surrogate(value):
                return unusable(line, f"{name} {fault}", _printable(query_id), _printable(doc_id))
    if not query or query.isspace():
        return unusable(line, "query is empty", query_id, doc_id)
    return Pair(line, query_id, doc_id, query, document)


def _nested(record: dict[str, object], line: int) -> Iterator[Pair]:
    documents = record["documents"]
    query_id = record.get("query_id")
    query_id = str(line) if query_id is None else query_id
    query = record.get("query")
    if not isinstance(documents, list):
        known = _as_id(query_id)
        yield unusable(
            line,
            f"documents needs a list, not {type(documents).__name__}",
            known if isinstance(known, str) else "",
        )
        return
    for place, document in enumerate(documents):
        if isinstance(document, dict):
            text = document.get("text", document.get("document"))
            yield checked(line, query_id, document.get("doc_id", str(place)), query, text)
        else:
            yield checked(line, query_id, str(place), query, document)


def _as_id(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _surrogate(value: str) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair at character {error.start}, which no file can hold"
    return None


def _printable(value: str) -> str:
    return value.encode("utf-8", "replace").decode()
