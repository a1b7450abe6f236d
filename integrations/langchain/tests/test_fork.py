"""Used before a fork, as under a preloading server: the child loads its own model, and `fail_open` hides nothing."""

import os
import subprocess
import sys

import pytest

# A process of its own: threads and warnings of pytest do not meet the fork.
PROGRAM = """
import asyncio, multiprocessing, os, signal, sys, threading, time
from langchain_core.documents import Document
from langchain_qwen3_ranker import Qwen3CrossEncoder, Qwen3Rerank
from qwen3_ranker_plugins import EngineClosedError, Reranker

texts = ["A list.", "The with statement closes a file."]
QUERY = "how is a file closed?"
documents = [Document(id=str(i), page_content=text) for i, text in enumerate(texts)]
compressor = Qwen3Rerank(model="bundled:tiny", fail_open=True)  # at module level, and used before the fork
encoder = Qwen3CrossEncoder(model="bundled:tiny")

def ranking(_=None):
    signal.alarm(100)  # a child that hangs ends
    ranked = compressor.compress_documents(documents, QUERY)
    ranked_async = asyncio.run(compressor.acompress_documents(documents, QUERY))
    assert not any("qwen3_failed" in document.metadata for document in ranked + ranked_async)
    assert [document.id for document in ranked] == [document.id for document in ranked_async]
    scores = encoder.score([(QUERY, document.page_content) for document in ranked])
    assert scores == sorted(scores, reverse=True)
    return [(document.id, round(document.metadata["relevance_score"], 4)) for document in ranked]

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
    compressor.close()
    encoder.close()
    loading = threading.Thread(target=ranking)
    loading.start()
    time.sleep(delay)
    in_child(equal)
    loading.join()
assert ranking() == expected  # nothing was taken from the parent

# A reranker that was given is the parent's: the error is not hidden.
with Reranker("bundled:tiny") as given:
    shared = Qwen3Rerank(reranker=given, fail_open=True)
    assert len(shared.compress_documents(documents, QUERY)) == 2

    def refused():
        for attempt in range(2):
            try:
                shared.compress_documents(documents, QUERY)
            except EngineClosedError as error:
                assert "fork" in str(error)
            else:
                raise AssertionError("unranked in silence")

    in_child(refused)
compressor.close()
encoder.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_compressor_that_was_used_before_a_fork_loads_again_in_the_child() -> None:
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
