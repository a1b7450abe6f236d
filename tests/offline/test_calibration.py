"""Calibrated jobs: every format holds calibrated scores and the model's margins, in the same order."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.calibration import Calibration
from qwen3_ranker_plugins.offline import CheckpointError, RerankedPair

from .conftest import Job, make_records, read_jsonl, write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in.jsonl", make_records(40))


@pytest.fixture
def calibration(tmp_path: Path, reranker: Reranker) -> Path:
    path = tmp_path / "calibration.json"
    Calibration("platt", 0.4, -0.7, reranker.judgement_facts()).write(path)
    return path


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet", "out.trec"])
def test_calibrated_scores_in_every_format(job: Job, source: Path, calibration: Path, output: str) -> None:
    plain = list(job(source, f"plain-{output}").run())
    found: list[RerankedPair] = list(job(source, output, calibration=calibration).run())
    assert [(each.query_id, each.doc_id, each.rank, each.margin) for each in found] == [
        (each.query_id, each.doc_id, each.rank, each.margin) for each in plain
    ]
    expected = [1 / (1 + math.exp(0.7 - 0.4 * each.margin)) for each in found]
    assert [each.relevance_score for each in found] == pytest.approx(expected, abs=1e-12)
    assert [each.confidence for each in found] == pytest.approx([abs(2 * each - 1) for each in expected], abs=1e-12)


def test_a_job_does_not_go_on_with_another_calibration(job: Job, source: Path, calibration: Path) -> None:
    job(source, calibration=calibration).run()
    content = json.loads(calibration.read_text(encoding="utf-8"))
    calibration.write_text(json.dumps(content | {"slope": 0.5}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"calibration: platt, 0\.4"):
        job(source, calibration=calibration).run()
    with pytest.raises(CheckpointError, match="calibration"):
        job(source).run()
    job(source, calibration=calibration, restart=True).run()
    first = read_jsonl(source.with_name("out.jsonl"))[0]
    assert first["relevance_score"] == pytest.approx(1 / (1 + math.exp(0.7 - 0.5 * first["margin"])))


def test_a_calibration_for_another_prompt_is_refused(job: Job, source: Path, calibration: Path) -> None:
    with pytest.raises(InvalidInputError, match="fitted with another template"):
        job(source, calibration=calibration, template="compact").run()
