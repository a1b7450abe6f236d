"""A record of the input -> pairs. A faulty record becomes a pair with a `fault`, never an exception."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Integral
from typing import NamedTuple
from uuid import UUID

from ..documents import TEXT, DocumentFormat
from ..errors import InvalidInputError

#: The fields of a pair, in this order.
FLAT = ("query_id", "doc_id", "query", "document")
#: All fields that are read, including those of a record with several documents, and of these documents.
FIELDS = (*FLAT, "documents", "id", "title", "text")

#: Above this, floats no longer hold every integer, so that two ids may have become one.
_EXACT = 2**53


class Pair(NamedTuple):
    """A query and a document to be judged together, or an unusable record.

    Attributes:
        line: its position in the input, counted from 1: line, or row of a Parquet file; "FILE:LINE" with several files.
        query_id, doc_id: "" if the input has no readable one.
        query, document: the texts.
        fault: why there is nothing to score; None for a usable pair.
    """

    line: int | str
    query_id: str
    doc_id: str
    query: str
    document: str
    fault: str | None = None


@dataclass(frozen=True)
class Fields:
    """The names of the fields of a pair in the input.

    Attributes:
        columns: name in the input -> name in FIELDS, for those that differ.
        embeds_titles: whether `title` is put in front of `text` in documents of nested records, and `id` replaces a
            missing `doc_id`. False for jobs that began with a version that read neither.
        form: which fields make up the judged text of a document; None if documents are single texts.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    embeds_titles: bool = True
    form: DocumentFormat | None = None

    def __post_init__(self) -> None:
        for theirs, ours in self.columns.items():
            if ours not in FIELDS:
                raise InvalidInputError("columns", f"{theirs}={ours}", f"use one of {', '.join(FIELDS)} after =")
        if len(set(self.columns.values())) < len(self.columns):
            raise InvalidInputError("columns", self.text, "names one field twice")

    @property
    def text(self) -> str:
        """In the format of `--columns`."""
        return ",".join(f"{theirs}={ours}" for theirs, ours in sorted(self.columns.items()))

    def names(self, *ours: str) -> list[str]:
        """The names of these fields in the input."""
        theirs = {name: column for column, name in self.columns.items()}
        return [theirs.get(name, name) for name in ours]

    @property
    def form_text(self) -> str:
        """`form` in one line; "" for none."""
        return "" if self.form is None else json.dumps([self.form.fields, self.form.template], ensure_ascii=False)


def parse_columns(text: str | None) -> dict[str, str]:
    """`--columns qid=query_id,passage=document` -> name in the input -> our name.

    Raises:
        InvalidInputError: a part is not NAME=FIELD.
    """
    columns: dict[str, str] = {}
    for part in (text or "").split(",") if text else []:
        theirs, equals, ours = part.strip().partition("=")
        if not (theirs and equals and ours) or theirs in columns:
            raise InvalidInputError("columns", text, "use NAME=FIELD,NAME=FIELD, such as qid=query_id,passage=document")
        columns[theirs] = ours
    return columns


def unusable(line: int | str, fault: str, query_id: str = "", doc_id: str = "") -> Pair:
    """A pair for a place in the input where nothing can be scored."""
    return Pair(line, query_id, doc_id, "", "", fault)


