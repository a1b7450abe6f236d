"""What clients of other services send besides the common fields, and where they send it; the bodies are theirs."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator

import httpx
import pytest
import yaml

from qwen3_ranker_plugins import Request, Reranker
from qwen3_ranker_plugins.server.fields import DEEPEST_DOCUMENT

from .conftest import DOCUMENTS, QUERY, Running, serving

BODY = {"query": QUERY, "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def expected(reranker: Reranker) -> list[tuple[int, object]]:
    """(index, P(yes)) of all documents, best first."""
    return [(hit.index, pytest.approx(hit.score, abs=1e-5)) for hit in reranker.rerank(QUERY, DOCUMENTS)]


def _ranked(answer: httpx.Response, items: str = "results", score: str = "relevance_score") -> list[tuple[int, float]]:
    assert answer.status_code == 200, answer.text
    return [(each["index"], each[score]) for each in answer.json()[items]]


@pytest.mark.parametrize(
    ("extra", "count"),
    [
        ({"top_n": 0, "max_tokens_per_doc": 0, "max_tokens_per_query": 0, "truncate_prompt_tokens": None}, 5),  # vLLM
        ({"top_n": 2, "priority": 0}, 2),  # Cohere
        ({"top_n": None, "max_chunks_per_doc": None, "return_len": None, "kwargs": "{}"}, 5),  # Xinference's client
        ({"return_documents": "true", "return_len": "true"}, 5),  # RAGFlow for Xinference
        ({"top_n": 3, "return_documents": False, "max_chunks_per_doc": 1024, "overlap_tokens": 80}, 3),  # SiliconFlow
        ({"additional_data": None, "truncate_prompt_tokens": 511}, 5),  # WeKnora
        ({"top_n": 2, "truncation": True}, 2),
        ({"top_k": 2}, 2),
        ({"instruct": None, "kwargs": {}, "chat_template_kwargs": None}, 5),
    ],
)
@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/v1/reranking", "/reranking", "/rerank", "/rerank/"])
def test_fields_of_clients_are_understood(
    path: str, extra: dict[str, object], count: int, client: httpx.Client, expected: list[tuple[int, object]]
) -> None:
    answer = client.post(path, json={"model": "any", **BODY, **extra})
    assert _ranked(answer) == expected[:count]
    assert answer.json()["model"] == "bundled:tiny"
    if extra.get("return_documents") == "true":
        assert [each["document"]["text"] for each in answer.json()["results"]] == [
            DOCUMENTS[index] for index, _ in expected
        ]
    if "top_k" not in extra:  # RAGFlow adds up both counts
        tokens = answer.json()["meta"]["tokens"]
        assert tokens["input_tokens"] + tokens["output_tokens"] == answer.json()["usage"]["prompt_tokens"]


def test_sglangs_name_of_the_instruction(client: httpx.Client) -> None:
    task = "Find texts about animals"
    given = _ranked(client.post("/v1/rerank", json={**BODY, "instruction": task}))
    assert _ranked(client.post("/v1/rerank", json={**BODY, "instruct": task})) == given
    assert _ranked(client.post("/v1/rerank", json={**BODY, "instruct": task, "instruction": task})) == given
    assert _ranked(client.post("/v1/rerank", json=BODY)) != given


def test_a_template_is_not_changed_by_a_request_and_the_answer_says_why(client: httpx.Client) -> None:
    answer = client.post("/v1/rerank", json={**BODY, "chat_template_kwargs": {"instruction": "Find animals"}})
    assert answer.status_code == 422
    assert "the field instruction sets the task" in answer.json()["detail"]


def test_voyages_shape(client: httpx.Client, expected: list[tuple[int, object]]) -> None:
    body = {**BODY, "model": "rerank-2.5", "top_k": 2, "truncation": True, "return_documents": True}
    for path in ("/v1/rerank", "/rerank"):
        answer = client.post(path, json=body)
        assert _ranked(answer, "data") == expected[:2]
        assert [each["document"] for each in answer.json()["data"]] == [DOCUMENTS[index] for index, _ in expected[:2]]
        assert answer.json()["usage"]["total_tokens"] > 0
    too_long = client.post("/v1/rerank", json={**body, "documents": ["word " * 9000], "truncation": False})
    assert (too_long.status_code, too_long.json()["error"]["type"]) == (413, "text_too_long")


def test_infinitys_shape_has_documents_as_text(client: httpx.Client, expected: list[tuple[int, object]]) -> None:
    answer = client.post("/infinity/rerank", json={**BODY, "model": "m", "return_documents": True, "top_n": 3})
    assert _ranked(answer) == expected[:3]
    assert [each["document"] for each in answer.json()["results"]] == [DOCUMENTS[index] for index, _ in expected[:3]]
    assert "document" not in client.post("/infinity/rerank", json=BODY).json()["results"][0]


def test_nims_shape(client: httpx.Client, reranker: Reranker) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS], "model": "nvidia/any"}
    margins = [(hit.index, pytest.approx(hit.margin, abs=1e-4)) for hit in reranker.rerank(QUERY, DOCUMENTS)]
    for path in ("/v1/ranking", "/v1/retrieval/nvidia/llama-3.2-nv-rerankqa-1b-v2/reranking"):
        assert _ranked(client.post(path, json={**body, "truncate": "END"}), "rankings", "logit") == margins
        for limit in ({"top_k": 2}, {"top_n": 2}, {"top_k": 2, "top_n": 2}):
            assert _ranked(client.post(path, json={**body, **limit}), "rankings", "logit") == margins[:2]
    long = {**body, "passages": [{"text": "word " * 9000}], "truncate": "NONE"}
    assert client.post("/v1/ranking", json=long).status_code == 413


@pytest.mark.parametrize(
    "limits",
    [
        {"max_tokens_per_doc": 2},
        {"truncate_prompt_tokens": 2},
        {"truncate_prompt_tokens": 2, "max_tokens_per_doc": 511},
        {"truncate_prompt_tokens": 511, "max_tokens_per_doc": 2},
    ],
)
def test_vllms_limit_of_tokens_cuts_documents(limits: dict[str, int], client: httpx.Client, reranker: Reranker) -> None:
    """vLLM cuts the joined pair; here the template and the query stay whole."""
    request = Request(QUERY, DOCUMENTS, max_document_tokens=2)
    scores = reranker.score_many([request])[0].tolist()
    answer = client.post("/v1/rerank", json={**BODY, **limits})
    assert dict(_ranked(answer)) == {index: pytest.approx(score, abs=1e-5) for index, score in enumerate(scores)}
    assert len(answer.json()["meta"]["truncated"]) == 4  # all but the empty one
    pairs = {"text_1": QUERY, "text_2": DOCUMENTS, **limits}
    data = client.post("/v1/score", json=pairs).json()["data"]
    assert [each["score"] for each in data] == pytest.approx(scores, abs=1e-5)


def test_teis_shape_takes_a_number_of_results(client: httpx.Client, expected: list[tuple[int, object]]) -> None:
    """As LiteLLM's huggingface provider sends it."""
    body = {"query": QUERY, "texts": DOCUMENTS, "top_n": 2, "raw_scores": False, "truncation_direction": "Right"}
    assert [(each["index"], each["score"]) for each in client.post("/rerank", json=body).json()] == expected[:2]
    assert len(client.post("/rerank", json={**body, "top_n": 0}).json()) == len(DOCUMENTS)


