"""The wrapper for mteb's evaluation, on mteb's own tasks in memory. Skipped where mteb is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3_ranker_plugins import Reranker

mteb = pytest.importorskip("mteb", reason="pip install mteb")

from mteb.mocks import mock_tasks  # noqa: E402

from benchmarks.mteb_rerank import MtebReranker, evaluate  # noqa: E402


@pytest.fixture(scope="module")
def model() -> MtebReranker:
    return MtebReranker(Reranker("bundled:tiny"), "bundled:tiny")


def test_pairs_come_back_in_their_order_whatever_the_batches(model: MtebReranker) -> None:
    queries = ["how are volcanoes formed?", "how are volcanoes formed?", "knitting", "how are volcanoes formed?"]
    documents = ["Magma rises.", "Needles come in sizes.", "Needles come in sizes.", "Lava cools."]
    found = model.predict(
        [{"text": queries[:1]}, {"text": queries[1:]}], [{"text": documents[:3]}, {"text": documents[3:]}]
    )
    pairs = zip(queries, documents, strict=True)
    with Reranker("bundled:tiny") as alone:
        assert found.tolist() == pytest.approx([float(alone.score(q, [d])[0]) for q, d in pairs], abs=1e-6)
    assert model.predict([], []).shape == (0,)


def test_a_reranking_task(model: MtebReranker) -> None:
    [row] = evaluate(model, [mock_tasks.MockRerankingTask()], None, 100)
    assert row["task"] == "MockRerankingTask"
    assert 0 < row["ndcg_at_10"] <= 1


def test_a_retrieval_task_with_the_candidates_of_another_model(model: MtebReranker, tmp_path: Path) -> None:
    task = mock_tasks.MockRetrievalTask()
    task.load_data()
    candidates = {
        subset: {
            split: {query: dict.fromkeys(data["corpus"]["id"], 1.0) for query in data["queries"]["id"]}
            for split, data in splits.items()
        }
        for subset, splits in task.dataset.items()
    }
    file = tmp_path / f"{task.metadata.name}_predictions.json"
    file.write_text(json.dumps({"mteb_model_meta": {"model_name": "other", "revision": "1"}, **candidates}))
    rows = evaluate(model, [task], tmp_path, 100)
    assert {row["split"] for row in rows} == {split for splits in candidates.values() for split in splits}
    assert all(row["ndcg_at_10"] > 0 for row in rows)