class RecordReader:
    """Records -> pairs.

    A flat record holds `query_id`, `doc_id`, `query` and `document`. A nested one holds `query`, `documents` (texts, or
    objects with `doc_id` or `id`, `text` and perhaps `title`) and `query_id`, which defaults to the line number; a
    document's id defaults to its place, from 0. Ids that are whole numbers become their decimal form.

    With `Fields.form`, the text of a document is made from several fields: those of each object in `documents`, those
    of the object in `document`, or otherwise those of the flat record itself. Texts in `documents` are judged as they
    are.
    """

    def __init__(self, fields: Fields) -> None:
        self.flat = fields.names(*FLAT)
        self.query_id, self.doc_id, self.query, self.document, self.documents, self.id, self.title, self.text = (
            fields.names(*FIELDS)
        )
        self._embeds_titles = fields.embeds_titles
        self.form = fields.form

    def pairs(self, record: object, line: int) -> Iterator[Pair]:
        """The pairs of one record, at least one."""
        if not isinstance(record, dict):
            yield unusable(line, f"needs a JSON object, not {type(record).__name__}")
        elif self.documents in record:
            yield from self._nested(record, line)
        elif self.form is None:
            yield checked(line, *(record.get(name) for name in self.flat))
        else:
            document = record.get(self.document)
            if not isinstance(document, dict) and self.form.fields is not None:
                document = record
            query_id, doc_id, query = (record.get(name) for name in self.flat[:3])
            yield self.formed(line, query_id, doc_id, query, document)

    def formed(self, line: int, query_id: object, doc_id: object, query: object, document: object) -> Pair:
        """A pair whose text is made by `form`. `document` is an object or a string."""
        form = self.form
        assert form is not None  # noqa: S101 - for mypy
        known = (each if isinstance(each, str) else "" for each in map(as_id, (query_id, doc_id)))
        if isinstance(document, str) and (form.fields is None or TEXT in form.fields):
            return checked(line, query_id, doc_id, query, document)
        if not isinstance(document, dict):
            what = "is missing" if document is None else f"needs an object, not {type(document).__name__}"
            return unusable(line, f"{self.document} {what}", *known)
        try:
            text = form.text(document, place=self.document)
        except InvalidInputError as error:
            return unusable(line, f"{error.argument} {error.remedy}", *known)
        if text is None:
            names = "no field with a value" if form.fields is None else f"none of the fields {', '.join(form.fields)}"
            return unusable(line, f"{self.document} has {names}", *known)
        return checked(line, query_id, doc_id, query, text)

    def _nested(self, record: dict[str, object], line: int) -> Iterator[Pair]:
        documents = record[self.documents]
        query_id = record.get(self.query_id)
        query_id = str(line) if query_id is None else query_id
        query = record.get(self.query)
        if not isinstance(documents, list):
            known = as_id(query_id)
            fault = f"{self.documents} needs a list, not {type(documents).__name__}"
            yield unusable(line, fault, known if isinstance(known, str) else "")
            return
        for place, document in enumerate(documents):
            if not isinstance(document, dict):
                judge = checked if self.form is None else self.formed
                yield judge(line, query_id, str(place), query, document)
                continue
            if self.form is not None:
                own = [document[name] for name in (self.doc_id, self.id) if document.get(name) is not None]
                yield self.formed(line, query_id, own[0] if own else str(place), query, document)
                continue
            text = document.get(self.text, document.get(self.document))
            doc_id = document.get(self.doc_id)
            if self._embeds_titles:
                doc_id = document.get(self.id) if doc_id is None else doc_id
                title = document.get(self.title)
                if not isinstance(title, (str, type(None))):
                    known_ids = (each if isinstance(each, str) else "" for each in map(as_id, (query_id, doc_id)))
                    yield unusable(line, f"{self.title} needs a string, not {type(title).__name__}", *known_ids)
                    continue
                text = with_title(title, text) if title and isinstance(text, str) else text
            if doc_id is None and self.doc_id not in document:
                doc_id = str(place)
            yield checked(line, query_id, doc_id, query, text)


def checked(line: int, query_id: object, doc_id: object, query: object, document: object) -> Pair:
    """A pair made from values of any type; None means that the field is missing."""
    if not (type(query_id) is type(doc_id) is type(query) is type(document) is str):  # all strings: the usual case
        query_id, doc_id = as_id(query_id), as_id(doc_id)
        for name, value in (("query_id", query_id), ("doc_id", doc_id), ("query", query), ("document", document)):
            if not isinstance(value, str):
                known = (each if isinstance(each, str) else "" for each in (query_id, doc_id))
                return unusable(line, f"{name} {_lack(value)}", *known)
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


def with_title(title: str | None, text: str, separator: str = " ") -> str:
    """Title and text of a BEIR document as one text."""
    return f"{title or ''}{separator}{text}".strip()


def as_id(value: object) -> object:
    """An id as a string if it has a clear text form; any other value unchanged.

    Whole numbers become their decimal form, even if they are floats or decimals: pandas turns a column of integers into
    floats if a value is missing. Bytes are UTF-8.
    """
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == (whole := int(value)):
        return str(whole) if abs(whole) < _EXACT else value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return str(value) if isinstance(value, UUID) else value


def _lack(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "is missing"
    return f"needs a string, not {type(value).__name__}"


def _surrogate(value: str) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"holds a lone surrogate at character {error.start}, which UTF-8 cannot represent"
    return None


def _printable(value: str) -> str:
    return value.encode("utf-8", "replace").decode()
