"""How a worker process is watched, with small programs that send what a worker sends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest

from qwen3_ranker_plugins.engines.vllm.messages import LoadModel, PromptMargins, ScorePrompts
from qwen3_ranker_plugins.engines.vllm.remedies import remedy
from qwen3_ranker_plugins.engines.workers.process import WorkerEndedError, WorkerProcess

LOAD = LoadModel("vllm_score", {}, "cpu", [1], 1, 2)
PROMPTS = ScorePrompts([([], [[1]])], [1], 1)

PREAMBLE = """
import os, sys, threading, time
from multiprocessing.connection import Connection
import numpy as np
from qwen3_ranker_plugins.engines.vllm.messages import *
from qwen3_ranker_plugins.engines.workers.messages import *
connection = Connection({descriptor})
lock = threading.Lock()
steps = 0
def send(message):
    with lock:
        connection.send(message)
def beat():
    while True:
        time.sleep(0.2)
        send(Heartbeat(steps))
connection.recv()
"""
LOADED = PREAMBLE + "send(ModelLoaded(dict(device='cpu')))\nthreading.Thread(target=beat, daemon=True).start()\n"
ANSWERS = LOADED + "while connection.recv() is not None: send(PromptMargins(np.ones(1, np.float32), np.zeros(1)))\n"


@contextmanager
def worker(program: str, *, start: float = 60, heartbeat: float = 60, step: float = 60) -> Iterator[WorkerProcess]:
    # Wide enough for a machine that is busy; the programs import numpy only.
    started = WorkerProcess(
        program.replace("{", "{{").replace("}", "}}").replace("{{descriptor}}", "{descriptor}"),
        {},
        start_timeout=start,
        heartbeat_timeout=heartbeat,
        step_timeout=step,
        show_log=False,
    )
    try:
        assert started.load(LOAD) in ({}, {"device": "cpu"})
        yield started
    finally:
        started.kill()
        assert not psutil.pid_exists(started.pid)


def failure(running: WorkerProcess) -> tuple[str, float]:
    """(the message, seconds until it came) of a call that fails."""
    began = time.monotonic()
    with pytest.raises(WorkerEndedError) as caught:
        running.call(PROMPTS, PromptMargins)
    assert not running.running
    return str(caught.value), time.monotonic() - began


def test_an_answer_and_an_end_on_request() -> None:
    with worker(ANSWERS) as running:
        assert running.call(PROMPTS, PromptMargins).margins.tolist() == [1.0]
        assert running.running
        running.close()
        assert not running.running


def test_a_stopped_worker_is_killed_even_if_no_call_waits() -> None:
    with worker(ANSWERS, heartbeat=2) as running:
        time.sleep(3)  # longer than the timeout: heartbeats count
        assert running.running
        os.kill(running.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 30
        while running.running:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        message, seconds = failure(running)
        assert message == "it hung and was killed: it sent no heartbeat for 2 s"
        assert seconds < 5
        assert "heartbeat_timeout" in remedy(message)


def test_a_call_that_cannot_even_be_sent_to_a_stopped_worker_fails() -> None:
    """More than a pipe holds: writing it blocks until somebody reads."""
    with worker(ANSWERS, heartbeat=2) as running:
        os.kill(running.pid, signal.SIGSTOP)
        with pytest.raises(WorkerEndedError, match="sent no heartbeat for 2 s"):
            running.call(ScorePrompts([([], [list(range(1_000_000))])], [1], 1), PromptMargins)


def test_steps_that_do_not_end_are_a_hang_and_long_calls_are_not() -> None:
    """Three workers at once, because a limit that a busy machine does not exceed by itself takes seconds to pass."""
    steps = LOADED + "connection.recv()\nfor _ in range(25): time.sleep(0.2); steps += 1\n"
    steps += "send(PromptMargins(np.ones(1, np.float32), np.zeros(1)))\ntime.sleep(600)\n"
    stuck = LOADED + "connection.recv()\ntime.sleep(600)\n"
    with (
        worker(steps, step=4) as steady,
        worker(ANSWERS, step=4) as idle,
        worker(stuck, step=4) as hanging,
        ThreadPoolExecutor() as pool,
    ):
        idle.call(PROMPTS, PromptMargins)
        began = time.monotonic()
        long_call = pool.submit(steady.call, PROMPTS, PromptMargins)
        message, seconds = failure(hanging)
        assert message == "it hung and was killed: it finished no step for 4 s"
        assert 3 < seconds < 20
        assert "step_timeout" in remedy(message)
        assert long_call.result().margins.tolist() == [1.0]
        assert time.monotonic() - began > 4.5
        assert steady.running
        assert idle.running  # no call waits


def test_a_death_is_reported_at_once_and_with_its_cause() -> None:
    silent = LOADED + "time.sleep(600)\n"
    with worker(silent) as running:
        threading.Timer(0.5, os.kill, (running.pid, signal.SIGKILL)).start()
        message, seconds = failure(running)
        assert message == "it was killed by SIGKILL"
        assert seconds < 10
        assert failure(running)[1] < 1
    exits = LOADED + "connection.recv()\nprint('ValueError: last words', flush=True)\nos._exit(7)\n"
    with worker(exits) as running:
        with pytest.raises(WorkerEndedError) as caught:
            running.call(PROMPTS, PromptMargins)
        assert str(caught.value) == "it ended with exit code 7"
        assert "ValueError: last words" in caught.value.log


def test_a_worker_that_says_it_failed() -> None:
    program = LOADED + "connection.recv()\nsend(WorkerFailed('RuntimeError: out of memory'))\n"
    with worker(program) as running, pytest.raises(WorkerEndedError, match="RuntimeError: out of memory"):
        running.call(PROMPTS, PromptMargins)


def test_a_message_that_cannot_be_read_ends_the_call() -> None:
    garbage = LOADED + "connection.recv()\nwith lock: connection.send_bytes(b'no pickle')\ntime.sleep(600)\n"
    with worker(garbage) as running:
        assert failure(running)[0].startswith("its message could not be read: UnpicklingError")


def test_loading_has_a_time_limit_of_its_own() -> None:
    loads = PREAMBLE + "time.sleep(600)\n"
    with (
        pytest.raises(WorkerEndedError, match="not ready after 1 s") as caught,
        worker(loads, start=1, heartbeat=600),
    ):
        pytest.fail("it cannot be ready")
    assert "raise engine_options['start_timeout']" in remedy(str(caught.value))
    slow = PREAMBLE + "time.sleep(3)\nsend(ModelLoaded({}))\nthreading.Thread(target=beat).start()\n"
    slow += "connection.recv()\ntime.sleep(0.5)\nsend(PromptMargins(np.ones(1, np.float32), np.zeros(1)))\n"
    # Heartbeats begin when the model is loaded, and the limit for a step when a call waits.
    with worker(slow, start=60, heartbeat=2, step=3) as running:
        assert running.call(PROMPTS, PromptMargins).margins.tolist() == [1.0]
