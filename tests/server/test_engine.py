"""An engine that dies: others hear of it as JSON, the server lives, and the engine comes back."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import httpx
import numpy as np
import pytest

from qwen3_ranker_plugins import EngineClosedError, Request, Reranker
from qwen3_ranker_plugins.server.errors import ApiError
from qwen3_ranker_plugins.server.metrics import Metrics
from qwen3_ranker_plugins.server.settings import ServerSettings
from qwen3_ranker_plugins.server.supervisor import EngineSupervisor

from .conftest import DOCUMENTS, QUERY, busy_engine, serving, wait_until

BUDGET = 777  # settings of its own, so that the session's engine survives


class Panic(BaseException):
    """Not an Exception, as what Rust code panics with."""


def _kill(reranker: Reranker) -> None:
    """End the engine's thread, from inside."""

    def panic(_documents: int) -> None:
        raise Panic

    prepared = reranker.prepare(Request("last", ["words"]))
    future = reranker.submit(prepared, panic)
    with pytest.raises(EngineClosedError):
        future.result(60)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the panic itself
def test_a_dead_engine_is_seen_and_started_again() -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    with serving(token_budget=BUDGET) as running, running.client() as client, ThreadPoolExecutor(16) as pool:
        first = client.post("/rerank", json=body).json()["ranked_documents"]
        engine = running.state.supervisor.reranker
        loads = running.metric("engine_loads_total")

        def post(number: int) -> httpx.Response:
            return httpx.post(f"{running.url}/rerank", json={"query": f"{number}", "documents": DOCUMENTS}, timeout=60)

        load = [pool.submit(post, number) for number in range(60)]
        _kill(engine)
        wait_until(lambda: not engine.running)
        answers = [each.result(120) for each in load]
        codes = Counter(answer.status_code for answer in answers)
        assert set(codes) <= {200, 503}
        assert codes[503], "those who waited were told"
        for answer in answers:
            if answer.status_code == 503:
                assert answer.json()["error"]["type"] in ("engine_failed", "loading")
                assert answer.headers["Retry-After"]
        wait_until(lambda: running.metric("engine_loads_total") == loads + 1 and running.metric("engine_up") == 1)
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert client.get("/health").json()["status"] == "healthy"
        assert client.post("/rerank", json=body).json()["ranked_documents"] == first
        assert running.state.supervisor.reranker is not engine


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_stays_dead_shows_in_health(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, tiny
) -> None:
    """Its model's folder is gone when it is to be started again, and comes back later."""
    import shutil

    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny, folder)
    with serving(model=str(folder), token_budget=BUDGET) as running, running.client() as client:
        hidden = folder.with_name("hidden")
        folder.rename(hidden)
        _kill(running.state.supervisor.reranker)
        wait_until(lambda: client.get("/health").status_code == 503)
        health = client.get("/health").json()
        assert health["status"] == "unhealthy"
        assert health["engine_error"]
        assert client.get("/ready").status_code == 503
        refused = client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS})
        assert (refused.status_code, refused.json()["error"]["type"]) in {(503, "engine_failed"), (503, "loading")}
        assert "qwen3_ranker_engine_up 0.0" in client.get("/metrics").text
        hidden.rename(folder)
        wait_until(lambda: client.get("/ready").status_code == 200, 120)
        assert client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS}).status_code == 200


def test_an_engine_that_hangs_is_given_up_and_replaced() -> None:
    """Its thread is held up in a pass: requests that wait are told at once, and another engine takes its place."""
    body = {"query": QUERY, "documents": DOCUMENTS}
    with (
        serving(token_budget=BUDGET + 3, probe_interval=0.3, probe_timeout=1.5) as running,
        running.client() as client,
        ThreadPoolExecutor(8) as pool,
    ):
        first = client.post("/rerank", json=body).json()["ranked_documents"]
        hung = running.state.supervisor.reranker
        loads = running.metric("engine_loads_total")
        with busy_engine(hung):
            started = time.monotonic()
            waiting = [pool.submit(httpx.post, f"{running.url}/rerank", json=body, timeout=60) for _ in range(6)]
            answers = [each.result(60) for each in waiting]
            assert time.monotonic() - started < 30, "they did not wait for the deadline of a request"
            assert {(each.status_code, each.json()["error"]["type"]) for each in answers} == {(503, "engine_failed")}
            assert all(each.headers["Retry-After"] for each in answers)
            wait_until(lambda: running.metric("engine_loads_total") == loads + 1)
            wait_until(lambda: client.get("/ready").status_code == 200)
            assert client.post("/rerank", json=body).json()["ranked_documents"] == first
            assert running.state.supervisor.reranker is not hung


def test_a_long_queue_is_no_failure() -> None:
    """A probe waits behind what was accepted before it; as long as passes end, the engine is well."""
    documents = [f"{number} " + "with the statement closes files " * 12 for number in range(40)]
    with serving(token_budget=256, probe_interval=0.05, probe_timeout=1.0) as running, ThreadPoolExecutor(6) as pool:
        loads = running.metric("engine_loads_total")
        work = [
            pool.submit(
                httpx.post, f"{running.url}/rerank", json={"query": f"{n}", "documents": documents}, timeout=120
            )
            for n in range(6)
        ]
        assert [each.result(120).status_code for each in work] == [200] * 6
        assert running.metric("engine_loads_total") == loads


