"""A lease of a GPU is short: one part that fails must be named, and must not cost the others."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import devices_report, gpu_load, gpu_offline, gpu_vllm, replicas, vllm_replicas
from benchmarks.host_time import HostTime
from benchmarks.systems import CASES, write_model
from qwen3_ranker_plugins.bench.load.run import LoadPlan, measure_load
from qwen3_ranker_plugins.bench.load.target import Target
from qwen3_ranker_plugins.bench.load.workloads import Workload
from qwen3_ranker_plugins.bench.machine import environment

from .slow_server import Answer, SlowServer, scores

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu-scripts") / "model"
    write_model(folder, "tiny", "cpu", None)
    return folder


@pytest.fixture
def arguments(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
    (tmp_path / "model").symlink_to(model)
    return argparse.Namespace(
        output=tmp_path / "found.json", commit="0123456789", device="cpu", shape="tiny", repeat=2, scale=50,
        timeout=200, seconds=200, ends=time.monotonic() + 200,
    )  # fmt: skip


def test_an_offline_job_is_timed_as_its_passes_arrive(arguments: argparse.Namespace, tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    gpu_offline.write_pairs(source, 200)
    row = gpu_offline.run(source, tmp_path / "out.jsonl", tmp_path / "model", 32, None)
    assert row["engines"] == 1
    assert row["pairs_per_second"] > 0
    assert row["steady_pairs_per_second"] > 0

    arguments.pairs, arguments.window_pairs = 200, 32
    twice = [row | {"engines": 2, "pairs_per_second": factor * row["pairs_per_second"]} for factor in (1.8, 2.2, 1.9)]
    gpu_offline.write(arguments, ["cpu", "cpu"], row, {1: [row], 2: twice, 4: []}, equal=True)
    report = json.loads(arguments.output.read_text(encoding="utf-8"))
    assert report["speedup"] == {"1": 1.0, "2": 1.9}
    assert report["outputs_are_equal_byte_for_byte"] is True


def test_processor_time_of_a_process_and_its_children() -> None:
    """A process that computes in one of two threads, and a child that waits."""
    script = (
        "import subprocess, sys, threading, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()', 'the-child'], stdin=subprocess.PIPE)\n"
        "print('ready', flush=True); input()\n"
        "threading.Thread(target=time.sleep, args=(1,)).start()\n"
        "ends = time.process_time() + 0.5\n"
        "while time.process_time() < ends: pass\n"
        "print('done', flush=True); input()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        host = HostTime(process.pid)
        print(file=process.stdin, flush=True)
        assert process.stdout.readline() == "done\n"
        found = host.figures(seconds=1.0)
        own, child = found["processes"]
        process.communicate("\n")
    assert (own["process"], child["name"].split()[-1]) == (process.pid, "the-child")
    assert 0.3 <= own["cpu_seconds"] <= 1.0
    assert 0.3 <= own["busiest_thread"] <= own["cpu_seconds"]
    assert child["cpu_seconds"] < 0.3


def test_the_rate_is_back_when_it_stays() -> None:
    """Ten answers a second, five for two seconds, ten for one, five for another, then ten again."""
    answers = [100 + second + part / 10 for second in range(12) for part in range(10)]
    assert replicas.back_after(answers, 100, 112, 10) == 0.0
    fewer = [each for each in answers if int(each) not in (103, 104, 106) or each % 1 < 0.45]
    assert replicas.back_after(fewer, 102, 112, 10) == 5.0
    assert replicas.back_after(fewer, 102, 107.5, 10) is None


def test_layouts_of_an_engine_on_several_devices(arguments: argparse.Namespace, tmp_path: Path) -> None:
    """Through the packed engine, since the script's own part does not depend on vLLM."""
    named = vllm_replicas.layouts(["cuda:0", "cuda:1"])
    assert list(named) == ["1 device", "2 replicas", "tensor parallel 2"]
    assert named["tensor parallel 2"]["engine_options"] == {"tensor_parallel_size": 2}
    arguments.model, arguments.engine, arguments.eager = tmp_path / "model", "packed", False
    arguments.clients, arguments.seconds, arguments.one = 2, 0.3, {"device": "cpu", "engine_options": {}}
    found = vllm_replicas.measure(arguments)
    assert set(found["calls_ms"]) == {"1000 titles", "100 chunks"}
    assert found["load"]["100 titles"]["documents_per_second"] > 0
    assert found["load"]["100 titles"]["errors"] == 0

    arguments.seconds_of_all, arguments.ends = 5, time.monotonic() + 5
    late = vllm_replicas.run(named["2 replicas"], tmp_path, "tiny", arguments)
    assert late == {"failed": "not run: the 5 seconds were over"}
    double = {**found, "load": {label: {"documents_per_second": 2 * row["documents_per_second"]}
                                for label, row in found["load"].items()}}  # fmt: skip
    text = vllm_replicas.table({"tiny": {"1 device": found, "2 replicas": double, "tensor parallel 2": late}})
    assert text.count("(2.00)") == 2
    assert "| tiny, tensor parallel 2 | not run: the 5 seconds were over |" in text


