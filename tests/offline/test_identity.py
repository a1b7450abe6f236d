"""An input is known by what it holds; an output never replaces an input, and nothing is forgotten unasked."""

from __future__ import annotations

import functools
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from qwen3_ranker_plugins import InvalidInputError
from qwen3_ranker_plugins.content import Sampling
from qwen3_ranker_plugins.data import source as source_module
from qwen3_ranker_plugins.data.pairs import Fields
from qwen3_ranker_plugins.data.source import former_file_identity
from qwen3_ranker_plugins.offline import CheckpointError
from qwen3_ranker_plugins.offline.checkpoint import Checkpoint

from .conftest import Job, make_records, read_jsonl, write_jsonl
from .engines import NullEngine

SETTINGS: dict[str, Any] = {"window_pairs": 64, "token_budget": 400}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in.jsonl", make_records(300))


def interrupt(job: Job, monkeypatch: pytest.MonkeyPatch, source: object, **options: Any) -> None:
    """End a job after its last pass."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qwen3_ranker_plugins.offline.run.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            job(source, **SETTINGS, **options).run()


@pytest.mark.parametrize("kind", ["same", "symbolic link", "hard link", "through a folder"])
def test_an_output_that_is_the_input_is_refused(tmp_path: Path, job: Job, source: Path, kind: str) -> None:
    before = source.read_bytes()
    output = tmp_path / "other.jsonl"
    if kind == "same":
        output = source
    elif kind == "symbolic link":
        output.symlink_to(source)
    elif kind == "hard link":
        output.hardlink_to(source)
    else:
        (tmp_path / "link").symlink_to(tmp_path)
        output = tmp_path / "link" / "in.jsonl"
    for option in ({}, {"restart": True}, {"overwrite": True}):
        with pytest.raises(InvalidInputError, match="is the input"):
            job(source, str(output), **option).run()
    assert source.read_bytes() == before
    assert not list(tmp_path.glob("*.job"))


def test_no_file_that_is_read_may_be_written(tmp_path: Path, job: Job) -> None:
    beir = tmp_path / "beir"
    beir.mkdir()
    corpus = write_jsonl(beir / "corpus.jsonl", [{"_id": "a", "text": "text"}])
    write_jsonl(beir / "queries.jsonl", [{"_id": "q", "text": "what"}])
    run = tmp_path / "in.run"
    run.write_text("q Q0 a 1 1.0 t\n")
    errors = tmp_path / "x.jsonl.errors.jsonl"
    write_jsonl(errors, make_records(2))
    shards = tmp_path / "shards"
    shards.mkdir()
    write_jsonl(shards / "0.jsonl", make_records(2))
    for given, output, options in (
        (beir, run, {"run": run}),
        (beir, corpus, {"run": run}),
        (errors, tmp_path / "x.jsonl", {}),
        (shards, shards / "out.jsonl", {}),
        (f"{shards}/*.jsonl", shards / "out.jsonl", {}),
    ):
        with pytest.raises(InvalidInputError, match=r"is the input|next run"):
            job(given if isinstance(given, str) else str(given), str(output), overwrite=True, **options).run()
    assert run.read_text() == "q Q0 a 1 1.0 t\n"


def test_an_output_that_cannot_be_a_file_is_refused_before_scoring(tmp_path: Path, job: Job, source: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "x.jsonl.errors.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, message in (
        ("folder.jsonl", "is a folder"),
        ("x.jsonl", "is a folder"),
        ("pipe.jsonl", "is a device or a pipe"),
        (f"{'x' * 245}.jsonl", "File name too long"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            job(source, name, restart=True).run()


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path, job: Job, source: Path) -> None:
    target = tmp_path / "elsewhere.jsonl"
    (tmp_path / "out.jsonl").symlink_to(target)
    results = job(source).run()
    assert (tmp_path / "out.jsonl").is_symlink()
    assert results.path == target
    assert len(read_jsonl(target)) == 300


def test_a_touched_moved_or_copied_input_goes_on(
    tmp_path: Path, job: Job, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(job, monkeypatch, source)
    moved = source.rename(tmp_path / "moved.jsonl")
    os.utime(moved, (1, 1))
    assert job(moved, **SETTINGS).run().summary.resumed == 300


def test_other_content_of_equal_size_and_time_is_refused(
    tmp_path: Path, job: Job, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(job, monkeypatch, source)
    status = source.stat()
    source.write_bytes(source.read_bytes().replace(b"open", b"shut"))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match=r"input: \d+ bytes, sha256 \w+ -> \d+ bytes, sha256"):
        job(source, **SETTINGS).run()


def test_a_change_between_the_samples_of_a_large_file_is_found_in_its_window(
    tmp_path: Path, job: Job, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "THOROUGH", Sampling(whole=100, samples=2, block=50))
    interrupt(job, monkeypatch, source)
    lines = source.read_bytes().splitlines(keepends=True)
    lines[150] = lines[150].replace(b"number 15", b"Number 15")
    source.write_bytes(b"".join(lines))
    with pytest.raises(CheckpointError, match="lines 129 to 192 of the input have changed"):
        job(source, **SETTINGS).run()


class _Meddling(NullEngine):
    """Changes the input while it is scored, as `change` says."""

    change: Any = None

    def score(self, requests: Any) -> Any:
        if self.passes == 0:
            type(self).change()
        return super().score(requests)


def test_an_input_that_grows_is_read_as_far_as_it_was_and_reported(
    tmp_path: Path, job: Job, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job(source, "expected.jsonl", **SETTINGS).run()
    more = json.dumps(make_records(1)[0] | {"query_id": "new"}) + "\n"

    class Growing(_Meddling):
        @staticmethod
        def change() -> None:
            with source.open("a") as file:
                file.write(more)

    results = job(source, engine_factory=Growing, **SETTINGS).run()
    assert results.summary.grown_bytes == len(more)
    assert f"grown by {len(more)} bytes" in caplog.text
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()


def test_an_input_that_changes_while_it_is_scored_stops_the_job(tmp_path: Path, job: Job, source: Path) -> None:
    content = source.read_bytes()

    class Changing(_Meddling):
        @staticmethod
        def change() -> None:
            source.write_bytes(content[:-20] + content[-20:].upper())

    with pytest.raises(CheckpointError, match="was changed while it was scored"):
        job(source, engine_factory=Changing, **SETTINGS).run()
    assert not (tmp_path / "out.jsonl").exists()


def as_an_earlier_version_left_it(folder: Path, source: Path) -> None:
    """Names, sizes and times for the input, nine numbers a pass, and none of the newer fields."""
    path = folder / "fingerprint.json"
    known = json.loads(path.read_text())
    for name in ("model_name", "columns", "input_format", "nested_titles"):
        del known[name]
    known["input"] = former_file_identity(source)
    path.write_text(json.dumps(known))
    lines = []
    for line in (folder / "manifest").read_text().splitlines():
        text = line.split(" ", 1)[1].rpartition(" ")[0]
        lines.append(f"{zlib.crc32(text.encode()):08x} {text}\n")
    (folder / "manifest").write_text("".join(lines))


def test_a_job_of_an_earlier_version_goes_on(
    tmp_path: Path, job: Job, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(job, monkeypatch, source)
    folder = tmp_path / "out.jsonl.job"
    as_an_earlier_version_left_it(folder, source)
    saved = {path.name: path.read_bytes() for path in folder.iterdir()}
    times = source.stat()
    source.touch()
    with pytest.raises(CheckpointError, match="touch -d"):
        job(source, **SETTINGS).run()
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in saved} == saved
    results = job(source, **SETTINGS).run()
    assert (results.summary.resumed, results.summary.model) == (300, "bundled:tiny")
    job(source, "expected.jsonl", **SETTINGS).run()
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()


def test_a_nested_job_of_an_earlier_version_reads_on_as_it_began(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ignored `title` and `id`: with these, half of its pairs would have other texts and ids."""
    documents = [{"id": f"d{number}", "title": "A title", "text": f"text {number}"} for number in range(200)]
    source = write_jsonl(tmp_path / "in.jsonl", [{"query": "what?", "documents": documents}])
    with monkeypatch.context() as patch:
        former = functools.partial(Fields, embeds_titles=False)
        patch.setattr("qwen3_ranker_plugins.offline.run.Fields", lambda columns, *_: former(columns))
        interrupt(job, monkeypatch, source, include_text=True)
    folder = tmp_path / "out.jsonl.job"
    as_an_earlier_version_left_it(folder, source)
    lines = (folder / "manifest").read_text().splitlines(keepends=True)
    (folder / "manifest").write_text("".join(lines[:2]))
    results = job(source, include_text=True, **SETTINGS).run()
    assert 0 < results.summary.resumed < 200
    assert {pair.doc_id: pair.document for pair in results} == {str(n): f"text {n}" for n in range(200)}
    anew = job(source, include_text=True, restart=True, **SETTINGS).run()
    assert {pair.doc_id: pair.document for pair in anew} == {f"d{n}": f"A title text {n}" for n in range(200)}


