"""Several engines give the same bytes as one."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3_ranker_plugins import EngineError, InvalidInputError
from qwen3_ranker_plugins.offline import RerankJob

from .conftest import Job, make_records, read_jsonl, write_jsonl
from .engines import CondemnedEngine, FaultyEngine, NullEngine, OneArmedEngine


def test_a_process_for_each_device_gives_the_same_bytes(tmp_path: Path, job: Job) -> None:
    records = make_records(600)
    records[77]["document"] += " poison"
    source = write_jsonl(tmp_path / "in.jsonl", records)
    job(source, "one.jsonl", window_pairs=64, engine_factory=FaultyEngine).run()
    summary = (
        job(source, "two.jsonl", window_pairs=64, engine_factory=FaultyEngine, devices=["cpu", "cpu"]).run().summary
    )
    assert (summary.pairs, summary.errors) == (600, 1)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert (tmp_path / "one.jsonl.errors.jsonl").read_bytes() == (tmp_path / "two.jsonl.errors.jsonl").read_bytes()


def test_a_process_for_each_device_with_the_bundled_model(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(60))
    options = {"model": "bundled:tiny", "window_pairs": 13, "token_budget": 300, "processing_time": False}
    RerankJob(source, tmp_path / "one.jsonl", **options).run()  # type: ignore[arg-type]
    RerankJob(source, tmp_path / "two.jsonl", devices=["cpu", "cpu"], **options).run()  # type: ignore[arg-type]
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_ends_or_hangs_is_replaced_and_nothing_is_lost_or_twice(
    tmp_path: Path, job: Job, number: signal.Signals, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3_ranker_plugins.offline.runners.processes.HEARTBEAT_TIMEOUT", 3.0)
    monkeypatch.setattr(logging.getLogger("qwen3_ranker_plugins.offline"), "propagate", True)
    source = write_jsonl(tmp_path / "in.jsonl", [*make_records(600), "bad"])
    options = {"window_pairs": 64, "engine_factory": OneArmedEngine}
    job(source, "local.jsonl", **options, engine_options={"marker": str(source)}).run()
    marker = tmp_path / "ended"
    ending = {"marker": str(marker), "signal": int(number)}
    summary = job(source, "two.jsonl", **options, engine_options=ending, devices=["cpu", "cpu"]).run().summary
    assert marker.exists()
    assert "starting a new one in its place" in caplog.text
    assert (summary.pairs, summary.scored, summary.resumed) == (601, 600, 0)
    assert (tmp_path / "local.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_a_worker_that_ends_before_it_scores_is_reported_and_the_job_goes_on_later(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(600))
    with pytest.raises(EngineError, match=r"worker qwen3-ranker-cpu ended with exit code -9 before .* to continue"):
        job(source, window_pairs=64, engine_factory=CondemnedEngine, devices=["cpu"]).run()
    summary = job(source, window_pairs=64, engine_factory=NullEngine, devices=["cpu"]).run().summary
    assert (summary.scored, summary.resumed) == (600, 0)


def test_what_a_worker_cannot_start_with_is_said(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(6))
    with pytest.raises(InvalidInputError, match="CUDA devices"):
        RerankJob(source, tmp_path / "out.jsonl", model="bundled:tiny", devices=["cuda:7"]).run()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray with two CPUs. It installs a handler of its own for SIGTERM."""
    ray = pytest.importorskip("ray")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        # At the lowest priority, which Ray gives its workers, they wait for minutes on a busy machine.
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, before)


def test_ray_gives_the_same_bytes_and_goes_on_where_another_runner_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: None
) -> None:
    """Two actors with the bundled model, over windows that a local run left half done, against one process."""
    source = write_jsonl(tmp_path / "in.jsonl", [*make_records(120), "bad"])
    options = {"model": "bundled:tiny", "window_pairs": 25, "token_budget": 600, "processing_time": False}
    RerankJob(source, tmp_path / "local.jsonl", **options).run()  # type: ignore[arg-type]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qwen3_ranker_plugins.offline.run.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            RerankJob(source, tmp_path / "ray.jsonl", **options).run()  # type: ignore[arg-type]
    manifest = tmp_path / "ray.jsonl.job" / "manifest"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:3]))

    summary = RerankJob(source, tmp_path / "ray.jsonl", runner="ray", workers=2, **options).run().summary  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="has 2 CPUs"):
        RerankJob(source, tmp_path / "more.jsonl", runner="ray", workers=3, **options).run()  # type: ignore[arg-type]
    assert (summary.pairs, summary.errors) == (121, 1)
    assert 0 < summary.resumed < 121
    assert (tmp_path / "local.jsonl").read_bytes() == (tmp_path / "ray.jsonl").read_bytes()
    assert len(read_jsonl(tmp_path / "ray.jsonl")) == 120


def test_a_ray_actor_that_is_killed_is_replaced_and_nothing_is_lost_or_twice(
    tmp_path: Path, job: Job, cluster: None
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [*make_records(1000), "bad"])
    marker = tmp_path / "died"
    options = {"window_pairs": 64, "token_budget": 400}
    job(source, "local.jsonl", **options).run()
    summary = (
        job(
            source,
            "ray.jsonl",
            runner="ray",
            workers=2,
            engine_factory=OneArmedEngine,
            engine_options={"marker": str(marker)},
            **options,
        )
        .run()
        .summary
    )
    assert marker.exists(), "the actor was killed"
    assert (summary.pairs, summary.errors) == (1001, 1)
    assert (tmp_path / "local.jsonl").read_bytes() == (tmp_path / "ray.jsonl").read_bytes()


def test_pairs_that_kill_every_ray_actor_stop_the_job(tmp_path: Path, job: Job, cluster: None) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(6))
    with pytest.raises(EngineError, match="3 Ray workers died while they scored lines 1 to 6"):
        job(source, runner="ray", workers=2, engine_factory=CondemnedEngine).run()
