"""Fields of a document -> the text that is judged: Cohere's YAML, lines, templates, and values of every type."""

from __future__ import annotations

import string
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ranker_plugins import InvalidInputError
from qwen3_ranker_plugins.documents import LONGEST_TEMPLATE, DocumentFormat

CAT: dict[str, Any] = {
    "id": 7,
    "title": "Cats: a study",
    "body": "They sleep.",
    "tags": ["pets", "sleep"],
    "none": None,
}


@pytest.mark.parametrize(
    ("fields", "template", "expected"),
    [
        # As Cohere documents it: the text alone of one field, YAML of several in the order asked for.
        (["body"], None, "They sleep."),
        (["body", "title"], None, "body: They sleep.\ntitle: 'Cats: a study'\n"),
        (["title", "missing"], None, "title: 'Cats: a study'\n"),
        (["body", "body"], None, "They sleep."),
        (["id"], None, "id: 7\n"),
        (["tags", "none"], None, "tags:\n- pets\n- sleep\n"),
        # Nothing is left out of a whole document, not even its id; and nothing is sorted.
        (None, "yaml", "id: 7\ntitle: 'Cats: a study'\nbody: They sleep.\ntags:\n- pets\n- sleep\n"),
        (["body"], "yaml", "body: They sleep.\n"),
        (None, "lines", "id: 7\ntitle: Cats: a study\nbody: They sleep.\ntags: pets, sleep"),
        (["body", "missing", "none", "id"], "lines", "body: They sleep.\nid: 7"),
        (None, "{title} ({missing}{none}) {tags}", "Cats: a study () pets, sleep"),
        (None, "{{{body}}}", "{They sleep.}"),
    ],
)
def test_fields_become_a_text(fields: list[str] | None, template: str | None, expected: str) -> None:
    assert DocumentFormat(fields, template).text(CAT) == expected


def test_text_is_judged_if_nothing_is_said() -> None:
    assert DocumentFormat().text({"title": "Cats", "text": "They sleep."}) == "They sleep."


@pytest.mark.parametrize(
    ("fields", "template"),
    [(None, None), (["missing"], None), (["none"], "yaml"), (["missing"], "lines"), (None, "{a}")],
)
def test_a_document_without_any_of_the_fields_has_no_text(fields: list[str] | None, template: str | None) -> None:
    assert DocumentFormat(fields, template).text(CAT) is None
    assert DocumentFormat(None, "yaml").text({}) is None


def test_an_empty_text_is_a_text() -> None:
    """It is in the document, so that nothing is missing; the core scores empty documents too."""
    assert DocumentFormat().text({"text": ""}) == ""
    assert DocumentFormat(None, "{title}{text}").text({"title": "", "text": ""}) == ""
    assert DocumentFormat(["title", "text"], "lines").text({"title": "", "text": ""}) == "title: \ntext: "


class _Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (True, "true"), (0, "0"), (-1.5, "-1.5"), ("", ""), ("a\nb", "a\nb"),
        (np.float32(0.5), "0.5"), (np.int64(3), "3"), (np.bool_(False), "false"), (np.array([1, 2]), "1, 2"),
        (Decimal("19.99"), "19.99"), (Decimal(5), "5"), (_Colour.RED, "red"),
        (date(2026, 1, 2), "2026-01-02"), (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02T03:04:00+00:00"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ([], "[]"), (("a", 1, None), "a, 1, null"), ({"b", "a"}, "a, b"), ([["a"]], '[["a"]]'),
        ({"first": {"é": 1}, 2: None}, '{"first": {"é": 1}, "2": null}'),
    ],
)  # fmt: skip
def test_values_that_are_no_texts(value: object, line: str) -> None:
    """Numbers and booleans as in JSON, dates in ISO 8601, simple lists with commas; YAML reads back as the same."""
    assert DocumentFormat(["v"], "lines").text({"v": value}) == f"v: {line}"
    assert DocumentFormat(None, "<{v}>").text({"v": value}) == f"<{line}>"
    whole = DocumentFormat(["v"], "yaml").text({"v": value})
    assert whole is not None
    assert DocumentFormat(["v"], "yaml").text(yaml.safe_load(whole)) == whole


def test_nan_counts_as_missing() -> None:
    """Data frames have it where a column lacks a value."""
    form = DocumentFormat(["title", "price"], "lines")
    assert (
        form.text({"title": "Cats", "price": float("nan")})
        == form.text({"title": "Cats", "price": np.nan})
        == ("title: Cats")
    )


@pytest.mark.parametrize("value", [b"bytes", object(), [object()], {"a": b""}])
def test_what_has_no_form_as_text_is_named(value: object) -> None:
    with pytest.raises(InvalidInputError, match=r"documents\[3\]\.v=.*has no form as text"):
        DocumentFormat(["v"]).text({"v": value}, place="documents[3]")


def test_values_that_hold_themselves_are_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InvalidInputError, match="nested more than 100 levels"):
        DocumentFormat(["v"]).text({"v": endless})


