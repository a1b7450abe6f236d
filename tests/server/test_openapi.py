"""A fuzzer over the OpenAPI document: whatever it sends, the server answers as described and never with 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from qwen3_ranker_plugins import Reranker

from .conftest import Running, serving

# Inside the fuzzer, not ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def fuzzed(reranker: Reranker) -> Iterator[Running]:
    with serving() as running:
        yield running


def test_answers_are_as_described(fuzzed: Running) -> None:
    """Valid requests and broken ones; the answers are compared with the document."""
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    seen: set[int] = set()

    def check(case: schemathesis.Case) -> None:
        # That there are as many queries as documents is nothing that a schema can say.
        excluded = [positive_data_acceptance] if case.path == "/v1/score" else []
        response = case.call_and_validate(excluded_checks=excluded)
        seen.add(response.status_code)
        assert response.status_code < 500
        if response.status_code >= 400:
            body = response.json()
            assert set(body) == {"error", "detail"}
            assert set(body["error"]) == {"type", "message", "request_id", "param"}

    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 11
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
    routes = {
        "PlainRequest": ["/rerank"],
        "TeiRequest": ["/rerank"],
        "RerankRequest": ["/rerank", "/v1/rerank", "/v2/rerank"],
        "TextScoreRequest": ["/v1/score"],
        "QueryScoreRequest": ["/v1/score"],
    }
    posted = 0
    for name, each in schemas.items():
        for example in each.get("examples", []):
            for path in routes[name]:
                assert client.post(path, json=example).status_code == 200
                posted += 1
    assert posted >= 7


def test_every_route_of_the_document_is_documented(client: httpx.Client) -> None:
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
    described = client.get("/openapi.json").json()
    assert json.dumps(described)
    for path in described["paths"]:
        assert f"`{path}`" in text or f" {path}`" in text, path
