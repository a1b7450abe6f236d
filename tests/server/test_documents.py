"""Documents as objects over real sockets: which fields are judged, how they are joined, and how that can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.documents import DocumentFormat
from qwen3_ranker_plugins.server.settings import load_settings

from .conftest import QUERY, Running, serving

#: The SDK's clients close their sockets when they are collected.
of_the_sdk = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

FILES = {"title": "Files in Python", "body": "Use the with statement.", "id": 7, "tags": ["io", "files"]}
TIGERS = {"id": 8, "body": "They live in Asia.", "title": "Tigers"}


@pytest.fixture(scope="module")
def configured(reranker: Reranker) -> Iterator[Running]:
    """A server whose operator has chosen what is judged."""
    with serving(rank_fields=("title", "body"), document_template="lines", return_judged_text=True) as running:
        yield running


def _judged(answer: httpx.Response) -> list[str]:
    """What was judged of each document, in the order of the request."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    results = body["results"] if "results" in body else body["ranked_documents"]
    return [each["judged_text"] for each in sorted(results, key=lambda each: each["index"])]


def _ask(client: httpx.Client, path: str = "/v1/rerank", **fields: Any) -> httpx.Response:
    return client.post(path, json={"query": QUERY, "documents": [FILES, TIGERS], "return_judged_text": True} | fields)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/infinity/rerank"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rank_fields": ["title"]}, ["Files in Python", "Tigers"]),
        ({"rank_fields": ["body", "title"]},
         ["body: Use the with statement.\ntitle: Files in Python\n", "body: They live in Asia.\ntitle: Tigers\n"]),
        ({"rank_fields": ["title", "tags"], "document_template": "lines"},
         ["title: Files in Python\ntags: io, files", "title: Tigers"]),
        # All fields, in the order in which they were sent.
        ({"document_template": "yaml"},
         ["title: Files in Python\nbody: Use the with statement.\nid: 7\ntags:\n- io\n- files\n",
          "id: 8\nbody: They live in Asia.\ntitle: Tigers\n"]),
        ({"document_template": "{title} ({tags}): {body}"},
         ["Files in Python (io, files): Use the with statement.", "Tigers (): They live in Asia."]),
    ],
)  # fmt: skip
def test_what_is_judged_can_be_seen(
    path: str, fields: dict[str, Any], expected: list[str], client: httpx.Client, reranker: Reranker
) -> None:
    answer = _ask(client, path, **fields)
    assert _judged(answer) == expected
    key = "results" if "results" in answer.json() else "ranked_documents"
    assert [(each["index"], each["relevance_score"]) for each in answer.json()[key]] == [
        (hit.index, pytest.approx(hit.score, abs=1e-5)) for hit in reranker.rerank(QUERY, expected)
    ]


def test_it_is_only_told_if_asked(client: httpx.Client) -> None:
    answer = _ask(client, rank_fields=["title"], return_judged_text=None)
    assert not any("judged_text" in each for each in answer.json()["results"])


def test_the_plain_shape_takes_objects(client: httpx.Client) -> None:
    """A body that only our own fields tell from Cohere's is plain; its document is what was judged."""
    body = {"query": QUERY, "documents": [FILES, TIGERS], "document_template": "{title}: {body}", "top_k": 5}
    ranked = client.post("/rerank", json=body).json()["ranked_documents"]
    assert {each["document"] for each in ranked} == {
        "Files in Python: Use the with statement.",
        "Tigers: They live in Asia.",
    }
    answer = client.post("/rerank", json={"query": QUERY, "documents": [FILES], "top_k": 5})
    assert answer.json()["error"]["param"] == "documents.0"


