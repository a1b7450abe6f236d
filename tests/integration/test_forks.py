"""A fork waits for adapters that load, and its whole wait is bounded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, threading, time
from qwen3_ranker_plugins import adapters

adapters._LONGEST_LOAD = 1
rankers = [adapters.LazyReranker() for _ in range(5)]
loading, ended = threading.Barrier(6), threading.Event()

def load():
    loading.wait()
    ended.wait(60)
    raise RuntimeError("ended")

def use(ranker):
    try:
        ranker.get(load)
    except RuntimeError:
        pass

threads = [threading.Thread(target=use, args=(ranker,)) for ranker in rankers]
for thread in threads:
    thread.start()
loading.wait()
started = time.monotonic()
pid = os.fork()
if pid == 0:
    os._exit(0 if rankers[0].get(lambda: "made in the child") else 1)
waited = time.monotonic() - started
ended.set()
for thread in threads:
    thread.join()
assert os.waitpid(pid, 0)[1] == 0
assert 0.9 < waited < 3, waited
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_waits_once_for_all_loads() -> None:
    """Five loads that do not end must not make it wait five times."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
