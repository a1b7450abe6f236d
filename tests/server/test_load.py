"""Many at once: none lost, none wrong, and the queue's limit is kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import httpx
import numpy as np
import pytest

from qwen3_ranker_plugins import Request, Reranker

from .conftest import Running, serving

WORDS = "file with open close yeast bread tiger asia python block statement garbage flour water handle".split()


def _requests(count: int, documents: int) -> list[Request]:
    """Different queries with different documents, so that no answer fits another request."""
    rng = np.random.default_rng(7)
    return [
        Request(
            f"query {number} {' '.join(rng.choice(WORDS, 3))}",
            [f"{' '.join(rng.choice(WORDS, rng.integers(2, 12)))} {number}" for _ in range(rng.integers(1, documents))],
        )
        for number in range(count)
    ]


async def _post_all(url: str, requests: list[Request]) -> list[httpx.Response]:
    """Twenty requests share a client: httpx searches all connections of a client for each request."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=280, verify=False))  # noqa: S501
            for _ in range(0, len(requests), 20)
        ]
        return await asyncio.gather(
            *(clients[number // 20].post(
                "/rerank", json={"query": each.query, "documents": [*each.documents], "top_k": 100}
              ) for number, each in enumerate(requests))
        )  # fmt: skip


def test_five_hundred_at_once_are_all_answered_and_all_right(reranker: Reranker) -> None:
    """With the short template, since most of the tokens would be those of the instruction."""
    short = {"template": "compact"}
    with serving(max_wait=280, **short) as server, Reranker("bundled:tiny", **short) as same_engine:
        _check_five_hundred(server, same_engine)


def _check_five_hundred(server: Running, reranker: Reranker) -> None:
    requests = _requests(500, documents=4)
    passes = server.metric("pass_requests_count")
    answers = asyncio.run(_post_all(server.url, requests))
    passes = server.metric("pass_requests_count") - passes
    assert Counter(answer.status_code for answer in answers) == {200: 500}
    expected = reranker.score_many(requests)
    for request, answer, scores in zip(requests, answers, expected, strict=True):
        body = answer.json()
        assert body["query"] == request.query
        ranked = {each["index"]: each for each in body["ranked_documents"]}
        assert [ranked[index]["document"] for index in range(len(ranked))] == list(request.documents)
        assert [ranked[index]["relevance_score"] for index in range(len(ranked))] == pytest.approx(
            scores.tolist(), abs=1e-5
        )
    assert passes < 250, "requests shared forward passes"
    assert server.state.admission.requests == server.state.bodies.held == 0


def test_what_exceeds_the_queue_is_refused_and_the_rest_is_right(reranker: Reranker) -> None:
    requests = _requests(120, documents=6)
    with serving(max_queue_documents=60) as running:
        most = 0

        async def watched() -> list[httpx.Response]:
            nonlocal most
            work = asyncio.create_task(_post_all(running.url, requests))
            while not work.done():
                most = max(most, running.state.admission.documents)
                await asyncio.sleep(0.001)
            return await work

        answers = asyncio.run(watched())
        refused = [answer for answer in answers if answer.status_code == 503]
        assert {answer.status_code for answer in answers} == {200, 503}
        assert 0 < most <= 60
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert all(answer.json()["error"]["type"] == "queue_full" for answer in refused)
        for request, answer in zip(requests, answers, strict=True):
            if answer.status_code == 200:
                scores = {each["index"]: each["relevance_score"] for each in answer.json()["ranked_documents"]}
                expected = reranker.score(request.query, request.documents)
                assert [scores[index] for index in range(len(expected))] == pytest.approx(expected.tolist(), abs=1e-5)
