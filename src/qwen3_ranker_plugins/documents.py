"""Structured documents: which fields are judged, and how they are joined into the text that the model reads.

The server, the adapters, offline jobs and the command line all use `DocumentFormat`; no other code joins fields.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any
from uuid import UUID

from .checks import check_text, plain
from .errors import InvalidInputError

#: The field that is judged by default.
TEXT = "text"
#: Limits: a request can bring a template, which is applied to each of its documents.
LONGEST_TEMPLATE = 4_000
MOST_FIELDS = 100
DEEPEST_VALUE = 100

#: Characters that libyaml writes as escapes: a model reads "\U0001F600" worse than an emoji.
_ESCAPED = re.compile("[\ud800-\udfff\U00010000-\U0010ffff]")
_STAND_INS = range(0xE000, 0xF900)


@dataclass(frozen=True)
class DocumentFormat:
    r"""Which fields of a document are judged, in which order, and how they are joined.

    >>> DocumentFormat(["title", "price"], "lines").text({"title": "Cats", "price": 5, "id": 17})
    'title: Cats\nprice: 5'
    >>> DocumentFormat(template="{title} ({year}): {text}").text({"title": "Cats", "text": "They sleep."})
    'Cats (): They sleep.'

    A field that a document lacks is left out; in a custom template it is empty. A value of None counts as lacking, and
    so does NaN, which marks a missing value in data frames. Numbers and booleans are written as in JSON, dates and
    times as in ISO 8601. Lists and objects are nested in YAML; elsewhere a list of simple values is joined with commas,
    and everything else is JSON. Only "values" writes Python's `str(value)`, as other rankers of Haystack and LangChain
    do.

    Attributes:
        fields: names of the judged fields, in this order. None means the fields that the template names, all fields of
            each document with "yaml", "lines" and "values", and `text` without a template.
        template: "yaml", as Cohere documents it: `name: value`, in the order of `fields`. "lines": a line `name: value`
            for each field. "values": the values without their names (only with `own`). Or a text with each field in
            braces, such as "{title}\n{text}", where {{ and }} are literal braces. The braces hold the name of a field
            and nothing else, so that a template cannot reach attributes or items of a value. None means YAML, but if
            one field is named and its value is a text, that text alone is judged.
        own: name in templates of the text that a framework's document has besides its metadata. The text comes last, or
            where the template names it. None: documents have no such text.
        separator: text between "values".
        argument: the caller's name of `fields`, for error messages.

    Raises:
        InvalidInputError: names the argument, its value and the remedy.
    """

    fields: Sequence[str] | None = None
    template: str | None = None
    own: str | None = None
    separator: str = "\n"
    argument: str = "rank_fields"

    def __post_init__(self) -> None:
        check_text("separator", self.separator, may_be_empty=True)
        if self.fields is not None:
            object.__setattr__(self, "fields", _checked_names(self.argument, self.fields))
        if self.template is not None and self.template not in self._formats:
            named = tuple(name for _, name in self._parts if name is not None)
            if self.fields:
                remedy = "has no effect if document_template names the fields: give one of them"
                raise InvalidInputError(self.argument, list(self.fields), remedy)
            object.__setattr__(self, "fields", named)
        elif self.own is None and not self.fields:
            if self.fields is not None:
                raise InvalidInputError(self.argument, [], "name at least one field")
            if self.template is None:
                object.__setattr__(self, "fields", (TEXT,))
        elif self.own in (self.fields or ()) and self.template != "values":
            remedy = f"leave out {self.own!r}: the document's own text has that name, and is judged in any case"
            raise InvalidInputError(self.argument, list(self.fields or ()), remedy)

    def text(self, document: Mapping[str, Any], own: str | None = None, *, place: str = "document") -> str | None:
        """The text that the model reads; None if the document has none of the fields.

        Args:
            document: the fields of the document.
            own: the text that it has besides its fields, if any.
            place: the caller's name of the document, for error messages.

        Raises:
            InvalidInputError: the value of a field has no form as text; names the field.
        """
        names = document.keys() if self.fields is None else self.fields
        if self.template == "values":
            values = [document.get(name) for name in names]
            texts = [str(value) for value in values if value is not None]
            texts += [] if own is None else [own]
            return self.separator.join(texts) if texts else None
        found = {name: builtin(document[name], f"{place}.{name}") for name in names if name in document}
        found = {name: value for name, value in found.items() if not _is_missing(value)}
        is_own_template = self.template is not None and self.template not in self._formats
        if self.own is not None and own is not None and (not is_own_template or self.own in names):
            found[self.own] = own
        if not found:
            return None
        if is_own_template:
            return "".join(text + as_text(found.get(name or "", "")) for text, name in self._parts)
        if self.template == "lines":
            return "\n".join(f"{name}: {as_text(value)}" for name, value in found.items())
        first = next(iter(found.values()))
        if self.template is None and len(names) == 1 and isinstance(first, str):
            return first
        return as_yaml(found)

    def unseen(self, documents: Iterable[Mapping[str, Any]]) -> list[str]:
        """The named fields that no document has: their names may be misspelled."""
        unseen = dict.fromkeys(self.fields or ())
        for document in documents:
            for name in [name for name in unseen if name in document]:
                del unseen[name]
            if not unseen:
                break
        return list(unseen)

    @property
    def _formats(self) -> Collection[str]:
        return ("yaml", "lines") if self.own is None else ("yaml", "lines", "values")

    @cached_property
    def _parts(self) -> list[tuple[str, str | None]]:
        """(literal text, name of the field after it or None) of a custom template, which never goes to `str.format`.

        Raises:
            InvalidInputError: it is neither the name of a format nor a template.
        """
        template = self.template
        check_text("document_template", template)
        assert template is not None  # noqa: S101 - for mypy
        if len(template) > LONGEST_TEMPLATE:
            raise InvalidInputError(
                "document_template", template, f"shorten it to at most {LONGEST_TEMPLATE} characters"
            )
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            remedy = f"{error}; write a literal brace as {{{{ or }}}}"
            raise InvalidInputError("document_template", template, remedy) from error
        names = [name for _, name, _, _ in parsed if name is not None]
        if not names:
            remedy = f"use {', '.join(self._formats)}, or a text with names of fields in braces, such as {{title}}"
        elif any(spec or conversion for _, _, spec, conversion in parsed):
            remedy = "fields take no format or conversion: write {name}"
        elif any(not name.strip() or name != name.strip() for name in names):
            remedy = "braces need the name of a field, without blanks around it"
        elif len(set(names)) < len(names):  # the text would grow with each repetition
            remedy = "name each field once"
        else:
            return [(text, name) for text, name, _, _ in parsed]
        raise InvalidInputError("document_template", template, remedy)


def as_text(value: Any) -> str:
    """A value of `builtin` as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and not any(isinstance(each, (list, dict)) for each in value):
        return ", ".join(as_text(each) for each in value)
    return json.dumps(value, ensure_ascii=False)


