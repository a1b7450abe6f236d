"""Kills, damage, other processes, other settings, full disks: nothing is lost, twice, or mixed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen3_ranker_plugins.offline import CheckpointError, JobLockedError
from qwen3_ranker_plugins.offline.checkpoint import Checkpoint

from .conftest import Job, JobProcess, committed, finish_job, make_records, read_jsonl, write_jsonl
from .kills import kill_again_and_again

PAIRS = 1200


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, two of them unreadable, and a few queries scattered."""
    records: list[object] = list(make_records(PAIRS))
    records[100], records[700] = "bad", {"query_id": "q"}
    records[5], records[905] = records[905], records[5]
    return write_jsonl(tmp_path_factory.mktemp("checkpoint") / "in.jsonl", records)


@pytest.fixture(scope="module")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """(output, errors) of a job that nothing happens to."""
    output = tmp_path_factory.mktemp("uninterrupted") / "out.jsonl"
    finish_job(source, output)
    return output.read_bytes(), output.with_name("out.jsonl.errors.jsonl").read_bytes()


def assert_same(output: Path, expected: tuple[bytes, bytes]) -> None:
    assert output.read_bytes() == expected[0]
    assert output.with_name(f"{output.name}.errors.jsonl").read_bytes() == expected[1]


def committed_pairs(output: Path) -> int:
    return committed(output)[1]


def test_kills_in_chosen_passes(tmp_path: Path, source: Path, uninterrupted: tuple[bytes, bytes]) -> None:
    output = tmp_path / "out.jsonl"
    expected = 0
    for kill_at in (1, 2, 3, 9, 17):  # a run starts counting its passes anew
        code, messages = JobProcess(source, output, "MortalEngine", KILL_AT=str(kill_at)).wait()
        assert code == -signal.SIGKILL, messages
        assert not output.exists()
        expected += kill_at - 1
        assert committed(output)[0] == expected, "all but the pass in flight"
    finish_job(source, output, "MortalEngine")
    assert_same(output, uninterrupted)
    assert json.loads((tmp_path / "out.jsonl.job" / "summary.json").read_text())["resumed"] > 0


@pytest.mark.parametrize("devices", [None, ["cpu", "cpu"]])
def test_kills_at_random_moments_lose_the_pass_in_flight(tmp_path: Path, devices: list[str] | None) -> None:
    """benchmarks/kill_offline.py does the same with more kills. A worker has a pass in flight and one on its way."""
    source = write_jsonl(tmp_path / "in.jsonl", [*make_records(3000), "bad"])
    allowed = 1 if devices is None else 2 * len(devices)
    kills, compared = kill_again_and_again(source, tmp_path, 8, seed=7, options={"devices": devices})
    assert len(kills) == 8
    assert compared >= 1
    assert sum(kill.committed for kill in kills) > 0
    assert all(0 <= kill.lost_passes <= allowed for kill in kills), kills


def interrupted(job: Job, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a checkpoint behind: the job ends when it begins to write the output."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qwen3_ranker_plugins.offline.run.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            job(source, window_pairs=64, token_budget=400).run()


def truncate_manifest(folder: Path) -> None:
    path = folder / "manifest"
    path.write_bytes(path.read_bytes()[:-7])


def garble_manifest(folder: Path) -> None:
    lines = (folder / "manifest").read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b" 0 ", b" 1 ")
    lines[5] = b"\xff\x00 garbage\n"
    lines[8] = lines[7]  # a pass twice, another one missing
    (folder / "manifest").write_bytes(b"".join(lines))


def remove_manifest(folder: Path) -> None:
    (folder / "manifest").unlink()


def flip_a_bit_of_the_part(folder: Path) -> None:
    (part,) = folder.glob("part-*")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)


