"""Real replicas: worker processes with the bundled model that are killed and stopped while they work."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.config import RerankerSettings

pytestmark = pytest.mark.slow

QUERY = "how do I close a file?"
DOCUMENTS = [f"title {number} about files, Python and the with statement" for number in range(60)]


@pytest.fixture(scope="module")
def two() -> Iterator[Reranker]:
    with Reranker("bundled:tiny", devices=["cpu", "cpu"]) as reranker:
        yield reranker
        workers = [state.process for state in reranker.replicas()]
    assert not any(psutil.pid_exists(worker) for worker in workers if worker is not None)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_margins_do_not_depend_on_who_computed_them(two: Reranker, reranker: Reranker) -> None:
    documents = DOCUMENTS * 8
    many = [f"{number} {document}" for number, document in enumerate(documents)]
    before = [state.documents for state in two.replicas()]
    np.testing.assert_allclose(two.score(QUERY, many), reranker.score(QUERY, many), atol=1e-5)
    taken = [state.documents - earlier for state, earlier in zip(two.replicas(), before, strict=True)]
    assert sum(taken) == len(many)
    assert min(taken) > 0.3 * len(many), "idle replicas share a long request"
    assert len({os.getpid(), *(state.process for state in two.replicas())}) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_worker_is_killed_or_stopped_under_load(two: Reranker, reranker: Reranker, number: signal.Signals) -> None:
    """No call is lost or wrong, the other replica goes on, and the lost one comes back."""
    expected = reranker.score(QUERY, DOCUMENTS)
    restarts = sum(state.restarts for state in two.replicas())
    stop = threading.Event()

    def load() -> int:
        calls = 0
        while not stop.is_set():
            np.testing.assert_allclose(two.score(QUERY, DOCUMENTS), expected, atol=1e-5)
            calls += 1
            stop.wait(0.2)  # leaves a new worker time to start
        return calls

    with ThreadPoolExecutor(6) as pool:
        callers = [pool.submit(load) for _ in range(6)]
        try:
            victim, other = two.replicas()
            wait_until(lambda: two.replicas()[0].passes > victim.passes)
            os.kill(victim.process, number)
            wait_until(lambda: two.replicas()[0].status != "running", 30)
            assert two.running
            wait_until(lambda: two.replicas()[1].passes > other.passes + 2)
            wait_until(lambda: two.replicas()[0].status == "running")
            back = two.replicas()[0]
            wait_until(lambda: two.replicas()[0].passes > back.passes)
        finally:
            stop.set()
        assert all(each.result(60) for each in callers)
    assert sum(state.restarts for state in two.replicas()) == restarts + 1
    assert back.process != victim.process
    assert not psutil.pid_exists(victim.process)


def test_workers_end_with_their_parent() -> None:
    """Also if it is killed, and cannot end them."""
    import subprocess
    import sys

    program = (
        "import sys, time; from qwen3_ranker_plugins import Reranker\n"
        "reranker = Reranker('bundled:tiny', devices='cpu')\n"
        "print(reranker.replicas()[0].process, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert psutil.pid_exists(worker)
        parent.kill()
        wait_until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE, 20)


def test_a_replica_that_cannot_start_is_an_error_and_leaves_no_process() -> None:
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(InvalidInputError, match="sees 0 CUDA devices"):
        Reranker("bundled:tiny", devices="cpu,cuda:99")
    assert set(psutil.Process().children(recursive=True)) <= before


def test_settings_name_devices_or_a_device() -> None:
    assert RerankerSettings("bundled:tiny", devices=["cpu", "cpu"]).devices == "cpu,cpu"  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="contradicts device='cpu'"):
        RerankerSettings("bundled:tiny", device="cpu", devices="cpu,cpu")
    with pytest.raises(InvalidInputError, match="no effect on the remote engine"):
        RerankerSettings("x", "remote", devices="cpu", engine_options={"base_url": "http://127.0.0.1:1"})
