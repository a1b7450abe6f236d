"""Every shape on the wire against a direct call of the core."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from pathlib import Path

import httpx
import pytest

from qwen3_ranker_plugins import Request, Reranker, __version__
from qwen3_ranker_plugins.calibration import Calibration
from qwen3_ranker_plugins.server.fields import NOT_BLANK

from .conftest import DOCUMENTS, QUERY, Running, serving


def test_the_plain_shape(client: httpx.Client, reranker: Reranker) -> None:
    answer = client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS, "top_k": 3}).json()
    expected = reranker.rerank(QUERY, DOCUMENTS, 3)
    assert set(answer) == {"query", "ranked_documents", "total_processed", "processing_time_ms"}
    assert answer["query"] == QUERY
    assert answer["total_processed"] == len(DOCUMENTS)
    assert answer["processing_time_ms"] > 0
    ranked = answer["ranked_documents"]
    assert [set(each) for each in ranked] == [{"document", "index", "relevance_score", "confidence", "rank"}] * 3
    assert [each["rank"] for each in ranked] == [1, 2, 3]
    assert [each["index"] for each in ranked] == [hit.index for hit in expected]
    assert [each["document"] for each in ranked] == [hit.document for hit in expected]
    assert [each["relevance_score"] for each in ranked] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert [each["confidence"] for each in ranked] == pytest.approx([hit.confidence for hit in expected], abs=1e-5)


def test_the_plain_shape_keeps_ten_and_filters_only_if_asked(client: httpx.Client, reranker: Reranker) -> None:
    documents = [f"{text} {number}" for number in range(4) for text in DOCUMENTS]
    plain = client.post("/rerank", json={"query": QUERY, "documents": documents}).json()
    assert len(plain["ranked_documents"]) == 10
    everything = reranker.rerank(QUERY, documents)
    confidences = sorted(hit.confidence for hit in everything)
    gap = max(range(1, len(confidences)), key=lambda n: confidences[n] - confidences[n - 1])
    decided = (confidences[gap - 1] + confidences[gap]) / 2  # whatever the weights, some lie on either side
    confident = client.post(
        "/rerank", json={"query": QUERY, "documents": documents, "min_confidence": decided, "top_k": 99}
    )
    kept = {each["index"] for each in confident.json()["ranked_documents"]}
    assert kept == {hit.index for hit in everything if hit.confidence >= decided}
    assert 0 < len(kept) < len(documents)
    middle = everything[len(everything) // 2].score
    above = client.post(
        "/rerank", json={"query": QUERY, "documents": documents, "score_threshold": middle, "top_k": 99}
    )
    assert {each["index"] for each in above.json()["ranked_documents"]} == {
        hit.index for hit in everything if hit.score >= middle
    }


def test_the_document_names_what_counts_as_blank(client: httpx.Client) -> None:
    """The published pattern and the check behind it agree on every character."""
    allowed = re.compile(NOT_BLANK)
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    assert [each for each in characters if bool(allowed.search(each)) != bool(each.strip())] == []
    blank = client.post("/rerank", json={"query": "\x1c\u2003", "documents": ["a"]})
    assert blank.status_code == 422
    assert blank.json()["error"]["param"] == "query"


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_the_shape_of_cohere_jina_and_vllm(path: str, client: httpx.Client, reranker: Reranker) -> None:
    documents = [{"text": text, "id": number} if number % 2 else text for number, text in enumerate(DOCUMENTS)]
    body = {"model": "bundled:tiny", "query": QUERY, "documents": documents, "top_n": 2, "return_documents": True}
    answer = client.post(path, json=body).json()
    expected = reranker.rerank(QUERY, DOCUMENTS)
    assert answer["model"] == "bundled:tiny"
    assert answer["id"]
    assert [each["index"] for each in answer["results"]] == [hit.index for hit in expected][:2]
    assert [each["relevance_score"] for each in answer["results"]] == pytest.approx(
        [hit.score for hit in expected][:2], abs=1e-5
    )
    for each in answer["results"]:
        given = documents[each["index"]]
        assert each["document"] == ({"text": given} if isinstance(given, str) else given)
    usage = expected.usage
    assert answer["usage"] == {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens,
        "computed_tokens": usage.computed_tokens,
    }
    assert "truncated" not in answer["meta"]
    body["return_documents"] = False
    assert all("document" not in each for each in client.post(path, json=body).json()["results"])
    del body["return_documents"]  # vLLM and LocalAI, which answer at /rerank, return them unless told otherwise
    assert all(("document" in each) == (path == "/rerank") for each in client.post(path, json=body).json()["results"])


def test_documents_are_cut_where_the_request_says_and_the_answer_says_so(
    client: httpx.Client, reranker: Reranker
) -> None:
    long = "the with statement closes the file " * 40
    documents = ["short", long]
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": documents, "max_tokens_per_doc": 20})
    tokens = len(reranker.encode(reranker.prepare(Request(QUERY, [long]))).segments[0]) - 9  # the suffix
    assert answer.json()["meta"]["truncated"] == [{"index": 1, "truncated_tokens": tokens - 20}]
    assert answer.headers["X-Truncated-Documents"] == "1"
    kept = reranker.encode(reranker.prepare(Request(QUERY, [long], max_document_tokens=20))).segments[0][:20]
    cut = reranker._encoder.tokenizer.plain.decode(kept).strip()
    scores = {each["index"]: each["relevance_score"] for each in answer.json()["results"]}
    assert scores[1] == pytest.approx(float(reranker.score(QUERY, [cut])[0]), abs=1e-5)
    assert scores[0] == pytest.approx(float(reranker.score(QUERY, ["short"])[0]), abs=1e-5)


def test_the_instruction_reaches_the_prompt(client: httpx.Client, reranker: Reranker) -> None:
    instruction = "Find texts about animals"
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, "instruction": instruction})
    scores = {each["index"]: each["relevance_score"] for each in answer.json()["results"]}
    expected = reranker.score(QUERY, DOCUMENTS, instruction=instruction)
    assert [scores[index] for index in range(len(DOCUMENTS))] == pytest.approx(expected.tolist(), abs=1e-5)
    assert expected.tolist() != pytest.approx(reranker.score(QUERY, DOCUMENTS).tolist(), abs=1e-5)


def test_the_shape_of_tei(client: httpx.Client, reranker: Reranker) -> None:
    expected = reranker.rerank(QUERY, DOCUMENTS)
    answer = client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS}).json()
    assert [each["index"] for each in answer] == [hit.index for hit in expected]
    assert [each["score"] for each in answer] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert all(set(each) == {"index", "score"} for each in answer)
    raw = client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS, "raw_scores": True, "return_text": True})
    assert [each["score"] for each in raw.json()] == pytest.approx([hit.margin for hit in expected], abs=1e-4)
    assert [each["text"] for each in raw.json()] == [hit.document for hit in expected]


def test_tei_may_forbid_to_cut(reranker: Reranker, client: httpx.Client) -> None:
    too_long = "word " * 9000
    body = {"query": QUERY, "texts": ["short", too_long], "truncate": False}
    refused = client.post("/rerank", json=body)
    assert refused.status_code == 413
    assert "positions 1 " in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("queries", "documents", "pairs"),
    [
        ("q one", "d one", [("q one", "d one")]),
        ("q one", ["d one", "d two"], [("q one", "d one"), ("q one", "d two")]),
        (["q one"], ["d one", "d two"], [("q one", "d one"), ("q one", "d two")]),
        (["q one", "q two", "q one"], ["a", "b", "c"], [("q one", "a"), ("q two", "b"), ("q one", "c")]),
    ],
)
@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents")])
def test_the_score_route(
    names: tuple[str, str],
    queries: str | list[str],
    documents: str | list[str],
    pairs: list[tuple[str, str]],
    client: httpx.Client,
    reranker: Reranker,
) -> None:
    answer = client.post("/v1/score", json={names[0]: queries, names[1]: documents}).json()
    expected = [float(reranker.score(query, [document])[0]) for query, document in pairs]
    assert answer["object"] == "list"
    assert [each["index"] for each in answer["data"]] == list(range(len(pairs)))
    assert {each["object"] for each in answer["data"]} == {"score"}
    assert [each["score"] for each in answer["data"]] == pytest.approx(expected, abs=1e-5)
    raw = client.post("/v1/score", json={names[0]: queries, names[1]: documents, "use_activation": False}).json()
    margins = [reranker.rerank(query, [document])[0].margin for query, document in pairs]
    assert [each["score"] for each in raw["data"]] == pytest.approx(margins, abs=1e-4)


def test_lists_of_different_lengths_are_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/score", json={"text_1": ["a", "b"], "text_2": ["c", "d", "e"]})
    assert answer.status_code == 422
    assert "2 queries and 3 documents" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/rerank", {"query": "q", "documents": ["d"], "temperature": 1}, "temperature"),
        ("/rerank", {"query": "q", "documents": ["d"], "top_k": 0}, "top_k"),
        ("/rerank", {"query": "q", "documents": ["d"], "top_k": "3"}, "top_k"),
        ("/rerank", {"query": "q", "documents": ["d"], "min_confidence": 1.5}, "min_confidence"),
        ("/rerank", {"query": "q", "documents": ["d", 3]}, "documents.1"),
        ("/rerank", {"query": "  ", "documents": ["d"]}, "query"),
        ("/rerank", {"documents": ["d"]}, "query"),
        ("/rerank", {"query": "q"}, "documents"),
        ("/rerank", {"query": "q", "texts": ["d"], "truncation_direction": "Left"}, "truncation_direction"),
        ("/rerank", {"query": "q", "texts": ["d"], "documents": ["d"]}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "rank_fields": ["title"]}, "documents.0"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "rank_fields": []}, "rank_fields"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "top_n": 1, "top_k": 2}, "top_k"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "instruction": "a", "instruct": "b"}, "instruct"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "kwargs": {"length": 3}}, "kwargs"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "return_documents": "maybe"}, "return_documents"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "d"}], "top_k": 1, "top_n": 2}, "top_n"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"image": "d"}]}, "passages.0.text"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "instruction": " "}, "instruction"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "chat_template_kwargs": {}}, "chat_template_kwargs"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "max_tokens_per_query": False}, "max_tokens_per_query"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "return_embeddings": 0}, "return_embeddings"),
        ("/v1/rerank", {"query": "q", "documents": [{"image": "d"}]}, None),
        ("/v1/score", {"text_1": "q", "text_2": "d", "top_n": 1}, "top_n"),
        ("/v1/score", {"text_1": "q"}, "text_2"),
        ("/rerank", [], None),
        ("/rerank", "text", None),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    path: str, body: object, param: str | None, client: httpx.Client
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["type"] == "invalid_request"
    assert error["request_id"] == answer.headers["X-Request-ID"]
    if param is not None:
        assert error["param"] == param


def test_harmless_fields_of_other_clients_are_taken(client: httpx.Client) -> None:
    body = {
        "query": "q", "documents": ["d"], "user": "me", "priority": 3, "max_chunks_per_doc": 10, "request_id": "r",
        "rank_fields": ["text"], "truncate_prompt_tokens": -1, "truncation_side": "right", "return_embeddings": False,
        "cache_salt": "s", "max_tokens_per_query": 0,
    }  # fmt: skip
    assert client.post("/v1/rerank", json=body).status_code == 200


def test_any_name_is_served_and_the_answer_names_the_model(client: httpx.Client) -> None:
    answer = client.post("/v2/rerank", json={"model": "rerank-v3.5", "query": "q", "documents": ["d"]})
    assert answer.status_code == 200
    assert answer.json()["model"] == answer.headers["X-Model"] == "bundled:tiny"
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["bundled:tiny"]
    card = client.get("/v1/models/Qwen/Qwen3-Reranker-8B").json()
    assert (card["id"], card["root"]) == ("Qwen/Qwen3-Reranker-8B", "bundled:tiny")


def test_a_strict_server_refuses_other_names(reranker: Reranker) -> None:
    with (
        serving(strict_model_names=True, served_model_names=("qwen3-reranker",)) as running,
        running.client() as strict,
    ):
        assert [each["id"] for each in strict.get("/v1/models").json()["data"]] == ["qwen3-reranker", "bundled:tiny"]
        for name in ("qwen3-reranker", "bundled:tiny"):
            answer = strict.post("/v1/rerank", json={"model": name, "query": "q", "documents": ["d"]})
            assert (answer.json()["model"], answer.headers["X-Model"]) == ("qwen3-reranker", "bundled:tiny")
            assert strict.get(f"/v1/models/{name}").json()["id"] == name
        for path, texts in (("/v1/rerank", "documents"), ("/v1/score", "documents"), ("/rerank", "texts")):
            query = "queries" if path == "/v1/score" else "query"
            refused = strict.post(path, json={"model": "rerank-v3.5", query: "q", texts: ["d"]})
            assert (refused.status_code, refused.json()["error"]["type"]) == (404, "model_not_found")
            assert "served here: qwen3-reranker, bundled:tiny" in refused.json()["detail"]
        assert strict.get("/v1/models/rerank-v3.5").status_code == 404


def test_an_asterisk_serves_any_name(reranker: Reranker) -> None:
    with serving(strict_model_names=True, served_model_names=("*",)) as running, running.client() as client:
        answer = client.post("/v1/rerank", json={"model": "rerank-v3.5", "query": "q", "documents": ["d"]})
        assert answer.json()["model"] == "bundled:tiny"
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["bundled:tiny"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400), (b"", 422), (b'{"query": NaN}', 400), (b"\xff\xfe", 400), (b"[" * 100_000, 400),
        (b'{"query": "q", "documents": ["d"], "top_k": ' + b"9" * 5000 + b"}", 400),
        (b'{"query": "q", "documents": ["d"], "documents": ["e"]}', 400),
        (b'{"query": "q", "documents": [{"text": "d", "text": "e"}], "model": "m"}', 400),
        (b'{"query": "q", "documents": [{"text": "d", "weight": 1e999}], "model": "m"}', 400),
    ],
)  # fmt: skip
def test_what_is_no_json_is_said_to_be_none(content: bytes, status: int, client: httpx.Client) -> None:
    answer = client.post("/rerank", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "detail"}


def test_only_json_is_read(client: httpx.Client) -> None:
    answer = client.post("/rerank", content=b"{}", headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (415, "unsupported_media_type")


def test_errors_of_the_framework_have_the_same_shape(client: httpx.Client) -> None:
    missing = client.get("/nothing")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found")
    wrong = client.get("/rerank")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "method_not_allowed")
    assert wrong.headers["Allow"] == "POST"


def test_lone_surrogates_and_control_tokens_come_back_as_text(client: httpx.Client, reranker: Reranker) -> None:
    body = r'{"query": "q \ud800", "documents": ["half \udc00 pair", "<|im_end|></think>", "\ud83d\ude00"]}'
    answer = client.post("/rerank", content=body.encode(), headers={"Content-Type": "application/json"})
    ranked = {each["index"]: each for each in answer.json()["ranked_documents"]}
    assert ranked[0]["document"] == "half \ufffd pair"
    assert ranked[2]["document"] == "\U0001f600"
    expected = reranker.score("q \ufffd", ["half \ufffd pair", "<|im_end|></think>", "\U0001f600"])
    assert [ranked[index]["relevance_score"] for index in range(3)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_no_documents_are_no_results(client: httpx.Client) -> None:
    assert client.post("/rerank", json={"query": "q", "documents": []}).json()["ranked_documents"] == []
    assert client.post("/v1/rerank", json={"query": "q", "documents": []}).json()["results"] == []
    assert client.post("/rerank", json={"query": "q", "texts": []}).json() == []
    assert client.post("/v1/score", json={"text_1": "q", "text_2": []}).json()["data"] == []


def test_health_tells_what_runs(client: httpx.Client) -> None:
    health = client.get("/health").json()
    assert health["status"] == "healthy"
    assert health["model_loaded"] is True
    assert health["backend"] == health["engine"] == "packed"
    assert health["instruction_format"] == "standard"
    assert health["version"] == __version__
    assert health["uptime_seconds"] > 0
    assert health["gpu_count"] >= 0
    assert health["memory"]["process_bytes"] > 10_000_000
    assert client.get("/ready").json() == {"ready": True, "status": "healthy"}


def test_a_request_id_is_kept_if_it_can_be_and_made_otherwise(client: httpx.Client) -> None:
    assert client.get("/ready", headers={"X-Request-ID": "abc-123"}).headers["X-Request-ID"] == "abc-123"
    for odd in ("a b", "x" * 200, '"'):
        assert re.fullmatch("[0-9a-f]{32}", client.get("/ready", headers={"X-Request-ID": odd}).headers["X-Request-ID"])


def test_metrics_count_what_happened(server: Running, client: httpx.Client, reranker: Reranker) -> None:
    before = {name: server.metric(name) for name in ("documents_total", "truncated_documents_total")}
    passes = server.metric("pass_documents_count")
    usage = reranker.rerank(QUERY, DOCUMENTS).usage
    computed = server.metric("computed_tokens_total")
    client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, "max_tokens_per_doc": 3})
    assert server.metric("documents_total") == before["documents_total"] + len(DOCUMENTS)
    assert server.metric("truncated_documents_total") == before["truncated_documents_total"] + len(DOCUMENTS) - 1
    assert 0 < server.metric("computed_tokens_total") - computed < usage.computed_tokens
    assert server.metric("pass_documents_count") > passes
    text = client.get("/metrics")
    assert text.headers["Content-Type"].startswith("text/plain")
    for name in ("requests_total", "queue_documents", "queue_tokens", "pass_tokens_bucket", "request_seconds_bucket",
                 "truncated_tokens_total", "rejected_total", "engine_up 1.0"):  # fmt: skip
        assert f"qwen3_ranker_{name}" in text.text


MARK = "zebra-crossing-4711"


def test_no_text_of_a_request_is_in_logs_or_errors(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    bodies: list[object] = [
        {"query": MARK, "documents": [MARK, 7]},
        {"query": MARK, "documents": [MARK], "top_k": MARK},
        {"query": MARK + " word" * 9000, "documents": [MARK]},
        {"query": MARK, "documents": [MARK], "instruction": " "},
        {"query": MARK, "documents": [MARK], "model": MARK, "chat_template_kwargs": {"instruction": MARK}},
        {"query": MARK, "documents": [{"title": MARK}]},
        {"query": MARK, "documents": {"text": MARK}},
        [MARK],
    ]
    with caplog.at_level(logging.DEBUG):
        for body in bodies:
            answer = client.post("/v1/rerank", json=body)
            assert answer.status_code == 422
            assert MARK not in answer.text
        broken = client.post(
            "/rerank", content=f'{{"query": "{MARK}'.encode(), headers={"Content-Type": "application/json"}
        )
        assert MARK not in broken.text
        assert client.post("/v1/rerank", json={"query": MARK, "documents": [MARK]}).status_code == 200
    assert caplog.records
    assert MARK not in json.dumps([[record.getMessage(), str(record.__dict__)] for record in caplog.records])


_SHAPES_WITH_THRESHOLD: list[tuple[str, dict[str, object], str, str]] = [
    ("/rerank", {"query": QUERY, "documents": DOCUMENTS}, "ranked_documents", "relevance_score"),
    ("/rerank", {"query": QUERY, "documents": DOCUMENTS, "top_n": 9}, "results", "relevance_score"),
    ("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS}, "results", "relevance_score"),
    ("/v2/rerank", {"query": QUERY, "documents": DOCUMENTS}, "results", "relevance_score"),
    ("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "truncation": True, "top_k": 9}, "data", "relevance_score"),
    ("/rerank", {"query": QUERY, "texts": DOCUMENTS}, "", "score"),
    ("/infinity/rerank", {"query": QUERY, "documents": DOCUMENTS}, "results", "relevance_score"),
    (
        "/v1/ranking",
        {"query": {"text": QUERY}, "passages": [{"text": each} for each in DOCUMENTS]},
        "rankings",
        "logit",
    ),
    ("/v1/score", {"text_1": QUERY, "text_2": DOCUMENTS}, "data", "score"),
    ("/score", {"queries": QUERY, "documents": DOCUMENTS}, "data", "score"),
]


@pytest.mark.parametrize(("path", "body", "results", "score"), _SHAPES_WITH_THRESHOLD)
def test_score_threshold_on_every_shape(
    client: httpx.Client, reranker: Reranker, path: str, body: dict[str, object], results: str, score: str
) -> None:
    everything = reranker.rerank(QUERY, DOCUMENTS)
    threshold = (everything[1].score + everything[2].score) / 2
    whole, cut = (client.post(path, json=body | more) for more in ({}, {"score_threshold": threshold}))
    assert whole.status_code == cut.status_code == 200, cut.text
    all_of_them, kept = (each.json()[results] if results else each.json() for each in (whole, cut))
    assert {each["index"] for each in kept} == {hit.index for hit in everything if hit.score >= threshold}
    best = {hit.index for hit in everything[:2]}
    scores = [each[score] for each in all_of_them if each["index"] in best]
    assert [each[score] for each in kept] == pytest.approx(scores, abs=1e-4)
    for unusable in (1.5, -0.1, "0.5"):
        assert client.post(path, json=body | {"score_threshold": unusable}).status_code == 422


def test_a_calibrated_server(tmp_path: Path, reranker: Reranker) -> None:
    """Scores and thresholds are calibrated; logits and the order are the model's."""
    file = tmp_path / "calibration.json"
    Calibration("platt", 0.25, -0.5, reranker.judgement_facts()).write(file)
    expected = reranker.rerank(QUERY, DOCUMENTS)
    calibrated = [1 / (1 + math.exp(0.5 - 0.25 * hit.margin)) for hit in expected]
    threshold = (calibrated[1] + calibrated[2]) / 2
    body = {"query": QUERY, "documents": DOCUMENTS}
    with serving(calibration=str(file)) as running, running.client() as client:
        found = client.post("/v1/rerank", json=body).json()["results"]
        assert [each["index"] for each in found] == [hit.index for hit in expected]
        assert [each["relevance_score"] for each in found] == pytest.approx(calibrated, abs=1e-4)
        raw = client.post("/v1/rerank", json=body | {"raw_scores": True, "score_threshold": threshold}).json()[
            "results"
        ]
        assert [each["relevance_score"] for each in raw] == pytest.approx(
            [hit.margin for hit in expected[:2]], abs=1e-4
        )
        plain = client.post("/rerank", json=body | {"score_threshold": threshold}).json()["ranked_documents"]
        assert [each["index"] for each in plain] == [hit.index for hit in expected[:2]]
        assert "platt" in client.get("/health").text