def truncate_the_part(folder: Path) -> None:
    (part,) = folder.glob("part-*")
    os.truncate(part, part.stat().st_size // 2)


def remove_the_part(folder: Path) -> None:
    (part,) = folder.glob("part-*")
    part.unlink()


def append_to_the_part_and_add_another(folder: Path) -> None:
    (part,) = folder.glob("part-*")
    with part.open("ab") as file:
        file.write(b'[[0,1,"q","never listed",1.0,0,0.1')
    (folder / "part-00007.jsonl").write_bytes(b"never listed either\n")


@pytest.mark.parametrize(
    "damage",
    [
        truncate_manifest,
        garble_manifest,
        remove_manifest,
        flip_a_bit_of_the_part,
        truncate_the_part,
        remove_the_part,
        append_to_the_part_and_add_another,
    ],
)
def test_damage_costs_only_the_passes_that_it_hit(
    tmp_path: Path,
    job: Job,
    source: Path,
    uninterrupted: tuple[bytes, bytes],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    interrupted(job, source, monkeypatch)
    damage(tmp_path / "out.jsonl.job")
    summary = job(source, window_pairs=64, token_budget=400).run().summary
    assert_same(tmp_path / "out.jsonl", uninterrupted)
    if "remove" not in damage.__name__:
        assert summary.resumed > PAIRS / 3
    assert (summary.pairs, summary.errors) == (PAIRS, 2)


def test_other_settings_are_refused_and_named(
    tmp_path: Path, job: Job, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(job, source, monkeypatch)
    same = {"window_pairs": 64, "token_budget": 400}
    for changed, field in (
        ({"instruction": "find recipes"}, "instruction"),
        ({"template": "compact"}, "template"),
        ({"max_length": 100}, "max_length"),
        ({"engine_options": {"n": 1}}, "engine_options"),
        ({"token_budget": 500}, "token_budget"),
        ({"window_pairs": 65}, "window"),
        ({"include_text": True}, "include_text"),
        ({"processing_time": True}, "output"),
    ):
        with pytest.raises(CheckpointError, match=rf"(?s)\n  {field}: .*--restart"):
            job(source, **(same | changed)).run()
    other = tmp_path / "other.jsonl"
    other.write_bytes(source.read_bytes().replace(b"open", b"shut"))
    with pytest.raises(CheckpointError, match=r"\n  input: \d+ bytes, sha256"):
        job(other, **same).run()
    assert job(source, restart=True, **same).run().summary.resumed == 0


def test_another_model_is_refused(
    tmp_path: Path, tiny: Path, job: Job, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(job, source, monkeypatch)
    other = tmp_path / "model"
    other.mkdir()
    for path in tiny.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (weights,) = other.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"\n  model: "):
        job(source, model=other, window_pairs=64, token_budget=400).run()


def test_two_processes_on_one_output(tmp_path: Path, job: Job, source: Path) -> None:
    first = Checkpoint(tmp_path / "out.jsonl")
    code, message = JobProcess(source, tmp_path / "out.jsonl", "NullEngine").wait()
    assert code == 1
    assert f"JobLockedError: {tmp_path / 'out.jsonl'} is being written by process {os.getpid()}" in message
    with pytest.raises(JobLockedError):
        job(source).run()
    first.close()
    assert job(source).run().summary.pairs == PAIRS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting needs root: the test with a file size limit stands in for a full disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_the_job_and_leaves_what_can_be_continued(
    tmp_path: Path, small_disk: Path, source: Path, uninterrupted: tuple[bytes, bytes]
) -> None:
    output = small_disk / "out.jsonl"
    code, message = JobProcess(source, output, "NullEngine").wait()
    assert code == 1
    assert "StorageError" in message
    assert "No space left on device" in message
    assert not output.exists()
    assert 0 < committed_pairs(output) <= PAIRS
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    finish_job(source, output)
    assert_same(output, uninterrupted)
    assert json.loads((small_disk / "out.jsonl.job" / "summary.json").read_text())["resumed"] > 0


@pytest.mark.parametrize("limit", [1_000, 10_000, 40_000, 120_000])
def test_a_file_that_may_not_grow_stops_the_job(
    tmp_path: Path, source: Path, uninterrupted: tuple[bytes, bytes], limit: int
) -> None:
    """Stands for a full disk at other moments: in the part, the manifest, the output."""
    output = tmp_path / "out.jsonl"
    first = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    code, message = JobProcess(source, output, "NullEngine", first=first).wait()
    assert code == 1
    assert "StorageError" in message
    assert not output.exists()
    finish_job(source, output)
    assert_same(output, uninterrupted)


def test_an_interrupt_keeps_what_was_scored(tmp_path: Path, source: Path, uninterrupted: tuple[bytes, bytes]) -> None:
    output = tmp_path / "out.jsonl"
    running = JobProcess(source, output, "SlowMortalEngine")
    deadline = time.monotonic() + 60
    while committed_pairs(output) < 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.process.send_signal(signal.SIGINT)
    code, messages = running.wait()
    assert code != 0
    assert "KeyboardInterrupt" in messages
    assert 100 <= committed_pairs(output) < PAIRS
    finish_job(source, output)
    assert_same(output, uninterrupted)
    assert len(read_jsonl(output)) == PAIRS - 2