def test_tei_is_described(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert list(info["model_type"]) == ["reranker"]
    assert (info["model_id"], info["max_client_batch_size"]) == ("bundled:tiny", 2000)
    assert info["max_input_length"] > 0


def test_fields_of_documents_are_judged_as_cohere_does(client: httpx.Client, reranker: Reranker) -> None:
    documents = [
        {"title": "Tigers", "body": "They live in Asia: é", "id": 7},
        {"body": "Use the with statement", "title": "Files in Python", "tags": ["io", {"level": 2}]},
        {"title": "Bread", "text": "not judged"},
    ]
    fields = ["title", "body", "tags"]
    texts = [
        yaml.safe_dump({name: each[name] for name in fields if name in each}, sort_keys=False, allow_unicode=True)
        for each in documents
    ]
    assert texts[0] == "title: Tigers\nbody: 'They live in Asia: é'\n"
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": documents, "rank_fields": fields,
                                             "return_documents": True})  # fmt: skip
    assert _ranked(answer) == [(hit.index, pytest.approx(hit.score, abs=1e-5)) for hit in reranker.rerank(QUERY, texts)]
    assert {json.dumps(each["document"], sort_keys=True) for each in answer.json()["results"]} == {
        json.dumps(each, sort_keys=True) for each in documents
    }
    titles = client.post("/v1/rerank", json={"query": QUERY, "documents": documents, "rank_fields": ["title"]})
    assert _ranked(titles) == [
        (hit.index, pytest.approx(hit.score, abs=1e-5))
        for hit in reranker.rerank(QUERY, [str(each["title"]) for each in documents])
    ]
    missing = client.post("/v1/rerank", json={"query": QUERY, "documents": documents, "rank_fields": ["tags"]})
    assert (missing.status_code, missing.json()["error"]["param"]) == (422, "documents.0")


def test_score_has_a_short_address(client: httpx.Client) -> None:
    body = {"text_1": QUERY, "text_2": DOCUMENTS}
    assert client.post("/score", json=body).json()["data"] == client.post("/v1/score", json=body).json()["data"]


