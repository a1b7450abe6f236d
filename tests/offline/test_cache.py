"""Offline jobs with a cache: what it saves, and that the output has the same bytes whatever the cache holds."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.calibration import Calibration
from qwen3_ranker_plugins.offline import RerankJob
from qwen3_ranker_plugins.offline.progress import describe

from .conftest import Job, JobProcess, make_records, read_jsonl, write_jsonl
from .engines import FaultyEngine, NullEngine
from .test_long_documents import PIECES, long_records

CALLS: list[int] = []


class CompanyEngine(NullEngine):
    """The last bit of a margin depends on what else is in the pass, as on real hardware; CALLS counts documents."""

    def score(self, requests: Any) -> Any:
        CALLS.append(sum(len(each.segments) for each in requests))
        results = super().score(requests)
        for each in results:
            each.values[:] += sum(map(len, (ids for request in requests for ids in request.segments))) / 1000
        return results


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def counts(results: Any) -> tuple[int, int]:
    return results.summary.cache_hits, results.summary.cache_misses


@pytest.mark.parametrize("options", [{}, PIECES, {"devices": ["cpu"]}], ids=["whole", "pieces", "process"])
def test_a_second_job_scores_nothing_and_writes_the_same(tmp_path: Path, job: Job, options: dict[str, Any]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", long_records(120))
    options = options | {"engine_factory": CompanyEngine, "window_pairs": 50, "token_budget": 400}
    plain = job(source, "plain.jsonl", **options).run()
    assert counts(plain) == (0, 0)
    cached = options | {"cache_path": tmp_path / "scores.cache"}
    first = job(source, "first.jsonl", **cached).run()
    assert counts(first) == (0, 120)
    assert "cache: 0 hits, 120 misses" in describe(first.summary)
    CALLS.clear()
    second = job(source, "second.jsonl", **cached).run()
    assert counts(second) == (120, 0)
    assert not CALLS
    assert (second.summary.tokens, first.summary.tokens) == (0, plain.summary.tokens)
    assert plain.path.read_bytes() == first.path.read_bytes() == second.path.read_bytes()


def test_the_bundled_model_finds_what_it_scored(tmp_path: Path) -> None:
    """Also where documents share a text, and for other output options."""
    records = [*make_records(20), {"query_id": "q0", "doc_id": "again", **_texts(make_records(1)[0])}]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    options: dict[str, Any] = {"model": "bundled:tiny", "processing_time": False}
    plain = RerankJob(source, tmp_path / "plain.jsonl", **options).run()
    options["cache_path"] = tmp_path / "scores.cache"
    assert counts(RerankJob(source, tmp_path / "first.jsonl", **options).run()) == (0, 21)
    second = RerankJob(source, tmp_path / "second.jsonl", **options).run()
    assert counts(second) == (21, 0)
    assert plain.path.read_bytes() == second.path.read_bytes()
    with Reranker("bundled:tiny") as reranker:
        Calibration("platt", 0.5, -1.0, reranker.judgement_facts()).write(tmp_path / "calibration.json")
    calibrated = RerankJob(
        source, tmp_path / "other.csv", include_text=True, calibration=tmp_path / "calibration.json", **options
    ).run()
    assert counts(calibrated) == (21, 0)
    margins = {(each.query_id, each.doc_id): each.margin for each in plain}
    assert {(each.query_id, each.doc_id): each.margin for each in calibrated} == margins
    assert counts(RerankJob(source, tmp_path / "bf16.jsonl", dtype="bfloat16", **options).run()) == (0, 21)


def _texts(record: dict[str, str]) -> dict[str, str]:
    return {name: record[name] for name in ("query", "document")}


def test_only_whole_passes_are_taken(tmp_path: Path, job: Job) -> None:
    """A pass with one other document would give all of them other last bits, so it is scored as a whole."""
    records = make_records(40)
    options = {"engine_factory": CompanyEngine, "window_pairs": 10, "cache_path": tmp_path / "scores.cache"}
    job(write_jsonl(tmp_path / "in.jsonl", records), "first.jsonl", **options).run()
    changed = [*records[:15], records[15] | {"document": "another text"}, *records[16:], *make_records(10, seed=7)]
    changed[40:] = [record | {"query_id": "new"} for record in changed[40:]]
    source = write_jsonl(tmp_path / "changed.jsonl", changed)
    CALLS.clear()
    second = job(source, "second.jsonl", **options).run()
    assert counts(second) == (30, 20)  # the window with the changed document, and the new one
    assert sum(CALLS) == 20
    plain = job(source, "plain.jsonl", **options | {"cache_path": None}).run()
    assert plain.path.read_bytes() == second.path.read_bytes()
    # Another budget plans other passes of the same documents.
    assert counts(job(source, "small.jsonl", **options, token_budget=150).run()) == (0, 50)


def test_pairs_without_a_score_are_errors_again(tmp_path: Path, job: Job) -> None:
    records = make_records(40)
    for place, word in ((2, "nan"), (15, "poison"), (27, "refuse")):
        records[place]["document"] += f" {word}"
    source = write_jsonl(tmp_path / "in.jsonl", records)
    options = {"engine_factory": FaultyEngine, "window_pairs": 10}
    plain = job(source, "plain.jsonl", **options).run()
    options["cache_path"] = tmp_path / "scores.cache"
    for name, found in (("first.jsonl", (0, 37)), ("second.jsonl", (10, 27))):
        results = job(source, name, **options).run()
        assert counts(results) == found
        assert results.path.read_bytes() == plain.path.read_bytes()
        assert results.errors_path.read_bytes() == plain.errors_path.read_bytes()


def test_a_reranker_finds_the_scores_of_a_job_and_the_job_its_own(tmp_path: Path) -> None:
    records = make_records(10)
    source = write_jsonl(tmp_path / "in.jsonl", records)
    options: dict[str, Any] = {"model": "bundled:tiny", "cache_path": tmp_path / "scores.cache"}
    rows = read_jsonl(RerankJob(source, tmp_path / "first.jsonl", **options).run().path)
    with Reranker(**options) as reranker:
        documents = [record["document"] for record in records]
        result = reranker.rerank(records[0]["query"], [*documents, "one more"])
        assert result.usage.cached_documents == 10
        assert {f"d{hit.index}": hit.margin for hit in result if hit.index < 10} == {
            row["doc_id"]: row["margin"] for row in rows
        }
    assert counts(RerankJob(source, tmp_path / "second.jsonl", **options).run()) == (10, 0)


SCRIPT: dict[str, Any] = {"window_pairs": 64, "token_budget": 400}  # as in a JobProcess


@pytest.mark.parametrize("options", [{}, PIECES], ids=["whole", "pieces"])
def test_kills_change_nothing(tmp_path: Path, job: Job, options: dict[str, Any]) -> None:
    """A kill leaves a file in which the next run finds the passes that were written, and nothing else."""
    source = write_jsonl(tmp_path / "in.jsonl", [*long_records(600), "bad"])
    plain = job(source, "plain.jsonl", **SCRIPT, **options).run()
    path, output = tmp_path / "scores.cache", tmp_path / "out.jsonl"
    cached = options | {"cache_path": str(path)}
    stored = [0]
    for restart in (True, True, False):  # anew, so that only the cache remembers, and then from the checkpoint
        killed = JobProcess(source, output, "SlowerEngine", options=cached | {"restart": restart}, KILL_AT="12")
        assert killed.wait()[0] == -9
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            stored += connection.execute("SELECT count(*) FROM scores").fetchone()
        connection.close()
    assert stored == sorted(set(stored))  # each run scored what none before had
    resumed = job(source, **SCRIPT, **cached).run()
    assert resumed.summary.resumed > 0
    assert counts(resumed)[1] > 0
    assert output.read_bytes() == plain.path.read_bytes()
    last = job(source, "last.jsonl", **SCRIPT, **cached).run()
    # The manifest has up to 0.2 s of passes more than the cache.
    assert 0 <= counts(last)[1] < 150
    assert last.path.read_bytes() == plain.path.read_bytes()


def test_two_jobs_share_a_file_while_they_run(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(1500))
    path = tmp_path / "scores.cache"
    options: dict[str, object] = {"cache_path": str(path)}
    jobs = [JobProcess(source, tmp_path / f"{name}.jsonl", "MortalEngine", options=options) for name in "ab"]
    assert [each.wait()[0] for each in jobs] == [0, 0]
    plain = job(source, "plain.jsonl", **SCRIPT).run()
    expected = plain.path.read_bytes()
    assert [(tmp_path / f"{name}.jsonl").read_bytes() for name in "ab"] == [expected, expected]
    assert counts(job(source, "c.jsonl", **SCRIPT, cache_path=path).run()) == (1500, 0)


def test_a_job_continues_with_or_without_the_cache(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(300))
    output, path = tmp_path / "out.jsonl", str(tmp_path / "scores.cache")
    assert JobProcess(source, output, "MortalEngine", options={"cache_path": path}, KILL_AT="10").wait()[0] == -9
    job(source, **SCRIPT).run()
    assert output.read_bytes() == job(source, "plain.jsonl", **SCRIPT).run().path.read_bytes()


def test_unusable_arguments_are_named(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(4))
    with pytest.raises(InvalidInputError, match=r"cache=1000000.*give cache_path"):
        job(source, cache="1MB")
    with pytest.raises(InvalidInputError, match=r"cache_path=.*unless runner is 'local'"):
        job(source, cache_path=tmp_path / "scores.cache", runner="ray")
    (tmp_path / "text.cache").write_text("no cache " * 500)
    with pytest.raises(InvalidInputError, match="cannot be read as a cache"):
        job(source, cache_path=tmp_path / "text.cache").run()
    assert not (tmp_path / "out.jsonl.job").exists()
