"""Rules that hold for the rankers of all frameworks, as tests to inherit: a subclass says how calls are written."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from qwen3_ranker_plugins import Reranker

QUERY = "which statement closes a file?"
TEXTS = (
    "A list is a mutable sequence, written in square brackets.",
    "The with statement closes the file when its block ends.",
    "A generator yields its values one at a time.",
    "The finally clause runs whether or not an exception was raised.",
    "Bananas are rich in potassium.",
)


class Ranked(NamedTuple):
    """A document as a ranker returned it."""

    id: str
    text: str
    score: float
    metadata: dict[str, Any]


class AdapterRules:
    """Tests of one adapter.

    Attributes:
        fork_program: Python that defines `sync()` and `async asynchronous()`, which return (id, score, metadata) of the
            texts in `texts` as ranked for `QUERY` with `fail_open`, and `load()` and `close()`; all at module level.
        after_forks: Python that runs after the common part, with `in_child(check)` at hand.
    """

    fork_program = ""
    after_forks = ""

    def make(self, limit: int | None = None, **options: Any) -> Any:
        """A ranker with `bundled:tiny`, unless `options` name another model, that returns at most `limit` documents."""
        raise NotImplementedError

    def documents(self, texts: Sequence[str]) -> list[Any]:
        """Documents with the ids "0", "1", ..., scores of a retriever, and the metadata {"topic": {"number": id}}."""
        raise NotImplementedError

    def rank(self, ranker: Any, documents: list[Any], query: str = QUERY) -> list[Any]:
        """As the framework calls it."""
        raise NotImplementedError

    async def arank(self, ranker: Any, documents: list[Any], query: str = QUERY) -> list[Any]:
        """As the framework calls it from async code."""
        raise NotImplementedError

    def read(self, document: Any) -> Ranked:
        """A document that was returned."""
        raise NotImplementedError

    def ranking(self, ranker: Any, query: str = QUERY) -> list[tuple[str, float]]:
        """(id, score) of the five texts."""
        found = map(self.read, self.rank(ranker, self.documents(TEXTS), query))
        return [(each.id, pytest.approx(each.score, abs=1e-5)) for each in found]

    async def aranking(self, ranker: Any, query: str = QUERY) -> list[tuple[str, float]]:
        """`ranking` through the async method."""
        found = map(self.read, await self.arank(ranker, self.documents(TEXTS), query))
        return [(each.id, pytest.approx(each.score, abs=1e-5)) for each in found]

    def test_scores_are_those_of_the_core_and_in_order(self, core: Reranker) -> None:
        expected = core.rerank(QUERY, TEXTS)
        ranked = [self.read(each) for each in self.rank(self.make(), self.documents(TEXTS))]
        assert [(each.id, each.text) for each in ranked] == [(str(hit.index), hit.document) for hit in expected]
        for each, hit in zip(ranked, expected, strict=True):
            assert each.score == pytest.approx(hit.score, abs=1e-5)
            assert each.metadata["qwen3_margin"] == pytest.approx(hit.margin, abs=1e-4)
            assert each.metadata["qwen3_confidence"] == pytest.approx(hit.confidence, abs=1e-4)
            assert each.metadata["qwen3_truncated_tokens"] == 0
            assert each.metadata["topic"] == {"number": each.id}

    async def test_explanations_are_in_the_metadata(self, core: Reranker) -> None:
        texts = [*TEXTS[:3], "A list holds items. The with statement closes a file."]
        expected = core.rerank(QUERY, texts, explain="sentences")
        ranker = self.make(explain="sentences")
        for ranked in (self.rank(ranker, self.documents(texts)), await self.arank(ranker, self.documents(texts))):
            for each, hit in zip(map(self.read, ranked), expected, strict=True):
                why = hit.explanation
                assert why is not None
                assert why.sentences is not None
                found = json.loads(json.dumps(each.metadata["qwen3_explanation"]))
                assert found.pop("sentences") == [
                    {
                        "text": hit.document[sentence.start : sentence.end],
                        "contribution": pytest.approx(sentence.contribution, abs=1e-3),
                    }
                    for sentence in why.sentences
                ]
                assert found == {
                    "prompt": why.prompt,
                    "prompt_tokens": why.prompt_tokens,
                    "judged": hit.document,
                    "rank": why.rank,
                    "rank_before": why.rank_before,
                }
        again = self.rank(self.make(), ranked)  # without an explanation: the old one is no longer true
        assert not any("qwen3_explanation" in self.read(each).metadata for each in again)
        [only] = self.rank(self.make(limit=1, explain=True), self.documents(texts))
        assert "sentences" not in self.read(only).metadata["qwen3_explanation"]

    def test_order_does_not_depend_on_the_order_given(self) -> None:
        ranker = self.make()
        ranked = self.rank(ranker, self.documents(TEXTS)[::-1])
        assert [(each.id, each.score) for each in map(self.read, ranked)] == self.ranking(ranker)

    @pytest.mark.parametrize("limit", [1, 2, 99])
    def test_a_limit_takes_the_beginning(self, limit: int) -> None:
        assert self.ranking(self.make(limit)) == self.ranking(self.make())[:limit]

    def test_nothing_in_nothing_out_without_loading_a_model(self) -> None:
        assert list(self.rank(self.make(), [])) == []
        assert list(asyncio.run(self.arank(self.make(), []))) == []

    def test_nothing_is_shared_with_the_input(self) -> None:
        documents, ranker = self.documents(TEXTS), self.make()
        before = copy.deepcopy(documents)
        for each in [*self.rank(ranker, documents), *asyncio.run(self.arank(ranker, documents))]:
            self.read(each).metadata["topic"]["number"] = -1
        assert documents == before

    def test_async_gives_what_sync_gives_in_one_loop_after_another(self) -> None:
        ranker = self.make()
        expected = self.ranking(ranker)
        for _ in range(2):
            assert asyncio.run(self.aranking(ranker)) == expected

    async def test_concurrent_calls_do_not_mix(self) -> None:
        ranker = self.make()
        queries = [QUERY, "what is a list?", "which fruit is healthy?"] * 3
        expected = [self.ranking(ranker, query) for query in queries]
        assert await asyncio.gather(*(self.aranking(ranker, query) for query in queries)) == expected
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda query: self.ranking(ranker, query), queries)) == expected

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_what_was_used_before_a_fork_loads_again_in_the_child(self) -> None:
        """As under a preloading server; `fail_open` hides nothing. In a process without pytest's threads."""
        # One thread is enough for a model this small. It is not torch.set_num_threads(1): torch cannot be used after a
        # fork from a process that called that ("Invalid thread pool!").
        done = subprocess.run(
            [sys.executable, "-c", _BEFORE_FORKS + self.fork_program + _FORKS + self.after_forks + "\nclose()\n"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def test_no_rule_is_overridden(self) -> None:
        rules = {name: rule for name, rule in vars(AdapterRules).items() if name.startswith("test_")}
        assert [name for name, rule in rules.items() if getattr(type(self), name) is not rule] == []


_BEFORE_FORKS = """
import asyncio, multiprocessing, os, signal, sys, threading, time
QUERY, texts = "how is a file closed?", ["A list.", "The with statement closes a file."]
"""

_FORKS = """
def ranking(_=None):
    signal.alarm(100)  # a child that hangs ends
    ranked, ranked_async = sync(), asyncio.run(asynchronous())
    assert not any("qwen3_failed" in metadata for _, _, metadata in ranked + ranked_async)
    assert [name for name, _, _ in ranked] == [name for name, _, _ in ranked_async]
    return [(name, round(score, 4)) for name, score, _ in ranked]

def in_child(check):
    pid = os.fork()
    if pid == 0:
        try:
            check()
            os._exit(0)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0

def equal():
    assert ranking() == expected

load()
expected = ranking()
assert len(expected) == 2
in_child(equal)
with multiprocessing.get_context("fork").Pool(2) as pool:  # as celery's
    assert pool.map(ranking, range(4)) == [expected] * 4
in_child(lambda: in_child(equal))  # a child of a child

# Forked while another thread loads: that thread, which holds the lock, does not exist in the child.
for delay in (0.0, 0.01, 0.05):
    close()
    loading = threading.Thread(target=load)
    loading.start()
    time.sleep(delay)
    in_child(equal)
    loading.join()
assert ranking() == expected  # nothing was taken from the parent
"""