def test_yaml_has_no_anchors() -> None:
    same = ["a"]
    assert DocumentFormat(None, "yaml").text({"x": same, "y": same}) == "x:\n- a\ny:\n- a\n"


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text(), min_size=1, max_size=4))
def test_yaml_reads_back_as_the_document(document: dict[str, str]) -> None:
    """Lines of any length are whole, and no character outside the first plane is written as an escape."""
    text = DocumentFormat(None, "yaml").text(document)
    assert text is not None
    assert "\\U" not in text or any("\\U" in each for each in [*document, *document.values()])
    readable = not any("\ud800" <= each <= "\udfff" or each in "\ufffe\uffff" for each in text)
    if readable and not any(ord(each) in (0, 0x7F) for each in text):
        assert yaml.safe_load(text) == document


def test_emoji_are_not_escaped() -> None:
    text = "\U0001f600 'one' \ue000 # \U00020000"
    assert (
        DocumentFormat(["a", "b"]).text({"a": text, "b": "x"}) == f"a: '{text.replace(chr(39), chr(39) * 2)}'\nb: x\n"
    )


@pytest.mark.parametrize(
    "template", ["{a.__class__}", "{a[0]}", "{a.__class__.__mro__[1].__subclasses__}", "{__class__}", "{self}"]
)
def test_a_template_reaches_keys_and_nothing_else(template: str) -> None:
    """`str.format` would read attributes of the values, and a request can bring a template."""
    assert DocumentFormat(template=template).text({"a": "x"}) is None
    name = template[1:-1]
    assert DocumentFormat(template=template).text({name: "a key like any other"}) == "a key like any other"


def test_braces_in_values_are_text() -> None:
    assert DocumentFormat(template="{a} {b}").text({"a": "{b} {{", "b": "{a.__class__}"}) == "{b} {{ {a.__class__}"


@pytest.mark.parametrize(
    ("template", "remedy"),
    [
        ("", "not empty"), ("yml", "use yaml, lines, or a text"), ("no names", "in braces"), ("{a!r}", "no format"),
        ("{a:>9999999999}", "no format"), ("{a:{b}}", "no format"), ("{}", "name of a field"),
        ("{ a }", "without blanks"), ("{a}{a}", "once"), ("{a", "literal brace"), ("a}", "literal brace"),
        ("{a}" + "x" * LONGEST_TEMPLATE, "shorten"),
        ("values", "use yaml, lines, or a text"),
    ],
)  # fmt: skip
def test_unusable_templates(template: str, remedy: str) -> None:
    with pytest.raises(InvalidInputError, match=f"document_template=.*{remedy}"):
        DocumentFormat(template=template)


@pytest.mark.parametrize(
    ("fields", "template", "remedy"),
    [
        ("title", None, "rank_fields='title': use a list"), ([""], None, r"rank_fields\[0\]"), ([1], None, "string"),
        ([], None, "at least one"), (["a"], "{a}", "give one of them"),
        ([str(number) for number in range(101)], None, "at most 100 names"),
    ],
)  # fmt: skip
def test_unusable_fields(fields: Any, template: str | None, remedy: str) -> None:
    with pytest.raises(InvalidInputError, match=remedy):
        DocumentFormat(fields, template)


def test_names_that_no_document_has() -> None:
    documents = [{"title": "a"}, {"body": "b", "other": None}]
    assert DocumentFormat(["headline", "title", "body", "other"]).unseen(documents) == ["headline"]
    assert DocumentFormat(template="{title} {b}").unseen(documents) == ["b"]
    assert DocumentFormat(None, "yaml").unseen(documents) == []


@pytest.mark.parametrize(
    ("fields", "template", "expected"),
    [
        (["title", "year"], "values", "Cats | 5 | They sleep."),
        ([], "values", "They sleep."),
        (["title"], "lines", "title: Cats\ncontent: They sleep."),
        (["title"], "yaml", "title: Cats\ncontent: They sleep.\n"),
        ([], "lines", "content: They sleep."),
        ([], "{content} ({title})", "They sleep. (Cats)"),
        ([], "{title}", "Cats"),
    ],
)
def test_metadata_with_a_text_of_its_own(fields: list[str], template: str, expected: str) -> None:
    form = DocumentFormat(fields, template, own="content", separator=" | ")
    assert form.text({"title": "Cats", "year": 5, "content": "of the metadata"}, "They sleep.") == expected


def test_a_field_named_like_the_own_text_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="leave out 'content'"):
        DocumentFormat(["content"], "lines", own="content")
    form = DocumentFormat(["content"], "values", own="content")  # as rankers of Haystack always did
    assert form.text({"content": "of the metadata"}, "own") == "of the metadata\nown"


@settings(max_examples=50, deadline=None)
@given(st.text(string.ascii_letters + "{}!:[].", max_size=30))
def test_no_template_fails_when_it_is_used(template: str) -> None:
    try:
        form = DocumentFormat(template=template)
    except InvalidInputError:
        return
    form.text(dict.fromkeys(form.fields or (), "value"))