def as_yaml(fields: Mapping[str, Any]) -> str:
    """Values of `builtin` as YAML, in their order, without line wrapping."""
    import yaml

    text = json.dumps(fields, ensure_ascii=False)
    escaped = set(_ESCAPED.findall(text))
    values, originals = fields, {}
    if escaped:  # private characters replace them while libyaml writes
        free = (code for code in _STAND_INS if chr(code) not in text)
        originals = dict(zip(free, sorted(escaped), strict=False))
        values = json.loads(text.translate({ord(original): code for code, original in originals.items()}))
    dumped: str = yaml.dump(dict(values), Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=2**31 - 1)
    return dumped.translate(originals)


@lru_cache(maxsize=1)
def _dumper() -> Any:
    """The writer of libyaml, a hundred times as fast as PyYAML's own. It writes no anchors for repeated values."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's interface
            return True

    return Dumper


def builtin(value: Any, place: str, levels: int = DEEPEST_VALUE) -> Any:
    """A value in JSON's types: None, a boolean, a number, a text, a list, or a dictionary with texts as keys.

    Args:
        value: a value of any type that frameworks and data frames put into metadata.
        place: the caller's name of the value, for error messages.
        levels: how many more lists and objects may be nested in it.

    Raises:
        InvalidInputError: JSON has no type for it, or it is nested too deeply.
    """
    if value is None or type(value) in _BUILTIN:
        return value
    if levels < 0:
        raise InvalidInputError(place, "(nested)", f"is nested more than {DEEPEST_VALUE} levels deep: flatten it")
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # arrays and scalars of numpy, and types that imitate them
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(plain(key)): builtin(each, place, levels - 1) for key, each in value.items()}
    if isinstance(value, (list, tuple, AbstractSet)):
        values = [builtin(each, place, levels - 1) for each in value]
        return sorted(values, key=repr) if isinstance(value, AbstractSet) else values  # the same order in every process
    value = _simple(value)
    if type(value) not in _BUILTIN:
        remedy = "has no form as text: give texts, numbers, booleans, dates, or lists and objects of them"
        raise InvalidInputError(place, f"({type(value).__name__})", remedy)
    return value


_BUILTIN = (str, bool, int, float)


def _simple(value: Any) -> Any:
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    return plain(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _checked_names(argument: str, names: object) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise InvalidInputError(argument, names, "use a list of names")
    for index, name in enumerate(names):
        check_text(f"{argument}[{index}]", plain(name))
    if len(names) > MOST_FIELDS:
        raise InvalidInputError(argument, f"{len(names)} names", f"give at most {MOST_FIELDS} names")
    return tuple(dict.fromkeys(plain(name) for name in names))