def test_documents_come_back_by_a_setting(reranker: Reranker) -> None:
    with serving(return_documents=True) as running, running.client() as client:
        results = client.post("/v1/rerank", json=BODY).json()["results"]
        assert [each["document"]["text"] for each in results] == [DOCUMENTS[each["index"]] for each in results]
        results = client.post("/v1/rerank", json={**BODY, "return_documents": False}).json()["results"]
        assert not any("document" in each for each in results)


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping", "/v1/models", "/v1/models/x", "/metrics", "/info", "/"])
def test_head_and_trailing_slashes(path: str, client: httpx.Client) -> None:
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == client.get(path).headers["Content-Type"]
    if path != "/":
        assert client.get(f"{path}/").status_code == 200


def test_head_of_a_route_that_ranks_is_refused_as_get_is(client: httpx.Client) -> None:
    assert client.head("/v1/rerank").status_code == client.get("/v1/rerank").status_code == 405


@pytest.fixture(scope="module")
def browsers(reranker: Reranker) -> Iterator[Running]:
    with serving(cors_origins=("https://app.example",), keys=("cors-key-0123456789",)) as running:
        yield running


def test_pages_of_configured_origins_may_call(browsers: Running) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with browsers.client() as client:
        preflight = client.options("/v1/rerank", headers={"Origin": "https://app.example", **ask})
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert client.options("/v1/rerank", headers={"Origin": "https://other.example", **ask}).status_code == 400
        headers = {"Origin": "https://app.example", "Authorization": "Bearer cors-key-0123456789"}
        answer = client.post("/v1/rerank", json=BODY, headers=headers)
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert "X-Model" in answer.headers["Access-Control-Expose-Headers"]
        assert client.post("/v1/rerank", json=BODY, headers={"Origin": "https://app.example"}).status_code == 401


def test_no_origin_may_call_by_default(client: httpx.Client) -> None:
    answer = client.post("/v1/rerank", json=BODY, headers={"Origin": "https://app.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_bodies_may_be_gzip(client: httpx.Client, expected: list[tuple[int, object]]) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    body = json.dumps(BODY).encode()
    for content in (gzip.compress(body), gzip.compress(body[:50]) + gzip.compress(body[50:])):
        assert _ranked(client.post("/v1/rerank", content=content, headers=headers)) == expected
    for content in (body, gzip.compress(body)[:-9], b"", gzip.compress(body)[:-4] + b"\0\0\0\0"):
        refused = client.post("/v1/rerank", content=content, headers=headers)
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_encoding")


def test_a_small_gzip_body_cannot_become_a_large_one(reranker: Reranker) -> None:
    bomb = gzip.compress(b"[" + b" " * 200_000_000)
    assert len(bomb) < 300_000
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    with serving(max_body_bytes=1_000_000) as running, running.client() as client:
        refused = client.post("/v1/rerank", content=bomb, headers=headers)
        assert (refused.status_code, refused.json()["error"]["type"]) == (413, "body_too_large")
        assert running.state.bodies.held == 0


@pytest.mark.parametrize("coding", ["br", "deflate", "zstd", "gzip, gzip"])
def test_other_codings_are_refused_with_a_remedy(coding: str, client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    refused = client.post("/v1/rerank", content=zlib.compress(b"{}"), headers=headers)
    assert (refused.status_code, refused.headers["Accept-Encoding"]) == (415, "gzip")
    assert "as gzip or uncompressed" in refused.json()["detail"]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/infinity/rerank"])
def test_a_document_that_could_not_be_returned_is_refused_before_it_is_scored(
    path: str, server: Running, client: httpx.Client
) -> None:
    def document(levels: int) -> dict[str, object]:
        nested: object = "x"
        for _ in range(levels):
            nested = [nested]
        return {"text": "a", "nested": nested}

    scored = server.metric("documents_total")
    for levels in (DEEPEST_DOCUMENT + 1, 300, 800):
        body = {"query": QUERY, "documents": ["b", document(levels)]}
        if path != "/rerank":
            body["return_documents"] = True
        refused = client.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "documents.1")
    assert server.metric("documents_total") == scored
    deep = document(DEEPEST_DOCUMENT - 1)
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": [deep], "return_documents": True})
    assert answer.json()["results"][0]["document"] == deep


def test_unknown_questions_of_the_demo_are_not_kept(client: httpx.Client) -> None:
    from qwen3_ranker_plugins.server.routes import demo

    known = next(iter(client.get("/demo").json()["queries"]))
    assert client.get(f"/demo/{known}").status_code == 200
    kept = demo._candidates.cache_info().currsize
    for number in range(20):
        assert client.get(f"/demo/{'x' * 6000}{number}").status_code == 404
    assert demo._candidates.cache_info().currsize == kept


def test_the_build_has_its_model_and_engine(client: httpx.Client) -> None:
    line = next(
        each for each in client.get("/metrics").text.splitlines() if each.startswith("qwen3_ranker_build_info{")
    )
    assert 'model="bundled:tiny"' in line
    assert 'engine="packed"' in line
