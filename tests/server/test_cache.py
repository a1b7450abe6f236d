"""A server with a cache of scores: equal answers, and what /health and /metrics say of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.server.settings import load_settings

from .conftest import DOCUMENTS, QUERY, serving, wait_until


def test_answers_from_the_cache(reranker: Reranker) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    with serving(cache="1MB") as running, running.client() as client:
        probed = running.metric("cache_misses_total")
        first, again = (client.post("/v1/rerank", json=body).json() for _ in range(2))
        assert again["results"] == first["results"]
        assert again["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]
        assert again["usage"]["computed_tokens"] == 0 < first["usage"]["computed_tokens"]
        assert client.post("/v1/rerank", json=body | {"truncation": False}).json()["results"] == first["results"]
        assert running.metric("cache_hits_total") == 2 * len(DOCUMENTS)
        assert probed == 0  # probes ask the engine
        assert running.metric("cache_misses_total") == running.metric("cache_entries") == len(DOCUMENTS)
        assert 0 < running.metric("cache_bytes") <= running.metric("cache_limit_bytes") == 10**6
        assert "10 hits" in client.get("/health").json()["engine_facts"]["cache"]


def test_a_file_that_fails_is_reported(reranker: Reranker, tmp_path: Path) -> None:
    path, body = tmp_path / "scores.cache", {"query": QUERY, "documents": DOCUMENTS}
    with serving(cache_path=str(path)) as running, running.client() as client:
        expected = client.post("/v1/rerank", json=body).json()
        wait_until(lambda: running.metric("cache_entries") == len(DOCUMENTS))
        assert "cache_failed 0.0" in client.get("/metrics").text
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DROP TABLE scores")
        answer = client.post("/v1/rerank", json=body).json()
        assert [each["index"] for each in answer["results"]] == [each["index"] for each in expected["results"]]
        assert answer["usage"]["computed_tokens"] == expected["usage"]["computed_tokens"]
        health = client.get("/health")
        assert health.status_code == 200, "answers do not need the cache"
        said = health.json()["engine_facts"]["cache"]
        assert said.startswith(f"failed, all scores are computed: no such table: scores ({path}); 0 hits, 10 misses")
        assert "cache_failed 1.0" in client.get("/metrics").text
        assert running.metric("cache_entries") == running.metric("cache_bytes") == 0


def test_a_server_without_a_cache_says_nothing_of_one(reranker: Reranker) -> None:
    with serving() as running, running.client() as own:
        assert "cache_hits" not in own.get("/metrics").text
        assert "cache" not in own.get("/health").json()["engine_facts"]


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("cache: 256MB\ncache_path: scores.cache\n", encoding="utf-8")
    settings = load_settings(file, {}).settings
    assert (settings.cache, settings.cache_path) == (256 * 10**6, "scores.cache")
    assert settings.reranker_settings().cache == 256 * 10**6
    monkeypatch.setenv("QWEN3_RANKER_CACHE", "1GiB")
    assert load_settings(file, {}).settings.cache == 2**30
    assert load_settings(file, {"cache": "5kB"}).settings.cache == 5000
    with pytest.raises(InvalidInputError, match="cache"):
        load_settings(file, {"cache": "much"})
