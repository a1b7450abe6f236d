"""Offline jobs judge long documents in pieces: as `Reranker` does, whatever shares a pass, and through kills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.offline import CheckpointError, RerankJob
from qwen3_ranker_plugins.offline.writers import FORMATS

from .conftest import Job, make_records, read_jsonl, write_jsonl
from .engines import FaultyEngine
from .kills import kill_again_and_again

PIECES: dict[str, Any] = {"long_documents": "pieces", "piece_tokens": 24, "piece_overlap": 4}


def long_records(pairs: int) -> list[dict[str, str]]:
    """Documents of one to five pieces."""
    return [
        record | {"document": ". ".join([record["document"]] * (number % 5 + 1))}
        for number, record in enumerate(make_records(pairs, 4))
    ]


@pytest.mark.parametrize("token_budget", [None, 120])
def test_the_bundled_model_gives_what_the_reranker_gives(tmp_path: Path, token_budget: int | None) -> None:
    """Also where the pieces of one document exceed the budget of a pass."""
    records = long_records(8)
    source = write_jsonl(tmp_path / "in.jsonl", records)
    RerankJob(source, tmp_path / "out.jsonl", model="bundled:tiny", token_budget=token_budget, **PIECES).run()
    rows = read_jsonl(tmp_path / "out.jsonl")
    with Reranker("bundled:tiny", **PIECES) as reranker:
        for start in range(0, 8, 4):
            hits = reranker.rerank(records[start]["query"], [each["document"] for each in records[start : start + 4]])
            found = rows[start : start + 4]
            assert hits.usage.pieces > 4
            assert [row["doc_id"] for row in found] == [f"d{hit.index}" for hit in hits]
            assert [row["margin"] for row in found] == pytest.approx([hit.margin for hit in hits], abs=2e-5)
            assert [(row["piece_start"], row["piece_end"]) for row in found] == [hit.piece for hit in hits]
            assert [row["truncated"] for row in found] == [0] * 4


def test_formats_of_the_output_agree(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", long_records(40))
    found = {}
    for name in FORMATS:
        pairs = list(job(source, f"out.{name}", format=name, include_text=name != "csv", **PIECES).run())
        found[name] = [(each.query_id, each.doc_id, each.piece_start, each.piece_end) for each in pairs]
        if name in ("jsonl", "parquet"):
            assert all(each.document[each.piece_start : each.piece_end] for each in pairs)
    assert found["jsonl"] == found["parquet"] == found["csv"]
    assert any(start for _, _, start, _ in found["jsonl"])
    assert [each[:2] for each in found["trec"]] == [each[:2] for each in found["jsonl"]]


def test_what_is_left_out_is_counted(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", long_records(20))
    results = job(source, **PIECES, max_pieces=1).run()
    assert results.summary.truncated > 0
    assert results.summary.truncated == sum(row["truncated"] > 0 for row in read_jsonl(tmp_path / "out.jsonl"))


def test_a_piece_without_a_score_is_an_error_of_its_pair(tmp_path: Path, job: Job) -> None:
    records = long_records(8)
    for place, word in ((2, "nan"), (5, "poison"), (7, "refuse")):
        records[place]["document"] = f"open the file. {word} again. " + "close the list. " * 20
    source = write_jsonl(tmp_path / "in.jsonl", records)
    results = job(source, engine_factory=FaultyEngine, **PIECES).run()
    assert (results.summary.pairs, results.summary.scored, results.summary.errors) == (8, 5, 3)
    failed = {(each["query_id"], each["doc_id"]) for each in read_jsonl(results.errors_path)}
    assert failed == {(records[place]["query_id"], records[place]["doc_id"]) for place in (2, 5, 7)}


def test_a_job_cannot_go_on_with_other_pieces(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", long_records(20))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for begun, other in (({}, PIECES), (PIECES, {}), (PIECES, PIECES | {"piece_tokens": 25})):
        name = f"out{len(begun)}{len(other)}.jsonl"
        with monkeypatch.context() as patch:
            patch.setattr("qwen3_ranker_plugins.offline.run.merge", stop)
            with pytest.raises(KeyboardInterrupt):
                job(source, name, **begun).run()
        with pytest.raises(CheckpointError, match="long_documents: "):
            job(source, name, **other).run()
        job(source, name, **begun).run()


def test_kills_change_nothing(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [*long_records(1500), "bad"])
    kills, compared = kill_again_and_again(source, tmp_path, 3, seed=3, options=PIECES)
    assert len(kills) == 3
    assert compared >= 1
    assert all(0 <= kill.lost_passes <= 1 for kill in kills), kills