def test_strings_are_judged_as_they_are(client: httpx.Client, configured: Running) -> None:
    """They count as the field text, and a field without a name needs none."""
    mixed = ["Bread.", {"text": "Yeast."}]
    for fields in (
        {},
        {"document_template": "lines"},
        {"rank_fields": ["title", "text"]},
        {"document_template": "<{text}>"},
    ):
        assert _judged(_ask(client, documents=mixed, **fields))[0] == "Bread."
    with configured.client() as other:
        assert _judged(_ask(other, documents=["Bread.", FILES]))[0] == "Bread."
    refused = _ask(client, documents=["Bread."], document_template="<{title}>")
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "documents.0")


def test_a_name_that_no_document_has_is_reported(client: httpx.Client) -> None:
    answer = _ask(client, rank_fields=["headline", "title", "id"])
    assert answer.json()["meta"]["warnings"] == ["no document has the field 'headline'"]
    assert "warnings" not in _ask(client, rank_fields=["title", "tags"]).json()["meta"]
    mixed = _ask(client, documents=["Bread.", {"title": "Yeast"}], rank_fields=["title", "text"])
    assert "warnings" not in mixed.json()["meta"]  # the string has the field text
    assert _ask(client, "/rerank", document_template="{title}{a}", top_k=3).json()["warnings"] == [
        "no document has the field 'a'"
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"document_template": "yml"}, "document_template"),
        ({"document_template": ""}, "document_template"),
        ({"document_template": "{title!r}"}, "document_template"),
        ({"document_template": "{title:>999999999}"}, "document_template"),
        ({"document_template": "{title.__class__}"}, "documents.0"),
        ({"document_template": "{title[0]}"}, "documents.0"),
        ({"document_template": "{title}" + "x" * 4000}, "document_template"),
        ({"document_template": "{title}{title}"}, "document_template"),
        ({"document_template": 3}, "document_template"),
        ({"document_template": "{title}", "rank_fields": ["title"]}, "rank_fields"),
        ({"rank_fields": [" "]}, "rank_fields[0]"),
        ({"rank_fields": ["title"] * 101}, "rank_fields"),
        ({"rank_fields": ["none"], "documents": [FILES, {"none": None}]}, "documents.0"),
        ({"documents": [{}], "document_template": "yaml"}, "documents.0"),
        ({"return_judged_text": "yes"}, "return_judged_text"),
        ({"documents": [{"text": 5}]}, "documents.0.text"),
        ({"documents": [{"text": "fine"}, 5]}, "documents.1"),
    ],
)
def test_what_cannot_be_judged_is_refused(fields: dict[str, Any], param: str, client: httpx.Client) -> None:
    answer = _ask(client, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), answer.text
    assert "Files in Python" not in answer.text


def test_values_of_json(client: httpx.Client) -> None:
    document = {"a": None, "b": True, "c": 1.0, "d": -2.5, "e": {"z": [1, None], "y": "é\U0001f600"}, "f": [], "g": ""}
    [text] = _judged(_ask(client, documents=[document], document_template="yaml"))
    assert yaml.safe_load(text) == {name: value for name, value in document.items() if name != "a"}
    assert "é\U0001f600" in text
    # Every way to rank judges the same text: YAML as Cohere recommends it, and what adapters and offline jobs make.
    prices = {"price": 89.0, "weight": 1.50, "count": 3}
    [text] = _judged(_ask(client, documents=[prices], document_template="yaml"))
    assert text == yaml.dump(prices, sort_keys=False) == DocumentFormat(template="yaml").text(prices)
    assert _ask(client, documents=[prices], document_template="yaml", top_n=1.0).status_code == 200
    [text] = _judged(_ask(client, documents=[document], document_template="{b} {c} {d} {e} {f} {g}|{a}"))
    assert text == 'true 1.0 -2.5 {"z": [1, null], "y": "é\U0001f600"} [] |'


