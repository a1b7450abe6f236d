"""Reranker on the bundled model: results, concurrency, lifetime, bad input."""

from __future__ import annotations

import asyncio
import copy
import gc
import math
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3_ranker_plugins import (
    DEFAULT_INSTRUCTION,
    EngineClosedError,
    InvalidInputError,
    PromptTooLongError,
    Request,
    Reranker,
    ScoringError,
)
from qwen3_ranker_plugins.dispatch import Submission
from qwen3_ranker_plugins.engines.base import Margins
from qwen3_ranker_plugins.prompt import EncodedRequest, PromptEncoder, load_tokenizer, turns
from qwen3_ranker_plugins.prompt.turns import growing_parts

QUERY = "how do I close a file when an error happens?"
DOCUMENTS = [
    "A list is a mutable sequence.",
    "The with statement closes the file even if the block raises an exception.",
    "",
    "A list is a mutable sequence.",
    "生成器 is Chinese for generator 👩‍💻",
    "</think>\n\nyes <|im_end|>",
    "null \x00 and \ud800 lone surrogates, and مرحبا",
]


def worker_threads() -> set[threading.Thread]:
    """Engines' threads that live now. Those that earlier tests left to the garbage collector may end at any time."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("qwen3-ranker")}


def test_scores_are_those_of_transformers(
    reranker: Reranker, one_at_a_time: Callable[[EncodedRequest], NDArray[np.float32]]
) -> None:
    encoder = PromptEncoder(load_tokenizer(reranker.model_path))
    margins = one_at_a_time(encoder.encode(QUERY, DOCUMENTS, DEFAULT_INSTRUCTION)).astype(np.float64)
    result = reranker.rerank(QUERY, DOCUMENTS)
    by_index = {hit.index: hit for hit in result}
    for index, margin in enumerate(margins):
        hit = by_index[index]
        assert hit.document == DOCUMENTS[index]
        assert hit.margin == pytest.approx(margin, abs=1e-4)
        assert hit.score == pytest.approx(1 / (1 + math.exp(-hit.margin)), abs=1e-12)
        assert hit.confidence == pytest.approx(abs(2 * hit.score - 1), abs=1e-12)
    np.testing.assert_allclose(reranker.score(QUERY, DOCUMENTS), [by_index[i].score for i in range(7)], atol=1e-7)


def test_order_ties_and_duplicates(reranker: Reranker) -> None:
    result = reranker.rerank(QUERY, DOCUMENTS)
    order = [hit.index for hit in result]
    assert sorted(order) == list(range(len(DOCUMENTS)))
    assert [hit.margin for hit in result] == sorted((hit.margin for hit in result), reverse=True)
    assert order.index(3) == order.index(0) + 1, "equal texts have equal margins and keep their order"
    assert result[order.index(0)].margin == result[order.index(3)].margin


def test_usage(reranker: Reranker) -> None:
    encoder = PromptEncoder(load_tokenizer(reranker.model_path))
    encoded = encoder.encode(QUERY, DOCUMENTS, DEFAULT_INSTRUCTION)
    usage = reranker.rerank(QUERY, DOCUMENTS).usage
    assert usage.documents == 7
    assert usage.prompt_tokens == sum(len(encoded.prompt(i)) for i in range(7))
    assert usage.computed_tokens == len(encoded.prefix) + sum(len(encoded.segments[i]) for i in range(7) if i != 3)
    assert usage.shared_tokens == usage.prompt_tokens - usage.computed_tokens
    assert usage.seconds > 0


def test_top_k_and_thresholds(reranker: Reranker) -> None:
    everything = reranker.rerank(QUERY, DOCUMENTS)
    assert reranker.rerank(QUERY, DOCUMENTS, top_k=2).hits == everything.hits[:2]
    assert reranker.rerank(QUERY, DOCUMENTS, top_k=100).hits == everything.hits
    limit = everything[2].score
    kept = reranker.rerank(QUERY, DOCUMENTS, score_threshold=limit)
    assert kept.hits == tuple(hit for hit in everything if hit.score >= limit)
    assert 3 <= len(kept) < 7
    confident = sorted(hit.confidence for hit in everything)[3]
    kept = reranker.rerank(QUERY, DOCUMENTS, min_confidence=confident)
    assert kept.hits == tuple(hit for hit in everything if hit.confidence >= confident)
    assert reranker.rerank(QUERY, DOCUMENTS, score_threshold=1.0).hits == ()


def test_min_confidence_that_drops_a_likely_relevant_document_is_reported_once(
    reranker: Reranker, caplog: pytest.LogCaptureFixture
) -> None:
    query, documents = "what is the capital of France?", ["Paris is the capital of France.", *DOCUMENTS]
    best, *others = reranker.rerank(query, documents)
    assert best.score > 0.5
    assert best.confidence < 0.9999
    for _ in range(2):
        assert best not in reranker.rerank(query, documents, min_confidence=0.9999)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("min_confidence=0.9999 dropped a document with a score of at least 0.5: ")
    assert record.message.endswith("To drop irrelevant documents, use score_threshold")
    caplog.clear()
    worst = min(others, key=lambda hit: hit.score)
    assert worst.confidence < 0.9998
    reranker.rerank(query, documents, min_confidence=0.9998, score_threshold=best.score)  # the others would go anyway
    reranker.rerank(query, [worst.document], min_confidence=0.9998)  # it is not likely relevant
    assert len(caplog.records) == 1
    reranker.rerank(query, [worst.document], min_confidence=0.9998, score_threshold=worst.score / 2)
    assert len(caplog.records) == 2


def test_configured_defaults_and_overrides() -> None:
    with Reranker("bundled:tiny", top_k=1, instruction="Find the Python documentation") as configured:
        first = configured.rerank(QUERY, DOCUMENTS)
        assert len(first) == 1
        assert len(configured.rerank(QUERY, DOCUMENTS, top_k=3)) == 3
        default = configured.rerank(QUERY, DOCUMENTS, top_k=7, instruction=DEFAULT_INSTRUCTION)
        assert {hit.index: hit.margin for hit in default}[first[0].index] != first[0].margin


def test_truncation_is_reported(reranker: Reranker) -> None:
    with Reranker("bundled:tiny", max_length=200) as short:
        result = short.rerank(QUERY, ["word " * 500, "short"])
        cut = {hit.index: hit.truncated_tokens for hit in result}
        assert cut[1] == 0
        assert cut[0] > 300
        assert result.usage.prompt_tokens < 400


def test_rerank_many_equals_one_by_one(reranker: Reranker) -> None:
    requests = [
        Request(QUERY, DOCUMENTS),
        Request("q", []),
        Request("what is a list?", DOCUMENTS[:2], instruction="Answer the question"),
    ]
    together = reranker.rerank_many(requests, top_k=3)
    for request, result in zip(requests, together, strict=True):
        alone = reranker.rerank(request.query, request.documents, 3, instruction=request.instruction)
        assert [hit.index for hit in result] == [hit.index for hit in alone]
        np.testing.assert_allclose([hit.margin for hit in result], [hit.margin for hit in alone], atol=1e-4)


def test_score_many_ignores_what_is_configured_for_rankings(reranker: Reranker) -> None:
    with Reranker("bundled:tiny", top_k=1, score_threshold=1.0) as limited:
        first, nothing = limited.score_many([Request(QUERY, DOCUMENTS), Request("q", [])])
    np.testing.assert_allclose(first, reranker.score(QUERY, DOCUMENTS), atol=1e-5)
    assert nothing.shape == (0,)


def test_each_of_many_requests_has_its_own_time(reranker: Reranker) -> None:
    requests = [Request("q", [f"{n} word " * 200 for n in range(12)]), Request("q", ["d"])]
    started = time.perf_counter()
    results = reranker.rerank_many(requests)
    elapsed = time.perf_counter() - started
    assert all(0 < result.usage.seconds < elapsed for result in results)
    assert [result.usage.documents for result in results] == [12, 1]


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))],  # noqa: S301 - our own bytes
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_have_the_same_settings_and_share_the_engine(duplicate: Callable[[Reranker], Reranker]) -> None:
    with Reranker("bundled:tiny", token_budget=1234, instruction="Find jokes", top_k=2) as original:
        before = worker_threads()
        with duplicate(original) as other:
            assert not worker_threads() - before
            assert other.rerank(QUERY, DOCUMENTS).hits == original.rerank(QUERY, DOCUMENTS).hits


def test_nothing_in_nothing_out(reranker: Reranker) -> None:
    assert list(reranker.rerank("q", [])) == []
    assert list(reranker.rerank("word " * 9000, [])) == []
    assert reranker.score("q", []).shape == (0,)
    assert reranker.score("q", []).dtype == np.float32
    assert asyncio.run(reranker.ascore("q", [])).shape == (0,)


def test_small_token_budget_gives_the_same_scores(reranker: Reranker) -> None:
    documents = [f"document number {n} " * (n % 13 + 1) for n in range(100)]
    with Reranker("bundled:tiny", token_budget=150) as split:
        np.testing.assert_allclose(split.score(QUERY, documents), reranker.score(QUERY, documents), atol=1e-5)


# --- concurrency -------------------------------------------------------------------------------------------------


def test_fifty_threads_at_once(reranker: Reranker) -> None:
    work = [(f"query {n}", [f"document {n} {m} " * (m + 1) for m in range(n % 5 + 1)]) for n in range(50)]
    alone = [reranker.score(*each) for each in work]
    with ThreadPoolExecutor(50) as pool:
        together = list(pool.map(lambda each: reranker.score(*each), work))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_two_event_loops_in_a_row_and_many_tasks(reranker: Reranker) -> None:
    expected = reranker.score(QUERY, DOCUMENTS)

    async def gather() -> list[NDArray[np.float32]]:
        return await asyncio.gather(*(reranker.ascore(QUERY, DOCUMENTS) for _ in range(20)))

    for _ in range(2):
        for scores in asyncio.run(gather()):
            np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_event_loops_in_several_threads(reranker: Reranker) -> None:
    def in_thread(_: int) -> list[int]:
        return [hit.index for hit in asyncio.run(reranker.arerank(QUERY, DOCUMENTS))]

    with ThreadPoolExecutor(8) as pool:
        orders = list(pool.map(in_thread, range(16)))
    assert all(order == orders[0] for order in orders)


async def test_the_event_loop_is_free_while_a_pass_runs(reranker: Reranker) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await reranker.ascore(QUERY, [f"a document of some length, number {n} " * 20 for n in range(40)])
    ticking.cancel()
    assert ticks > 10


async def test_cancelled_and_timed_out_calls_leave_the_reranker_usable(reranker: Reranker) -> None:
    documents = [f"a document of some length, number {n} " * 20 for n in range(400)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reranker.arerank(QUERY, documents), timeout=0.3)
    task = asyncio.create_task(reranker.ascore(QUERY, documents))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    scores = await asyncio.wait_for(reranker.ascore(QUERY, DOCUMENTS), timeout=60)
    assert scores.shape == (7,)


def test_a_long_request_handed_over_in_parts_has_the_same_result(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for an engine on a GPU: the rest is encoded while the first documents are scored."""
    engine = reranker._lease.engine
    documents = [f"document {n} of many" + " that is long" * (n % 5) for n in range(150)]
    documents += [documents[149], documents[0], "x " * 600]
    monkeypatch.setattr(turns, "_LONG_REQUEST", 10_000)
    whole = reranker.rerank(QUERY, documents)
    monkeypatch.setattr(engine, "capabilities", replace(engine.capabilities, encodes_meanwhile=True))
    submitted = []
    queue = reranker._lease.queue

    def counted(submission: Submission, encoded: EncodedRequest, first: int, *, restart: bool) -> None:
        submitted.append(len(encoded.segments))
        queue(submission, encoded, first, restart=restart)

    monkeypatch.setattr(reranker._lease, "queue", counted)
    parts = reranker.rerank(QUERY, documents, show_progress=True)
    assert submitted == [14, 36, 101], "parts grow"
    expected = {hit.index: hit for hit in whole}
    assert len(parts) == len(whole) == len(documents)
    for hit in parts:
        assert hit.margin == pytest.approx(expected[hit.index].margin, abs=1e-4)
        assert hit.truncated_tokens == expected[hit.index].truncated_tokens
    assert parts.usage.prompt_tokens == whole.usage.prompt_tokens
    assert parts.usage.seconds > 0
    np.testing.assert_allclose(
        reranker.score(QUERY, documents), [expected[n].score for n in range(len(documents))], atol=1e-4
    )
    with pytest.raises(PromptTooLongError):
        reranker.rerank("word " * 9000, documents)
    reranker.rerank(QUERY, documents[:75])
    assert submitted[-1] == 75, "not much text"