def test_overwrite_replaces_finished_and_foreign_outputs_and_goes_on_with_unfinished_jobs(
    tmp_path: Path, job: Job, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    with pytest.raises(CheckpointError, match="--overwrite"):
        job(source, **SETTINGS).run()
    interrupt(job, monkeypatch, source, overwrite=True)
    assert output.read_text() == "precious\n", "until the new output is whole"
    assert job(source, overwrite=True, **SETTINGS).run().summary.resumed == 300
    again = job(source, overwrite=True, **SETTINGS).run().summary
    assert (again.resumed, again.scored) == (0, 300)
    other = job(source, overwrite=True, instruction="find recipes", **SETTINGS).run().summary
    assert (other.resumed, other.scored) == (0, 300)
    interrupt(job, monkeypatch, source, overwrite=True)
    with pytest.raises(CheckpointError, match="instruction: "):
        job(source, overwrite=True, instruction="find songs", **SETTINGS).run()


def test_a_foreign_errors_file_is_not_removed(tmp_path: Path, job: Job, source: Path) -> None:
    errors = tmp_path / "out.jsonl.errors.jsonl"
    errors.write_text("precious\n")
    with pytest.raises(CheckpointError, match="was not made by this job"):
        job(source).run()
    assert errors.read_text() == "precious\n"


def test_restart_removes_nothing_that_no_job_has_made(tmp_path: Path, job: Job, source: Path) -> None:
    folder = tmp_path / "out.jsonl.job"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "notes.txt").write_text("precious\n")
    job(source, restart=True).run()
    assert (folder / "mine" / "notes.txt").read_text() == "precious\n"