def test_parts_of_a_load_run_are_chosen_by_their_beginnings() -> None:
    arguments = argparse.Namespace(step_seconds=1, scale=1, timeout=10, processes=2, rates=[600, 1200], devices=[])
    arguments.parts = ()
    assert [name for name in gpu_load.plans(gpu_load.OURS, arguments) if name.startswith("open")] == [
        "open loop", "open loop, deadline",
    ]  # fmt: skip
    assert gpu_load.DEADLINE_PART not in gpu_load.plans(gpu_load.VLLM, arguments)
    arguments.parts = ("open loop, deadline", "long")
    assert list(gpu_load.plans(gpu_load.OURS, arguments)) == ["open loop, deadline", "long alone"]
    arguments.parts, arguments.devices = (), ["cuda:0", "cuda:1"]
    assert list(gpu_load.plans(gpu_load.OURS, arguments)) == [
        "1000-titles", "100-titles", *(f"closed loop, {clients}" for clients in (1, 8, 32, 128)),
    ]  # fmt: skip


def test_a_system_that_fails_is_in_the_results_and_the_next_one_runs(
    arguments: argparse.Namespace, tmp_path: Path
) -> None:
    results = {}
    for name, system in {
        "reference": gpu_vllm.System("reference"),
        "broken": gpu_vllm.System("packed", {"no_such_option": 1}),
        "packed": gpu_vllm.System("packed", labels=("400 titles", "100 chunks")),
    }.items():
        results[name] = gpu_vllm.run(name, system, arguments, tmp_path / "model")
        text = gpu_vllm.report(arguments, results)
    assert "| broken | exit code 1: " in text
    assert "engine_options['no_such_option']=1" in text
    stored = json.loads(arguments.output.read_text(encoding="utf-8"))["results"]
    assert stored["broken"]["log"]
    assert set(stored["reference"]["rows"]) == set(CASES)
    assert set(stored["packed"]["rows"]) == {"400 titles", "100 chunks"}
    for row in stored["packed"]["rows"].values():
        assert row["median_ms"] > 0
        assert row["largest_margin_difference_to_float32"] < 1e-3
        assert "margins" not in row
    margins = json.loads(arguments.output.with_suffix(".margins.json").read_text(encoding="utf-8"))
    assert margins["packed"]["400 titles"] == pytest.approx(
        results["packed"]["rows"]["400 titles"]["margins"], abs=1e-5
    )

    # What failed is run again, what did not is kept, and what is of something else is refused.
    kept = gpu_vllm.earlier(arguments)
    assert set(kept) == {"reference", "packed"}
    again = gpu_vllm.report(arguments, kept)
    assert [line for line in again.splitlines() if "| packed |" in line] == [
        line for line in text.splitlines() if "| packed |" in line
    ]
    arguments.repeat = 3
    with pytest.raises(SystemExit, match=r"repeat 2, now 3"):
        gpu_vllm.earlier(arguments)
    assert max(map(abs, results["packed"]["rows"]["400 titles"]["margins"])) > 0.05


def test_a_system_that_hangs_is_ended_and_none_is_begun_when_time_is_over(
    arguments: argparse.Namespace, tmp_path: Path
) -> None:
    arguments.timeout = 1
    assert gpu_vllm.run("slow", gpu_vllm.System("packed"), arguments, tmp_path)["failed"] == "not done after 1 s"
    arguments.ends = time.monotonic()
    found = gpu_vllm.run("late", gpu_vllm.System("packed"), arguments, tmp_path)
    assert found["failed"].startswith("not run: ")