def test_the_operators_choice_and_the_requests(configured: Running) -> None:
    """What a request does not say is as configured; its fields or template replace a configured template."""
    with configured.client() as client:
        assert _judged(_ask(client, return_judged_text=None))[1] == "title: Tigers\nbody: They live in Asia."
        assert _judged(_ask(client, rank_fields=["id", "title"]))[1] == "id: 8\ntitle: Tigers"
        assert _judged(_ask(client, document_template="yaml"))[1] == "title: Tigers\nbody: They live in Asia.\n"
        assert _judged(_ask(client, document_template="{id}"))[1] == "8"
        without = _ask(client, return_judged_text=False).json()["results"]
        assert not any("judged_text" in each for each in without)
    with serving(document_template="{title}: {body}", return_judged_text=True) as running, running.client() as client:
        assert _judged(_ask(client))[1] == "Tigers: They live in Asia."
        assert _judged(_ask(client, rank_fields=["title"]))[1] == "Tigers"
        assert _judged(_ask(client, document_template="lines", documents=[{"a": 1}])) == ["a: 1"]


def test_settings_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("rank_fields: [title, 'a, b']\ndocument_template: lines\n", encoding="utf-8")
    settings = load_settings(file, {}).settings
    assert (settings.rank_fields, settings.document_template) == (("title", "a, b"), "lines")
    monkeypatch.setenv("QWEN3_RANKER_RANK_FIELDS", "title, body")
    monkeypatch.setenv("QWEN3_RANKER_RETURN_JUDGED_TEXT", "true")
    settings = load_settings(file, {"document_template": "yaml"}).settings
    assert settings.document_format.text(TIGERS) == "title: Tigers\nbody: They live in Asia.\n"
    assert settings.return_judged_text
    printed = tmp_path / "printed.yaml"
    printed.write_text(settings.dump(), encoding="utf-8")
    monkeypatch.delenv("QWEN3_RANKER_RANK_FIELDS")
    assert load_settings(printed, {}).settings == settings
    for flags, message in (
        ({"document_template": "{title}"}, "rank_fields=.*give one of them"),
        ({"document_template": "{a!r}"}, "document_template=.*no format"),
        ({"rank_fields": ""}, "rank_fields"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            load_settings(printed, flags)


@of_the_sdk
def test_the_cohere_sdk_with_a_template(server: Running, reranker: Reranker) -> None:
    """Documents as dicts, and our own fields through the SDK's door for further ones."""
    cohere = pytest.importorskip("cohere", reason="its client comes with langchain-cohere")
    options = {"additional_body_parameters": {"document_template": "{title}: {body}", "return_judged_text": True}}
    documents = [{"title": each["title"], "body": each["body"]} for each in (FILES, TIGERS)]
    with httpx.Client() as connections:
        client = cohere.Client("key", base_url=server.url, httpx_client=connections)
        answer = client.rerank(query=QUERY, documents=documents, return_documents=True, request_options=options)
    texts = ["Files in Python: Use the with statement.", "Tigers: They live in Asia."]
    assert [(each.index, each.relevance_score, each.judged_text) for each in answer.results] == [  # type: ignore[attr-defined]
        (hit.index, pytest.approx(hit.score, abs=1e-5), hit.document) for hit in reranker.rerank(QUERY, texts)
    ]
    assert answer.meta is not None
    assert answer.meta.warnings is None


@of_the_sdk
def test_cohere_v2_with_yaml_of_ones_own(server: Running) -> None:
    """The strings that Cohere's second version asks for, `yaml.dump(..., sort_keys=False)`, are those that we make."""
    cohere = pytest.importorskip("cohere", reason="its client comes with langchain-cohere")
    own = [yaml.dump(each, sort_keys=False) for each in (FILES, TIGERS)]
    with httpx.Client() as connections:
        client = cohere.ClientV2("key", base_url=server.url, httpx_client=connections)
        answer = client.rerank(model="rerank-v3.5", query=QUERY, documents=own)
    with server.client() as other:
        ours = _ask(other, "/v2/rerank", document_template="yaml")
    assert _judged(ours) == own
    assert [(each.index, each.relevance_score) for each in answer.results] == [
        (each["index"], pytest.approx(each["relevance_score"], abs=1e-5)) for each in ours.json()["results"]
    ]