def test_a_job_that_never_scored_leaves_nothing(tmp_path: Path, job: Job, source: Path) -> None:
    def broken(_: object) -> Any:
        raise InvalidInputError("device", "cuda:9", "there is none")

    with pytest.raises(InvalidInputError, match="cuda:9"):
        job(source, engine_factory=broken).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
    checkpoint = Checkpoint(tmp_path / "out.jsonl")
    checkpoint.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl.gz", "out.trec.gz"])
def test_packed_outputs_and_csv_hold_what_json_lines_hold(tmp_path: Path, job: Job, source: Path, name: str) -> None:
    texts = {"include_text": "trec" not in name, "processing_time": "trec" not in name}
    expected = job(source, "expected.jsonl", **(texts | {"processing_time": False})).run()
    found = job(source, name, **texts).run()
    kept = ("query_id", "doc_id", "margin", "relevance_score", "rank", "query", "document")
    assert [[getattr(pair, field) for field in kept] for pair in found] == [
        [getattr(pair, field) for field in kept] for pair in expected
    ]
    top = found.get_top_documents("q7", top_k=3)
    assert [pair.doc_id for pair in top] == [pair.doc_id for pair in expected.get_top_documents("q7", top_k=3)]
    first = (tmp_path / name).read_bytes()
    if "trec" in name:
        job(source, name, restart=True, **texts).run()
        assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(("first", "then"), [({}, {"scoring": "no - yes"}), ({"scoring": "no - yes"}, {})])
def test_a_job_goes_on_neither_with_nor_without_what_only_one_run_has(
    job: Job, source: Path, monkeypatch: pytest.MonkeyPatch, first: dict[str, str], then: dict[str, str]
) -> None:
    interrupt(job, monkeypatch, source, **first)
    with pytest.raises(CheckpointError, match=r"scoring: (yes - no -> no - yes|no - yes -> yes - no)"):
        job(source, **SETTINGS, **then).run()
    job(source, **SETTINGS, **first).run()