def test_an_engine_that_has_ended_is_unhealthy_before_anybody_looked() -> None:
    """As a worker process that was killed: the state is the engine's own, not that of the last look at it."""
    running = True
    supervisor = EngineSupervisor(
        ServerSettings().reranker_settings(), Metrics(), lambda _: None, lambda _: None, probe_interval=0
    )

    class Ended(Reranker):
        @property
        def running(self) -> bool:
            return running

    supervisor._reranker = Ended("bundled:tiny")
    supervisor._works()
    assert supervisor.status == "healthy"
    assert supervisor.reranker is supervisor._reranker
    running = False
    assert supervisor.status == "unhealthy"
    with pytest.raises(ApiError) as refused:
        _ = supervisor.reranker
    assert (refused.value.status, refused.value.kind) == (503, "engine_failed")
    supervisor._reranker.close()


@pytest.mark.parametrize("ended_by", ["failure", "cancelling"])
async def test_waiting_that_ends_early_leaves_no_exception_to_asyncios_log(ended_by: str) -> None:
    """The work goes on without anybody who waits: its end, whatever it is, is not an error of the server."""
    supervisor = EngineSupervisor(
        ServerSettings().reranker_settings(), Metrics(), lambda _: None, lambda _: None, probe_interval=0
    )
    logged: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: logged.append(context))
    passes = [loop.create_future() for _ in range(2)]
    waiting = asyncio.create_task(supervisor.while_running(asyncio.gather(*passes)))
    await asyncio.sleep(0.01)
    if ended_by == "failure":
        supervisor._failed.set()
        with pytest.raises(ApiError, match="engine"):
            await waiting
    else:
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await asyncio.sleep(0.01)
    assert all(each.cancelled() for each in passes)
    del waiting
    gc.collect()
    assert logged == []


def test_requests_before_the_model_is_loaded_are_told_to_wait() -> None:
    with serving(ready=False, token_budget=BUDGET + 1) as running, running.client() as client:
        health = client.get("/health")
        refused = client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS})
        if refused.status_code != 200:  # loading takes seconds, so this is what happens
            assert (refused.status_code, refused.json()["error"]["type"]) == (503, "loading")
            assert refused.headers["Retry-After"]
            assert health.status_code == 200
            assert health.json()["status"] == "loading"
            # The model may be loaded already while its first pass is still to come, so "model_loaded" is either.
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS}).status_code == 200


def test_asyncio_is_not_blocked_while_the_model_loads() -> None:
    async def look(url: str) -> float:
        loop = asyncio.get_running_loop()
        async with httpx.AsyncClient(timeout=60) as client:
            started = loop.time()
            await client.get(f"{url}/health")
            return loop.time() - started

    with serving(ready=False, token_budget=BUDGET + 2) as running:
        assert asyncio.run(look(running.url)) < 30
        wait_until(lambda: httpx.get(f"{running.url}/ready").status_code == 200)


async def test_a_loaded_engine_is_out_of_the_garbage_collectors_sight() -> None:
    gc.unfreeze()  # what the suite has frozen
    settings = ServerSettings().reranker_settings()
    fatal: list[Exception] = []
    host = EngineSupervisor(settings, Metrics(), lambda _: None, fatal.append, probe_interval=0, owns_process=True)
    host.start()
    try:
        while host.status != "healthy":
            assert not fatal
            await asyncio.sleep(0.05)
        assert gc.get_freeze_count() > 100_000
        gc.collect()
        assert (await host.reranker.ascore(QUERY, DOCUMENTS)).shape == (len(DOCUMENTS),)
    finally:
        await host.close()
    assert gc.get_freeze_count() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.usefixtures("warm_workers")
def test_kill_of_the_engine_process_under_load(reranker: Reranker) -> None:
    """vLLM's worker process is killed: all who wait are told at once, and the engine is started again and counted."""
    expected = reranker.score(QUERY, DOCUMENTS)
    body = {"query": QUERY, "documents": DOCUMENTS, "top_k": len(DOCUMENTS)}
    with (
        serving(engine="vllm_score", ready=False) as running,
        running.client() as client,
        ThreadPoolExecutor(8) as pool,
    ):
        wait_until(lambda: client.get("/ready").status_code == 200, 300)

        def ask(number: int) -> httpx.Response:
            long = [f"{number} {n} " * 400 for n in range(150)]  # many passes: nobody is done when the process dies
            return client.post("/rerank", json={"query": QUERY, "documents": long})

        def check(answer: httpx.Response) -> None:
            assert answer.status_code == 200
            scores = {each["index"]: each["relevance_score"] for each in answer.json()["ranked_documents"]}
            np.testing.assert_allclose([scores[index] for index in range(len(DOCUMENTS))], expected, atol=1e-3)

        check(client.post("/rerank", json=body))
        passes = running.metric("pass_documents_count")
        answers = [pool.submit(ask, number) for number in range(6)]
        wait_until(lambda: running.metric("pass_documents_count") > passes and running.metric("queue_documents") > 600)
        killed = running.state.supervisor.reranker._lease.engine.worker_pid
        os.kill(killed, signal.SIGKILL)
        outcomes = [each.result(10) for each in answers]
        for answer in outcomes:
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "engine_failed"
        assert running.metric("engine_errors_total") >= 1
        wait_until(lambda: client.get("/health").status_code == 503, 10)
        assert client.get("/health").json()["status"] == "unhealthy"
        assert client.get("/ready").status_code == 503
        refused = client.post("/rerank", json=body)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        wait_until(lambda: client.get("/ready").status_code == 200, 300)
        assert running.metric("engine_loads_total") == 2
        check(client.post("/rerank", json=body))
        assert running.state.supervisor.reranker._lease.engine.worker_pid != killed
