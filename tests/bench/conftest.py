"""A small BEIR folder cut from the demo corpus, and results measured on it once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.bench.quality.reranking import QualityResult, measure_quality, override
from qwen3_ranker_plugins.bench.throughput.batch_sizes import ThroughputResult, measure_throughput
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.data.collection import Collection, open_collection
from qwen3_ranker_plugins.data.demo import load_demo_corpus

QUERIES = 6


def json_lines(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six queries, their judged passages and as many others, which are the shortest ones: fast to score."""
    corpus = load_demo_corpus()
    kept = list(corpus.queries)[:QUERIES]
    judged = {doc_id for query_id in kept for doc_id in corpus.qrels[query_id]}
    others = sorted(set(corpus.documents) - judged, key=lambda doc_id: len(corpus.documents[doc_id].text))[:60]
    folder = tmp_path_factory.mktemp("beir") / "small"
    (folder / "qrels").mkdir(parents=True)
    documents = [corpus.documents[doc_id] for doc_id in [*sorted(judged), *others]]
    json_lines(
        folder / "corpus.jsonl",
        [{"_id": each.document_id, "title": each.title, "text": each.text} for each in documents],
    )
    json_lines(folder / "queries.jsonl", [{"_id": query_id, "text": corpus.queries[query_id]} for query_id in kept])
    rows = [f"{query_id}\t{doc_id}\t{grade}\n" for query_id in kept for doc_id, grade in corpus.qrels[query_id].items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def collection(beir: Path) -> Collection:
    return open_collection(str(beir), candidates=4)


@pytest.fixture(scope="session")
def settings() -> RerankerSettings:
    return RerankerSettings(model="bundled:tiny")


@pytest.fixture(scope="session")
def quality_result(collection: Collection, settings: RerankerSettings, reranker: Reranker) -> QualityResult:
    return measure_quality(collection, [settings, override(settings, ["max_length=120"])], seed=3)


@pytest.fixture(scope="session")
def throughput_result(collection: Collection, settings: RerankerSettings, reranker: Reranker) -> ThroughputResult:
    return measure_throughput(collection.take(2), settings, [2, 8], repeat=2)
