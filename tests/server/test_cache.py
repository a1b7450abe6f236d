"""A server with a cache of scores: equal answers, and what /health and /metrics say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.server.settings import load_settings

from .conftest import DOCUMENTS, QUERY, serving


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