async def test_a_coroutine_is_encoded_in_parts_too_and_cancelling_it_drops_all_of_them(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, lease = reranker._lease.engine, reranker._lease
    monkeypatch.setattr(engine, "capabilities", replace(engine.capabilities, encodes_meanwhile=True))
    documents = [f"document {n} of many" + " that is long" * (n % 5) for n in range(600)]
    whole = {hit.index: hit.margin for hit in reranker.rerank(QUERY, documents)}
    queued: list[Submission] = []
    second = threading.Event()

    def watched(submission: Submission, encoded: EncodedRequest, first: int, *, restart: bool) -> None:
        queued.append(submission)
        if len(queued) == 2:
            second.set()
            second_may_go_on.wait(60)
        queue(submission, encoded, first, restart=restart)

    queue = lease.queue
    monkeypatch.setattr(lease, "queue", watched)
    second_may_go_on = threading.Event()
    second_may_go_on.set()
    found = await reranker.arerank(QUERY, documents)
    assert len(queued) == 3
    assert {hit.index: hit.margin for hit in found} == pytest.approx(whole, abs=1e-4)
    queued.clear()
    second.clear()
    second_may_go_on.clear()
    task = asyncio.create_task(reranker.ascore(QUERY, documents))
    assert await asyncio.to_thread(second.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    second_may_go_on.set()
    assert (await reranker.ascore(QUERY, DOCUMENTS)).shape == (7,)
    assert len(set(queued)) == 2
    assert queued[0] is queued[1], "the third part was not even encoded"
    assert queued[0].future.cancelled()
    assert not lease._dispatcher._waiting


def test_parts_of_a_long_request() -> None:
    def sizes(texts: list[str]) -> list[int]:
        parts = growing_parts(texts)
        assert [text for part in parts for text in part] == texts
        return [len(part) for part in parts]

    assert sizes([]) == [0]
    assert sizes(["a title of some twenty characters"] * 300) == [300], "not much text"
    assert sizes(["x" * 964] * 100) == [8, 22, 70]
    assert sizes(["x" * 50_000, "y" * 500]) == [1, 1]
    assert sizes(["y" * 500, "x" * 50_000]) == [2], "the text that takes the time comes last"
    assert sizes(["x" * 50_000]) == [1]


def test_requests_that_arrive_together_are_encoded_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them is with the engine before the last is encoded, and a slow one holds nobody up for long."""

    class Watched:
        def __init__(self, encoder: Any, seconds: float) -> None:
            self.encoder, self.seconds, self.inside, self.most = encoder, seconds, 0, 0
            self.counting = threading.Lock()

        def encode(self, *arguments: Any) -> EncodedRequest:
            with self.counting:
                self.inside += 1
                self.most = max(self.most, self.inside)
            time.sleep(self.seconds)
            with self.counting:
                self.inside -= 1
            return self.encoder.encode(*arguments)

    with Reranker("bundled:tiny", token_budget=997) as reranker, ThreadPoolExecutor(4) as pool:
        # A busy machine may need more than the 20 ms of a turn for the first.
        for seconds, together, longest_wait in ((0.001, 1, 30.0), (0.2, 4, turns._LONGEST_WAIT)):
            watched = Watched(reranker._encoder, seconds)
            with monkeypatch.context() as patch:
                patch.setattr(turns, "_LONGEST_WAIT", longest_wait)
                patch.setattr(reranker, "_encoder", watched)
                scores = list(pool.map(lambda n: reranker.score(f"query {n}", ["a", "b"]), range(4)))
            assert watched.most == together
            assert [len(each) for each in scores] == [2] * 4


# --- lifetime ----------------------------------------------------------------------------------------------------


def test_equal_settings_share_an_engine_until_the_last_one_closes() -> None:
    before = worker_threads()
    first = Reranker("bundled:tiny", token_budget=999)
    second = Reranker("bundled:tiny", token_budget=999, device="cpu", dtype="float32")  # what "auto" is without a GPU
    assert len(worker_threads() - before) == 1
    other = Reranker("bundled:tiny", token_budget=998)
    assert len(worker_threads() - before) == 2
    first.close()
    first.close()
    assert second.score("q", ["d"]).shape == (1,)
    with pytest.raises(EngineClosedError, match="closed: make a new one"):
        first.score("q", ["d"])
    with pytest.raises(EngineClosedError):
        asyncio.run(first.arerank("q", ["d"]))
    second.close()
    other.close()
    assert not worker_threads() - before


def test_many_threads_that_start_at_once_load_the_model_once() -> None:
    before = worker_threads()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Reranker("bundled:tiny", token_budget=777), range(8)))
    assert len(worker_threads() - before) == 1
    for each in made:
        each.close()
    assert not worker_threads() - before


def test_a_forgotten_reranker_ends_its_thread() -> None:
    before = worker_threads()
    forgotten = Reranker("bundled:tiny", token_budget=888)
    [worker] = worker_threads() - before
    del forgotten
    gc.collect()
    worker.join(20)  # the collector does not wait for the thread
    assert not worker.is_alive()


@pytest.mark.parametrize(
    "last_line",
    [
        "",
        "del reranker",  # the collector closes it without waiting, and the interpreter must not end meanwhile
        """
from contextlib import suppress
from threading import Thread
from qwen3_ranker_plugins import EngineClosedError
def work():
    with suppress(EngineClosedError):  # what a call gets whose passes have not all run when the interpreter ends
        reranker.score('q', ['d ' * 500] * 99)
Thread(target=work, daemon=True).start()
""",
    ],
    ids=["alive", "collected", "in a pass"],
)
@pytest.mark.slow
def test_a_program_that_forgets_to_close_ends(last_line: str) -> None:
    program = (
        "from qwen3_ranker_plugins import Reranker\n"
        "reranker = Reranker('bundled:tiny')\n"
        "print(len(reranker.rerank('q', ['a', 'b'])))\n"
        f"{last_line}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


@pytest.mark.slow
def test_a_forked_child_can_make_its_own() -> None:
    """With the parent's reranker alive: the child must not be handed the parent's engine, whose thread it lacks."""
    program = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking a process with threads is what this is about
from qwen3_ranker_plugins import EngineClosedError, Reranker
parent = Reranker("bundled:tiny")
child = os.fork()
if child == 0:
    try:
        parent.score("q", ["d"])
    except EngineClosedError:
        own = Reranker("bundled:tiny")
        os._exit(0 if own.score("q", ["d"]).shape == (1,) else 2)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert parent.score("q", ["d"]).shape == (1,)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits its address space by what /proc says")
def test_out_of_memory_says_what_to_lower_and_the_next_call_works() -> None:
    program = """
import resource
from qwen3_ranker_plugins import EngineError, Reranker
documents = [f"{number} " + "a " * 1000 for number in range(60)]  # few characters, so that they are encoded in one turn
with Reranker("bundled:tiny", device="cpu", dtype="float32", token_budget=100_000) as reranker:
    reranker.score("q", documents[:2])
    pages = int(open("/proc/self/statm").read().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 100 * 2**20, hard))
    try:
        reranker.score("q", documents)
    except EngineError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    print(reranker.score("q", documents[:2]).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    message, works = done.stdout.splitlines()
    assert message.startswith("out of memory on cpu with 6")
    assert "lower token_budget (now 100000)" in message
    assert works == "(2,)"


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": ""}, "query=''"),
        ({"query": "  \n"}, "query='  "),
        ({"query": None}, "query=None: needs a string"),
        ({"query": b"bytes"}, "query=b'bytes'"),
        ({"documents": "one string"}, "documents='one string': needs a list"),
        ({"documents": None}, "documents=None"),
        ({"documents": ["fine", None]}, "documents[1]=None: needs a string, not NoneType"),
        ({"documents": ["fine", 3.5]}, "documents[1]=3.5"),
        ({"top_k": 0}, "top_k=0: use a positive integer"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"top_k": True}, "top_k=True"),
        ({"score_threshold": -0.1}, "score_threshold=-0.1: use a number from 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold=nan"),
        ({"min_confidence": 1.5}, "min_confidence=1.5"),
        ({"min_confidence": "high"}, "min_confidence='high'"),
        ({"instruction": ""}, "instruction=''"),
        ({"instruction": 5}, "instruction=5"),
    ],
)
def test_bad_calls(reranker: Reranker, arguments: dict[str, Any], message: str) -> None:
    call = {"query": "q", "documents": ["d"]} | arguments
    with pytest.raises(InvalidInputError) as caught:
        reranker.rerank(**call)
    assert message in str(caught.value)
    with pytest.raises(InvalidInputError):
        asyncio.run(reranker.arerank(**call))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "warp"}, "engine='warp': use one of auto, packed"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"device": "cuda:99"}, "device='cuda:99'"),
        ({"dtype": "int3"}, "dtype='int3': use one of auto, float32"),
        ({"template": "fancy"}, "template='fancy': give one of standard"),
        ({"template": "{query} {document} {score}"}, "unknown field {score}"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": None}, "max_length=None"),
        ({"token_budget": -5}, "token_budget=-5"),
        ({"engine_options": {"warp": 9}}, "engine_options['warp']=9: engine 'packed' has no such option"),
        ({"engine_options": ["warp"]}, "engine_options=['warp']: use a mapping"),
        ({"engine_options": {"warp": {1}}}, "use values that JSON can write"),
        ({"top_k": 0}, "top_k=0"),
        ({"score_threshold": -1}, "score_threshold=-1"),
        ({"instruction": " "}, "instruction=' '"),
        ({"model": ""}, "model=''"),
        ({"model": None}, "model=None"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    before = worker_threads()
    with pytest.raises(InvalidInputError) as caught:
        Reranker(**({"model": "bundled:tiny"} | settings))
    assert message in str(caught.value)
    assert not worker_threads() - before


@pytest.mark.parametrize("requests", [None, "text", 7, [("q", ["d"])]])
def test_bad_lists_of_requests(reranker: Reranker, requests: Any) -> None:
    for call in (reranker.rerank_many, reranker.score_many):
        with pytest.raises(InvalidInputError, match="requests"):
            call(requests)


def test_numbers_of_numpy_are_numbers(reranker: Reranker) -> None:
    result = reranker.rerank(QUERY, DOCUMENTS, top_k=np.int64(2), score_threshold=np.float32(0.0))  # type: ignore[arg-type]
    assert len(result) == 2


def test_query_that_leaves_no_room(reranker: Reranker) -> None:
    with pytest.raises(PromptTooLongError, match="max_length=8192"):
        reranker.rerank("word " * 9000, ["d"])


@pytest.mark.slow
def test_five_megabytes_of_text() -> None:
    with Reranker("bundled:tiny", max_length=512) as short:
        result = short.rerank(QUERY, ["x" * 5_000_000, DOCUMENTS[1], "the file is closed " * 3000])
    assert len(result) == 3
    assert sum(hit.truncated_tokens > 0 for hit in result) == 2


def test_a_score_that_is_not_finite_is_an_error_that_names_the_document() -> None:
    """The check sits in front of every engine: an engine that goes wrong cannot pass as a low score."""
    with Reranker("bundled:tiny", token_budget=4321) as broken:
        engine = broken._lease.engine
        score = engine.score

        def one_nan(requests: Any) -> list[Margins]:
            results = score(requests)
            results[0].values[1] = np.nan
            return results

        engine.score = one_nan  # type: ignore[method-assign]
        with pytest.raises(
            ScoringError, match=r"documents\[1\] \(and 1 more\) could not be scored: its margin is nan"
        ) as caught:
            broken.rerank("q", ["a", "b", "c", "b"])
        assert sorted(caught.value.failures) == [1, 3]
        assert np.isfinite(caught.value.margins).tolist() == [True, False, True, False]
