"""Long documents in pieces over HTTP: max_chunks_per_doc, the server's settings, offsets, counts and limits."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from qwen3_ranker_plugins import Pieces, Request, Reranker

from .conftest import Running, serving

QUERY = "how is a file closed after an error?"
ANSWER = "The with statement closes the file even if the block raises an exception. "
FILLER = "A tuple is an immutable sequence of values. Dictionaries map keys to values; sets hold each value once. "
LONG = FILLER * 4 + ANSWER + FILLER * 4
DOCUMENTS = ["A list holds items.", LONG]
PIECES = {"piece_tokens": 48, "piece_overlap": 8}


@pytest.fixture(scope="module")
def cutting(reranker: Reranker) -> Iterator[Running]:
    """A server that judges documents in pieces."""
    with serving(long_documents="pieces", **PIECES) as running:
        yield running


def post(server: Running, path: str = "/v1/rerank", **body: object) -> httpx.Response:
    with server.client() as client:
        return client.post(path, json={"query": QUERY, "documents": DOCUMENTS} | body)


def test_pieces_are_named_and_counted(cutting: Running, reranker: Reranker) -> None:
    before = cutting.metric("pieces_total"), cutting.metric("documents_total")
    answer = post(cutting).json()
    [expected] = reranker.rerank_many([Request(QUERY, DOCUMENTS, pieces=Pieces(48, 8))])
    assert [each["index"] for each in answer["results"]] == [hit.index for hit in expected]
    for each, hit in zip(answer["results"], expected, strict=True):
        assert each["relevance_score"] == pytest.approx(hit.score, abs=1e-5)
        assert (each["piece"]["start"], each["piece"]["end"]) == hit.piece
    best = next(each for each in answer["results"] if each["index"] == 1)["piece"]
    assert "closes the file" in LONG[best["start"] : best["end"]]
    assert answer["usage"]["pieces"] == expected.usage.pieces > 3
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert cutting.metric("pieces_total") - before[0] == expected.usage.pieces
    assert cutting.metric("documents_total") - before[1] == 2


def test_the_plain_shape_names_the_piece(cutting: Running) -> None:
    ranked = post(cutting, "/rerank", min_confidence=0).json()["ranked_documents"]
    assert {each["index"]: set(each["piece"]) for each in ranked} == {0: {"start", "end"}, 1: {"start", "end"}}


def test_max_chunks_per_doc_asks_for_pieces(reranker: Reranker) -> None:
    """Also of a server that is configured to truncate: without it, no result names a piece."""
    with serving(**PIECES, max_pieces=5) as server:
        whole = post(server).json()
        assert all("piece" not in each for each in whole["results"])
        assert "pieces" not in whole["usage"]
        few = post(server, max_chunks_per_doc=2).json()
        assert few["usage"]["pieces"] == 3
        assert few["meta"]["truncated"][0]["index"] == 1
        many = post(server, max_chunks_per_doc=1024, overlap_tokens=0).json()
        assert many["usage"]["pieces"] == 6  # at most five of the long one, whatever a request asks for
        assert "pieces" not in post(server, max_chunks_per_doc=0).json()["usage"]
        refused = post(server, max_chunks_per_doc=2, overlap_tokens=25)
        assert refused.status_code == 422
        assert refused.json()["error"]["param"] == "overlap_tokens"


def test_max_tokens_per_doc_limits_what_is_read(cutting: Running) -> None:
    limited = post(cutting, max_tokens_per_doc=60).json()
    assert limited["usage"]["pieces"] == 3
    assert limited["meta"]["truncated"][0]["truncated_tokens"] > 0


def test_a_document_that_is_read_in_pieces_is_not_cut(reranker: Reranker) -> None:
    """`truncation: false` refuses what is not read, and pieces read all."""
    with serving(**PIECES, max_length=160) as server:
        assert post(server, truncation=False).status_code == 413
        answer = post(server, truncation=False, max_chunks_per_doc=64)
        assert answer.status_code == 200
        assert "truncated" not in answer.json()["meta"]
        assert post(server, truncation=False, max_chunks_per_doc=1).status_code == 413


def test_the_tokens_of_all_pieces_count_towards_the_limit(reranker: Reranker) -> None:
    with serving(**PIECES, max_request_tokens=400) as server:
        refused = post(server, max_chunks_per_doc=64)
        assert refused.status_code == 413
        assert refused.json()["error"]["type"] == "too_many_tokens"
        assert post(server, max_chunks_per_doc=1).status_code == 200


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_a_result_can_be_explained(cutting: Running, reranker: Reranker, path: str) -> None:
    key = "results" if path == "/v1/rerank" else "ranked_documents"
    assert all("explanation" not in each for each in post(cutting, path).json()[key])
    plain = post(cutting, path, explain=True).json()[key]
    assert all("sentences" not in each["explanation"] for each in plain)
    found = post(cutting, path, explain="sentences").json()[key]
    [expected] = [reranker.rerank_many([Request(QUERY, DOCUMENTS, pieces=Pieces(48, 8))])[0]]
    for rank, (each, hit) in enumerate(zip(found, expected, strict=True), start=1):
        explanation = each["explanation"]
        assert (explanation["rank"], explanation["rank_before"]) == (rank, hit.index + 1)
        assert explanation["margin"] == pytest.approx(hit.margin, abs=2e-5)
        assert explanation["judged"] == each["piece"]
        assert explanation["prompt"].startswith("<|im_start|>system")
        start, end = hit.piece or (0, 0)
        assert (
            "".join(hit.document[part["start"] : part["end"]] for part in explanation["sentences"])
            == (hit.document[start:end])
        )
        for part in explanation["sentences"]:
            without = hit.document[start : part["start"]] + hit.document[part["end"] : end]
            margin = reranker.rerank(QUERY, [without])[0].margin
            assert part["contribution"] == pytest.approx(hit.margin - margin, abs=4e-5)
    assert post(cutting, path, explain="words").status_code == 422
