"""A script without an `if __name__ == "__main__"` guard that uses a vLLM engine; run by test_vllm.py.

    python engine_script.py ADDRESS_OF_A_WARM_PYTHON

While six callers wait, its worker process is stopped, and the next one killed. It prints what happens, a JSON object in
each line, starts a third worker and waits.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from qwen3_ranker_plugins import EngineError, Request, Reranker
from tests.warm_python import WarmPython

HEARTBEAT_TIMEOUT = 4


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


reranker = Reranker("bundled:tiny", engine="qwen3_vllm_score", engine_options={"heartbeat_timeout": HEARTBEAT_TIMEOUT})
engine = reranker._lease.engine


def few() -> list[float]:
    return reranker.score("what is a list?", ["a list holds items", "rain"]).tolist()


def send_to_worker_under_load(number: signal.Signals) -> None:
    """Six callers whose documents fill many passes; the signal arrives during one of the first."""
    worker, errors, ends = engine.worker_pid, [], []

    def call(caller: int) -> None:
        try:
            reranker.score(f"never ends {caller}", [f"{caller} {n} " * 400 for n in range(150)])
        except EngineError as error:
            errors.append(str(error))
            ends.append(time.monotonic())

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(6)]
    for caller in callers:
        caller.start()
    while len(reranker._lease._dispatcher._waiting) < len(callers):  # each has documents that no pass has taken
        time.sleep(0.05)
    time.sleep(0.5)
    sent = time.monotonic()
    os.kill(worker, number)
    for caller in callers:
        caller.join()
    try:
        reranker.submit(reranker.prepare(Request("a server", ["prepares and submits"])))
        submit = "accepted"
    except EngineError as error:
        submit = type(error).__name__
    say(worker=worker, errors=errors, seconds=[end - sent for end in ends], running=reranker.running, submit=submit)


say(worker=engine.worker_pid, scores=few(), vllm_here="vllm" in sys.modules)
send_to_worker_under_load(signal.SIGSTOP)
with WarmPython(sys.argv[1]).workers():  # the others import vLLM themselves
    scores = few()
say(worker=engine.worker_pid, scores=scores, restarts=engine.restarts, running=reranker.running)
send_to_worker_under_load(signal.SIGKILL)
threading.Thread(target=few, daemon=True).start()
while not (started := psutil.Process().children()):
    time.sleep(0.1)
say(worker=started[0].pid)
time.sleep(600)
