"""A fuzzer over the OpenAPI document: whatever it sends, the server answers as described and never with 5xx."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from pydantic import TypeAdapter
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.server import app, routes

from .conftest import DOCUMENTS, QUERY, Running, serving

# Inside the fuzzer, not ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def fuzzed(reranker: Reranker) -> Iterator[Running]:
    with serving() as running:
        yield running


def _says_more_than_a_schema(case: schemathesis.Case) -> bool:
    """Whether a body that fits the schema may be refused: a rule binds several of its fields."""
    body = case.body
    if "score" in case.path:  # as many queries as documents
        return True
    if not isinstance(body, dict):
        return False
    documents = body.get("documents")
    without_text = isinstance(documents, list) and any(
        isinstance(each, dict) and each.get("text") is None for each in documents
    )
    two_names = any({name, alias} <= body.keys() for name, alias in (("top_n", "top_k"), ("instruction", "instruct")))
    # On /rerank, top_k without a field of another shape is the plain shape's, which is not null or 0.
    plain = case.path == "/rerank" and "top_k" in body
    overlapping = bool(body.get("overlap_tokens"))  # at most half of a piece, whose size is configured
    structured = body.get("rank_fields") is not None or body.get("document_template") is not None
    return without_text or two_names or plain or overlapping or structured


def test_answers_are_as_described(fuzzed: Running) -> None:
    """Valid requests and broken ones; the answers are compared with the document."""
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    seen: set[int] = set()

    def check(case: schemathesis.Case) -> None:
        excluded = [positive_data_acceptance] if _says_more_than_a_schema(case) else []
        response = case.call_and_validate(excluded_checks=excluded)
        seen.add(response.status_code)
        assert response.status_code < 500
        if response.status_code >= 400:
            body = response.json()
            assert set(body) == {"error", "detail"}
            assert set(body["error"]) == {"type", "message", "request_id", "param"}

    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 20
    for operation in operations:
        for mode in GenerationMode:
            tested = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))(
                given(operation.as_strategy(generation_mode=mode))(check)
            )
            # A GET without parameters cannot be asked wrongly.
            with suppress(Unsatisfiable) if operation.method == "get" else nullcontext():
                tested()
    assert {200, 422} <= seen


def test_the_examples_of_the_document_work(client: httpx.Client) -> None:
    """Each shape's example is posted to the routes that take it."""
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    taken = {
        "PlainRequest": ["/rerank"],
        "TeiRequest": ["/rerank"],
        "RerankRequest": ["/rerank", "/v1/rerank", "/v2/rerank", "/v1/reranking", "/reranking"],
        "VoyageRequest": ["/v1/rerank", "/rerank"],
        "InfinityRequest": ["/infinity/rerank"],
        "NimRequest": ["/v1/ranking", "/v1/retrieval/any/model/reranking"],
        "TextScoreRequest": ["/v1/score", "/score"],
        "QueryScoreRequest": ["/v1/score", "/score"],
    }
    posted = 0
    for name, each in schemas.items():
        for example in each.get("examples", []):
            for path in taken[name]:
                assert client.post(path, json=example).status_code == 200
                posted += 1
    assert posted == sum(map(len, taken.values()))


_MORE = {"explain": "sentences", "return_judged_text": True}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/rerank", {"documents": DOCUMENTS, "top_k": 9, **_MORE}),
        (
            "/v1/rerank",
            {"documents": [{"text": DOCUMENTS[0], "n": None}, *DOCUMENTS], "return_documents": True, **_MORE},
        ),
        ("/v1/rerank", {"documents": ["long " * 40], "max_tokens_per_doc": 5, "max_chunks_per_doc": 3}),
        ("/v1/rerank", {"documents": DOCUMENTS, "top_k": 2, "truncation": True, "return_documents": True}),
        ("/rerank", {"texts": DOCUMENTS, "return_text": True}),
        ("/infinity/rerank", {"documents": DOCUMENTS, "return_documents": True, "return_judged_text": True}),
        ("/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}),
        ("/v1/score", {"query": None, "text_1": QUERY, "text_2": DOCUMENTS}),
    ],
)
def test_answers_have_the_fields_of_their_models_and_no_others(
    path: str, fields: dict[str, object], client: httpx.Client
) -> None:
    """Answers are made of plain dicts; models describe them."""
    body = {name: value for name, value in {"query": QUERY, **fields}.items() if value is not None}
    answer = client.post(path, json=body).raise_for_status().json()
    shapes = [shape for module in routes.modules() for shape in getattr(module, "SHAPES", ()) if path in shape.paths]
    fitting = [shape for shape in shapes if body.keys() <= shape.request.model_fields.keys()]
    marked = [shape for shape in fitting if (shape.paths[path] or frozenset()) & body.keys()]
    shape = (marked or [each for each in fitting if each.paths[path] is None])[0]
    described = TypeAdapter(shape.answer).validate_python(answer)
    assert TypeAdapter(shape.answer).dump_python(described, mode="json", exclude_none=True) == answer


def test_every_route_of_the_document_is_documented(client: httpx.Client) -> None:
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
    described = client.get("/openapi.json").json()
    assert json.dumps(described)
    for path in described["paths"]:
        assert f"`{path}`" in text or f" {path}`" in text, path


def test_a_module_is_all_that_a_wire_shape_takes(client: httpx.Client, reranker: Reranker, tmp_path: Path) -> None:
    """A shape in a module of its own: found, described, validated and told apart from others on the same route."""
    source = tmp_path / "shouting.py"
    source.write_text(
        """
from pydantic import BaseModel
from qwen3_ranker_plugins.server.fields import WireRequest
from qwen3_ranker_plugins.server.shapes import Shape
from qwen3_ranker_plugins.types import Request

class ShoutingRequest(WireRequest):
    QUESTION: str
    TEXTS: list[str]

class ShoutingAnswer(BaseModel):
    BEST: int

async def respond(exchange, body):
    ranked = await exchange.rank(Request(body.QUESTION, body.TEXTS))
    return ShoutingAnswer(BEST=ranked.result[0].index)

SHAPES = [Shape("shouting", ShoutingRequest, ShoutingAnswer, {"/rerank": frozenset({"QUESTION"})}, respond)]
"""
    )
    spec = importlib.util.spec_from_file_location(f"{routes.__name__}.shouting", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = routes.modules
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "modules", lambda: [*found(), module])
        with serving() as running, running.client() as own:
            answer = own.post("/rerank", json={"QUESTION": QUERY, "TEXTS": DOCUMENTS})
            assert answer.json() == {"BEST": reranker.rerank(QUERY, DOCUMENTS)[0].index}
            assert own.post("/rerank", json={"QUESTION": QUERY}).json()["error"]["param"] == "TEXTS"
            assert own.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS}).status_code == 200
            assert "ShoutingRequest" in own.get("/openapi.json").json()["components"]["schemas"]
    assert client.post("/rerank", json={"QUESTION": QUERY, "TEXTS": DOCUMENTS}).status_code == 422
