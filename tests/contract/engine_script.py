"""A script without an `if __name__ == "__main__"` guard that uses a vLLM engine; run by test_vllm.py.

Its engine's process is killed in the middle of a call. It prints a JSON object a line about what happens, and waits.
"""

import json
import os
import signal
import sys
import threading
import time

from qwen3_ranker_plugins import EngineError, Reranker


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


reranker = Reranker("bundled:tiny", engine="qwen3_vllm")
engine = reranker._lease.engine
first = reranker.score("what is a list?", ["a list holds items", "rain"]).tolist()
say(worker=engine.worker_pid, scores=first, vllm_here="vllm" in sys.modules)

killed_at = []


def kill() -> None:
    time.sleep(1)
    killed_at.append(time.monotonic())
    os.kill(engine.worker_pid, signal.SIGKILL)


threading.Thread(target=kill).start()
try:
    reranker.score("never ends", [f"{n} " * 400 for n in range(2000)])
except EngineError as error:
    say(error=str(error), seconds=time.monotonic() - killed_at[0])
again = reranker.score("what is a list?", ["a list holds items", "rain"]).tolist()
say(worker=engine.worker_pid, scores=again, restarts=engine.restarts)
time.sleep(600)
