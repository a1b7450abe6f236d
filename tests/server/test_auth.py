"""Keys: who is let in, and that nothing but what probes ask is open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.server.auth import KeyRing
from qwen3_ranker_plugins.server.settings import load_settings

from .conftest import DOCUMENTS, QUERY, Running, serving

KEYS = ("first-key-0123456789", "second-key-0123456789")


@pytest.fixture(scope="module")
def guarded(reranker: Reranker) -> Iterator[Running]:
    with serving(keys=KEYS) as running:
        yield running


def test_every_route_but_those_of_probes_asks_for_a_key(guarded: Running) -> None:
    with guarded.client() as client:
        schema = client.get("/openapi.json", headers={"Authorization": f"Bearer {KEYS[0]}"}).json()
        routes = [(method, path) for path, methods in schema["paths"].items() for method in methods]
        assert len(routes) >= 11
        others = [
            "/openapi.json",
            "/docs",
            "/nothing",
            "//health",
            "/health/",
            "/HEALTH",
            "/health%2f..",
            "/ready/",
            "/ready%2f..",
            "//ping",
        ]
        for method, path in [*routes, ("options", "/rerank"), *(("get", other) for other in others)]:
            answer = client.request(method, path.replace("{", "").replace("}", ""))
            if path in {"/health", "/ready", "/ping"}:
                assert answer.status_code == 200
                continue
            assert answer.status_code == 401, path
            assert answer.json()["error"]["type"] == "unauthorized"
            assert "Bearer" in answer.headers["WWW-Authenticate"]


def test_health_shows_details_to_those_who_have_a_key(guarded: Running) -> None:
    with guarded.client() as client:
        assert client.get("/health").json() == {"status": "healthy", "model_loaded": True}
        assert client.get("/health", headers={"X-API-Key": "wrong"}).json().keys() == {"status", "model_loaded"}
        known = client.get("/health", headers={"X-API-Key": KEYS[0]}).json()
    assert known["status"] == "healthy"
    assert known["replicas"][0]["state"] == "running"


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens_in_each_way(key: str, guarded: Running) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    with guarded.client() as client:
        for options in (
            {"headers": {"Authorization": f"Bearer {key}"}},
            {"headers": {"Authorization": f"bearer  {key}"}},
            {"headers": {"X-API-Key": key}},
            {"auth": ("anybody", key)},
            # A proxy may send an Authorization of its own: one valid key is enough.
            {"headers": {"X-API-Key": key, "Authorization": "Basic !!!"}},
            {"headers": {"X-API-Key": key, "Authorization": "nonsense"}},
            {"headers": {"X-API-Key": "wrong", "Authorization": f"Bearer {key}"}},
        ):
            assert client.post("/v1/rerank", json=body, **options).status_code == 200  # type: ignore[arg-type]
        assert client.get("/", auth=("", key)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""}, {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {KEYS[0][:-1]}"}, {"Authorization": f"Bearer {KEYS[0]}x"},
        {"Authorization": KEYS[0]}, {"Authorization": "Basic !!!"}, {"Authorization": "Basic"}, {"X-API-Key": ""},
        {"Authorization": f"Bearer {KEYS[0]},{KEYS[1]}"}, {"Cookie": KEYS[0]},
        {"Authorization": "Basic !!!", "X-API-Key": "wrong"}, {"Authorization": "Basic !!!", "X-API-Key": ""},
    ],
)  # fmt: skip
def test_nothing_else_opens(headers: dict[str, str], guarded: Running) -> None:
    answer = httpx.post(f"{guarded.url}/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}, headers=headers)
    assert answer.status_code == 401
    assert all(key not in answer.text for key in KEYS)


def test_a_body_without_a_key_is_not_read(guarded: Running) -> None:
    answer = httpx.post(f"{guarded.url}/v1/rerank", content=b"{" * 1000, headers={"Content-Type": "application/json"})
    assert answer.status_code == 401


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# the team's\n{KEYS[0]}\n\n")
    monkeypatch.setenv("QWEN3_RANKER_API_KEYS", f"{KEYS[1]},\nthird-key")
    configuration = load_settings(None, {"api_key_file": file})
    assert configuration.api_keys == (KEYS[0], KEYS[1], "third-key")
    shown = configuration.dump() + repr(configuration)
    assert not any(key in shown for key in configuration.api_keys)
    assert "3 (hidden)" in shown
    ring = KeyRing(configuration.api_keys)
    assert not any(key in repr(vars(ring)) for key in configuration.api_keys)


def test_a_source_of_keys_without_a_key_does_not_open_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(InvalidInputError, match="holds no key"):
        load_settings(None, {"api_key_file": tmp_path / "keys"})
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_settings(None, {"api_key_file": tmp_path / "missing"})
    monkeypatch.setenv("QWEN3_RANKER_API_KEYS", " ")
    with pytest.raises(InvalidInputError, match="holds no key"):
        load_settings(None, {})
    monkeypatch.setenv("QWEN3_RANKER_API_KEYS", "schlüssel")
    with pytest.raises(InvalidInputError, match="printable ASCII"):
        load_settings(None, {})