def test_the_reason_is_the_first_error_and_not_the_last() -> None:
    prefix = "(EngineCore pid=17) ERROR 11-26 15:21:34 [core.py:1330]"
    log = [
        "WARNING 11-26 15:21:34 [importing.py:73] No Triton: ImportError: libcuda.so",
        f"{prefix} Traceback (most recent call last):",
        f"{prefix}     raise RuntimeError(message)",
        f"{prefix} RuntimeError: Cannot re-initialize CUDA in forked subprocess",
        "(EngineCore pid=17) RuntimeError: Cannot re-initialize CUDA in forked subprocess",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert gpu_vllm.errors_of(log) == [
        "RuntimeError: Cannot re-initialize CUDA in forked subprocess",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]


def test_a_copied_script_that_fails_is_tried_with_the_engine_core_in_its_process(
    arguments: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [{"failed": "exit code 1: RuntimeError: fork", "log": ["fork"]}, {"facts": {}, "rows": {}}]
    asked = []

    def run_once(_name: str, system: gpu_vllm.System, *_: object) -> dict[str, object]:
        asked.append(system.environment)
        return answers[len(asked) - 1]

    monkeypatch.setattr(gpu_vllm, "_run_once", run_once)
    found = gpu_vllm.run("copied", gpu_vllm.System("copied_generate"), arguments, tmp_path)
    assert asked == [{}, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}]
    assert found["facts"]["note"] == "engine core in the process"
    assert "failed" not in found

    asked.clear()
    answers[1] = {"failed": "exit code 1: ValueError: other", "log": ["other"]}
    found = gpu_vllm.run("copied", gpu_vllm.System("copied_generate"), arguments, tmp_path)
    assert found["failed"] == "exit code 1: RuntimeError: fork"
    assert {"fork", "other"} <= set(found["log"])


def test_tables_of_a_run_under_load_name_what_failed(tmp_path: Path) -> None:
    async def at_once(_number: int, count: int) -> Answer:
        return scores(count)

    base = LoadPlan(Workload.named("6+5x3"), clients=[1], seconds=0.3, warmup=1)
    plans = {
        "1000-titles": replace(base, workload=Workload.named("4-titles")),
        "open loop": replace(base, rates=[20], clients=()),
        "ten beside long": replace(base, beside=Workload.named("6+5x9")),
    }
    with SlowServer(at_once) as slow:
        parts = {name: measure_load(Target.at(slow.url, "jina"), plan, environment()) for name, plan in plans.items()}
    worker = {"process": 8, "name": "worker", "cpu_seconds": 1.0, "busiest_thread": 0.9}
    host = {
        "seconds": 2.0,
        "documents": 500,
        "processes": [worker | {"cpu_seconds": 3.0, "busiest_thread": 0.75}, worker],
    }
    results = {
        gpu_load.OURS: {
            "parts": parts,
            "failed": {"long alone": "not run: the 470 seconds were over"},
            "host": {"open loop": host},
        },
        gpu_load.VLLM: {"parts": {}, "failed": {"server": "the server ended with code 1"}},
        gpu_load.ENGINE: {"parts": {}, "failed": {}, "titles_ms": {"1000-titles": [0.5, 0.5, 0.6]}},
    }
    arguments = argparse.Namespace(
        output=tmp_path / "found.json",
        commit="0123",
        device="cpu",
        shape="tiny",
        scale=1,
        step_seconds=1,
        processes=1,
        engine_option=None,
    )
    text = gpu_load.write(arguments, results)
    assert text == (tmp_path / "found.md").read_text(encoding="utf-8")
    assert "| qwen3-ranker serve, long alone | not run: the 470 seconds were over |" in text
    assert "| vllm serve, server | the server ended with code 1 |" in text
    assert "| 4-titles, qwen3-ranker serve | " in text
    assert " | 0.5 | +" in text
    assert "| qwen3-ranker serve, 60 items/s | " in text
    assert "| qwen3-ranker serve, the long ones meanwhile | " in text
    assert "| qwen3-ranker serve, open loop | 2.0 | 8.00 | 6.00 | 75% | 90% |" in text
    assert gpu_load.answered_documents(parts["open loop"]) == 3 * (1 + 6)
    assert 0 < gpu_load.seconds_of(parts["open loop"]) < 0.5
    figures = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["results"][gpu_load.OURS]["parts"]
    assert figures["open loop"]["steps"][0]["requests"] == 6
    assert figures["ten beside long"]["beside"][0]["requests"] > 0
    raw = json.loads((tmp_path / "found.raw.json").read_text(encoding="utf-8"))["results"][gpu_load.OURS]["parts"]
    assert len(raw["open loop"]["steps"][0]["requests"]["milliseconds"]) == 6


def test_tables_of_several_devices_come_from_the_files_of_a_run(tmp_path: Path) -> None:
    def server(rate: float, p50: float) -> dict[str, object]:
        row = {"items_per_second": rate, "p50": p50, "p99": 2 * p50, "failed": {}}
        return {"parts": {name: {"steps": [row]} for name in ("closed loop, 8", "1000-titles")}, "host": {}}

    for count, rate, p50 in ((1, 1500, 80), (4, 5700, 24)):
        name = f"qwen3-ranker serve, devices: {count}"
        results = {name: server(rate, p50), "engine": {"parts": {}}}
        (tmp_path / f"load_{count}.json").write_text(json.dumps({"results": results}), encoding="utf-8")
    (tmp_path / "load_4.raw.json").write_text("not read", encoding="utf-8")
    lost = {"seconds_until_noticed": 0.1, "seconds_until_it_runs_again": 19.6, "seconds_until_the_rate_is_back": None,
            "documents_per_second_meanwhile": 4200}  # fmt: skip
    killed = {"4 replicas": {"answers": 900, "wrong": 0, "lost": 1, "documents_per_second": 5600, "SIGKILL": lost}}
    (tmp_path / "replicas_4.json").write_text(json.dumps(killed), encoding="utf-8")
    found = devices_report.servers(tmp_path)
    assert list(found) == [1, 4]
    rows = devices_report.rates_table(found)
    assert "| 8 | 1,500; 80 / 160 ms | 5,700 (3.80); 24 / 48 ms |" in rows
    assert "| 1000 titles, one request: P50 | 80.0 ms | 24.0 ms (0.30) |" in rows
    (_, _, row) = devices_report.replicas_table(tmp_path)
    assert row == "| 4 replicas, SIGKILL | 5,600 | 0.1 s | 19.6 s | not in the time watched | 4,200 | 0, 1 of 900 |"
    devices_report.plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
