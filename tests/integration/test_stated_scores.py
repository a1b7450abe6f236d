"""`doctor` and scores that somebody has stated publicly, with the bundled model in the place of official weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.doctor import checkpoint_name, read_reference_scores
from qwen3_ranker_plugins.prompt import TEMPLATES
from tests.forms import copy_of

QUERY, DOCUMENTS = "how are volcanoes formed?", ["Magma rises and erupts.", "Needles come in several sizes."]


def write_stated(path: Path, shift: float, kind: str = "margin") -> Path:
    with Reranker("bundled:tiny", template="standard-hf", instruction="Find answers.") as judge:
        hits = sorted(judge.rerank(QUERY, DOCUMENTS), key=lambda hit: hit.index)
    values = [(hit.margin if kind == "margin" else hit.score) + shift for hit in hits]
    stated = {
        "model": "somebody/Official-Reranker",
        "source": "a model card",
        "template": "standard-hf",
        "instruction": "Find answers.",
        "query": QUERY,
        "documents": DOCUMENTS,
        "kind": kind,
        "values": values,
        "tolerance": 0.01,
    }
    path.write_text(json.dumps({"scores": [stated]}))
    return path


def doctor(path: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(
        app, ["doctor", "--model", "bundled:tiny", "--device", "cpu", "--reference-file", str(path), *arguments]
    )
    return done.exit_code, done.output


@pytest.mark.parametrize("kind", ["margin", "probability"])
def test_scores_that_agree_and_scores_that_differ(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "stated.json"
    named = ("--reference", "somebody/Official-Reranker")
    code, output = doctor(write_stated(path, 0.0, kind), *named)
    assert code == 0
    assert "agrees" in output
    code, output = doctor(write_stated(path, 0.05, kind), *named)
    assert code == 1
    assert "differs" in output
    assert "none of 1 published scores" in " ".join(output.split())
    code, output = doctor(path)  # another model's scores are not compared
    assert code == 0
    assert "published" not in output


def test_the_scores_of_the_package_can_be_compared() -> None:
    scores = read_reference_scores()
    assert {each["model"] for each in scores} >= {f"Qwen/Qwen3-Reranker-{size}" for size in ("0.6B", "4B", "8B")}
    for each in scores:
        assert len(each["values"]) == len(each["documents"])
        assert each["tolerance"] > 0
        assert each["source"]
        assert each["kind"] in ("margin", "probability", "logit of Yes")
        assert each["template"] in {*TEMPLATES, "zerank"}


def test_a_file_without_scores_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="reference_file"):
        read_reference_scores(tmp_path / "other.json")


def test_a_snapshot_in_the_hubs_cache_is_known_by_its_models_name(tiny: Path, tmp_path: Path) -> None:
    """As people mount it: the folder's own name is a revision, and nothing in it says what the model is called."""
    snapshot = tmp_path / "hub" / "models--somebody--Official-Reranker" / "snapshots" / "6e9e69830b95"
    copy_of(tiny, snapshot)
    (tmp_path / "link").symlink_to(snapshot)
    path = write_stated(tmp_path / "stated.json", 0.0)
    for folder in (snapshot, tmp_path / "link"):
        done = CliRunner().invoke(
            app, ["doctor", "--model", str(folder), "--device", "cpu", "--reference-file", str(path)]
        )
        assert done.exit_code == 0
        assert "agrees" in done.output
    assert checkpoint_name("Qwen/Qwen3-Reranker-0.6B") == "Qwen3-Reranker-0.6B"
    assert checkpoint_name(f"{snapshot}/") == "Official-Reranker"
