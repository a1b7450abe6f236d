"""Used before a fork, as under a preloading server: the child loads its own model, and `fail_open` hides nothing."""

import os
import subprocess
import sys

import pytest

# A process of its own: threads and warnings of pytest do not meet the fork.
PROGRAM = """
import asyncio, multiprocessing, os, signal, sys, threading, time
from haystack import Document
from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker

texts = ["A list.", "The with statement closes a file."]
documents = [Document(id=str(i), content=text) for i, text in enumerate(texts)]
ranker = Qwen3Ranker(model="bundled:tiny", fail_open=True)  # at module level, and warmed up before the fork
ranker.warm_up()

def ranking(_=None):
    signal.alarm(100)  # a child that hangs ends
    (documents_sync, documents_async) = (
        ranker.run("how is a file closed?", documents)["documents"],
        asyncio.run(ranker.run_async("how is a file closed?", documents))["documents"],
    )
    assert not any("qwen3_failed" in document.meta for document in documents_sync + documents_async)
    assert [document.id for document in documents_sync] == [document.id for document in documents_async]
    return [(document.id, round(document.score, 4)) for document in documents_sync]

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

expected = ranking()
assert len(expected) == 2
in_child(equal)
with multiprocessing.get_context("fork").Pool(2) as pool:  # as celery's
    assert pool.map(ranking, range(4)) == [expected] * 4
in_child(lambda: in_child(equal))  # a child of a child

# Forked while another thread loads: that thread, which holds the lock, does not exist in the child.
for delay in (0.0, 0.01, 0.05):
    ranker.close()
    loading = threading.Thread(target=ranker.warm_up)
    loading.start()
    time.sleep(delay)
    in_child(equal)
    loading.join()
assert ranking() == expected  # nothing was taken from the parent
ranker.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_ranker_that_was_used_before_a_fork_loads_again_in_the_child() -> None:
    # One thread is enough for a model this small. It is not torch.set_num_threads(1): torch cannot be used after a fork
    # from a process that called that ("Invalid thread pool!").
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
