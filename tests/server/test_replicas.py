"""`serve --devices`: workers that are killed and stopped under load, health by replica, and metrics."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.server.settings import load_settings
from qwen3_ranker_plugins.server.supervisor import place_engine

from .conftest import DOCUMENTS, QUERY, serving, wait_until
from .test_process import _process

BODY = {"query": QUERY, "documents": DOCUMENTS, "top_k": len(DOCUMENTS)}


def scores_of(answer: httpx.Response) -> list[float]:
    found = {each["index"]: each["relevance_score"] for each in answer.json()["ranked_documents"]}
    return [found[index] for index in range(len(DOCUMENTS))]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_workers_are_killed_and_stopped_under_load(tmp_path: Path, reranker: Reranker) -> None:
    """None of the answers is wrong or an error while one replica is left; with none left they are 503, and soon."""
    expected = reranker.score(QUERY, DOCUMENTS)
    with (
        _process(tmp_path, "--devices", "cpu,cpu", "--model", "bundled:tiny") as (process, url, _),
        httpx.Client(base_url=url, timeout=60) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def replicas() -> list[dict[str, object]]:
            return client.get("/health").json()["replicas"]

        def answers() -> int:
            try:
                return client.get("/ready").status_code
            except httpx.TransportError:
                return 0

        wait_until(lambda: answers() == 200, 120)
        assert [(each["device"], each["state"]) for each in replicas()] == [("cpu", "running")] * 2
        assert len({process.pid, *(each["process"] for each in replicas())}) == 3
        stop = threading.Event()

        def load() -> int:
            count = 0
            with httpx.Client(base_url=url, timeout=120) as own:
                while not stop.is_set():
                    answer = own.post("/rerank", json=BODY)
                    assert answer.status_code == 200, answer.text
                    np.testing.assert_allclose(scores_of(answer), expected, atol=1e-4)
                    count += 1
                    stop.wait(0.1)  # leaves a new worker time to start
            return count

        callers = [pool.submit(load) for _ in range(6)]
        try:
            for number in (signal.SIGKILL, signal.SIGSTOP):
                victim = replicas()[0]
                os.kill(int(str(victim["process"])), number)
                wait_until(lambda: replicas()[0]["state"] == "restarting", 30)
                assert answers() == 200, "the other one can rank"
                before = replicas()[1]["passes"]
                wait_until(lambda before=before: replicas()[1]["passes"] != before, 30)
                wait_until(lambda: replicas()[0]["state"] == "running", 90)
                assert replicas()[0]["process"] != victim["process"]
        finally:
            stop.set()
        assert all(each.result(120) for each in callers)
        assert [each["restarts"] for each in replicas()] == [2, 0]
        assert client.get("/health").json()["status"] == "healthy"

        for each in replicas():
            os.kill(int(str(each["process"])), signal.SIGKILL)
        started = time.monotonic()
        wait_until(lambda: answers() == 503, 10)
        refused = client.post("/rerank", json=BODY)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "engine_failed")
        assert refused.headers["Retry-After"]
        assert client.get("/health").status_code == 503
        assert time.monotonic() - started < 15
        wait_until(lambda: answers() == 200, 120)
        np.testing.assert_allclose(scores_of(client.post("/rerank", json=BODY)), expected, atol=1e-4)
        workers = [int(str(each["process"])) for each in replicas()]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        wait_until(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers), 20)


@pytest.mark.slow
def test_sigterm_during_loading_ends_at_once(tmp_path: Path) -> None:
    with _process(tmp_path, "--devices", "cpu,cpu") as (process, url, _):

        def loading() -> bool:
            try:
                return bool(httpx.get(f"{url}/health", timeout=10).json()["status"] == "loading")
            except httpx.TransportError:
                return False

        wait_until(loading, 60)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert process.wait(30) == 0
        assert time.monotonic() - started < 5


def test_metrics_of_the_one_engine_and_the_gauges_that_gateways_read() -> None:
    with serving(token_budget=778) as running, running.client() as client:
        before = {"replica": "0", "device": "cpu"}
        assert client.post("/rerank", json=BODY).status_code == 200
        families = {each.name: each for each in text_string_to_metric_families(client.get("/metrics").text)}
        for name, sample in (("passes", "passes_total"), ("documents", "documents_total"), ("up", "up")):
            [found] = [
                each
                for each in families[f"qwen3_ranker_replica_{name}"].samples
                if each.name == f"qwen3_ranker_replica_{sample}"
            ]
            assert found.labels == before
            assert found.value >= 1
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
            [sample] = families[name].samples
            assert sample.labels == {"model_name": "bundled:tiny"}
            assert sample.value == 0
        [replica] = client.get("/health").json()["replicas"]
        assert replica["process"] is None
        assert replica["documents"] >= len(DOCUMENTS)
        assert replica["documents_per_second"] > 0


def test_a_source_that_names_devices_replaces_the_device_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("device: cpu\n")
    assert load_settings(file, {"devices": "cpu,cpu"}).settings.reranker_settings().devices == "cpu,cpu"
    monkeypatch.setenv("QWEN3_RANKER_DEVICES", "cpu, cpu,cpu")
    settings = load_settings(file, {}).settings
    assert (settings.device, settings.devices) == ("auto", "cpu,cpu,cpu")
    settings = load_settings(file, {"device": "cpu"}).settings
    assert (settings.device, settings.devices) == ("cpu", None)
    file.write_text("devices: [cpu, cpu]\n")
    monkeypatch.delenv("QWEN3_RANKER_DEVICES")
    assert load_settings(file, {}).settings.devices == "cpu,cpu"


@pytest.mark.parametrize(
    ("settings", "gpus", "devices"),
    [
        ({}, 0, None),
        ({}, 1, "cuda:0"),
        ({"engine": "packed"}, 4, "cuda:0"),
        ({"device": "cuda"}, 1, None),
        ({"device": "cpu"}, 1, None),
        ({"devices": "cuda:1"}, 2, "cuda:1"),
        ({"engine": "vllm_score"}, 1, None),
    ],
)
def test_the_engine_gets_a_process_on_a_gpu_unless_a_setting_places_it(
    settings: dict[str, str], gpus: int, devices: str | None
) -> None:
    assert place_engine(RerankerSettings(**settings), gpus).devices == devices
