"""Formats in and out, order, fields, and the results that a finished job returns."""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3_ranker_plugins import InvalidInputError, MissingDependencyError, Reranker
from qwen3_ranker_plugins.offline import CheckpointError, RerankJob
from qwen3_ranker_plugins.offline import merge as merge_module
from qwen3_ranker_plugins.offline import windows as windows_module

from .conftest import Job, make_records, read_jsonl, write_jsonl

FIELDS = ["query_id", "doc_id", "relevance_score", "margin", "confidence", "rank", "truncated"]


def test_the_bundled_model_gives_what_the_reranker_gives(tmp_path: Path, reranker: Reranker) -> None:
    records = make_records(12, 4)
    source = write_jsonl(tmp_path / "in.jsonl", records)
    results = RerankJob(source, tmp_path / "out.jsonl", model="bundled:tiny").run()
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert list(rows[0]) == [*FIELDS, "processing_time"]
    for start in range(0, 12, 4):
        documents = [record["document"] for record in records[start : start + 4]]
        hits = reranker.rerank(records[start]["query"], documents)
        found = rows[start : start + 4]
        assert [row["doc_id"] for row in found] == [f"d{hit.index}" for hit in hits]
        assert [row["margin"] for row in found] == pytest.approx([hit.margin for hit in hits], abs=1e-5)
        assert [row["relevance_score"] for row in found] == pytest.approx([hit.score for hit in hits], abs=1e-5)
        assert [row["confidence"] for row in found] == pytest.approx([hit.confidence for hit in hits], abs=1e-5)
        assert [row["rank"] for row in found] == [1, 2, 3, 4]
        assert all(row["processing_time"] > 0 for row in found)
    assert (results.summary.pairs, results.summary.scored, results.summary.errors) == (12, 12, 0)
    assert not results.errors_path.exists()
    assert sorted(path.name for path in (tmp_path / "out.jsonl.job").iterdir()) == [
        "fingerprint.json", "lock", "queries.jsonl", "summary.json",
    ]  # fmt: skip


def test_all_inputs_give_the_same_output(tmp_path: Path, job: Job) -> None:
    records = make_records(60)
    flat = write_jsonl(tmp_path / "flat.jsonl", records)
    nested = write_jsonl(
        tmp_path / "nested.jsonl",
        [
            {
                "query_id": group[0]["query_id"],
                "query": group[0]["query"],
                "documents": [{"doc_id": each["doc_id"], "text": each["document"]} for each in group],
            }
            for group in (records[start : start + 10] for start in range(0, 60, 10))
        ],
    )
    packed = tmp_path / "flat.jsonl.gz"
    packed.write_bytes(gzip.compress(flat.read_bytes()))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "flat.parquet")
    pq.write_table(pa.Table.from_pylist(read_jsonl(nested)), tmp_path / "nested.parquet")
    pairs = [(each["query_id"], each["doc_id"], each["query"], each["document"]) for each in records]

    beir = tmp_path / "beir"
    beir.mkdir()
    texts = {each["document"]: f"{each['query_id']}-{each['doc_id']}" for each in records}
    write_jsonl(beir / "corpus.jsonl", [{"_id": key, "title": "", "text": text} for text, key in texts.items()])
    write_jsonl(beir / "queries.jsonl", [{"_id": f"q{i}", "text": records[i * 10]["query"]} for i in range(6)])
    run = tmp_path / "bm25.run"
    run.write_text("".join(f"{e['query_id']} Q0 {texts[e['document']]} 1 2.5 bm25\n" for e in records))

    outputs = []
    for number, source in enumerate(
        (flat, nested, packed, tmp_path / "flat.parquet", tmp_path / "nested.parquet", pairs)
    ):
        job(source, f"out{number}.jsonl").run()
        outputs.append((tmp_path / f"out{number}.jsonl").read_bytes())
    assert len(set(outputs)) == 1
    job(beir, "beir.jsonl", run=run).run()
    assert [row["margin"] for row in read_jsonl(tmp_path / "beir.jsonl")] == [
        row["margin"] for row in map(json.loads, outputs[0].splitlines())
    ]


def test_an_ir_datasets_id_gives_what_its_texts_give(tmp_path: Path, job: Job) -> None:
    """The real library over local files: a data set of its registry would be downloaded."""
    import ir_datasets
    from ir_datasets.datasets.base import Dataset
    from ir_datasets.formats import TsvDocs, TsvQueries
    from ir_datasets.util import LocalDownload

    records = make_records(60)
    for number, record in enumerate(records):
        record["doc_id"] = f"d{number}"
    (tmp_path / "docs.tsv").write_text("".join(f"{e['doc_id']}\t{e['document']}\n" for e in records))
    (tmp_path / "queries.tsv").write_text("".join(f"{e['query_id']}\t{e['query']}\n" for e in records[::10]))
    docs, queries = (LocalDownload(str(tmp_path / f"{name}.tsv")) for name in ("docs", "queries"))
    name = f"qwen3-ranker-{tmp_path.name}"
    ir_datasets.registry.register(name, Dataset(TsvDocs(docs), TsvQueries(queries)))
    ir_datasets.registry.register(f"{name}-queries", Dataset(TsvQueries(queries)))
    run = tmp_path / "in.run"
    run.write_text("".join(f"{e['query_id']} Q0 {e['doc_id']} 1 2.5 bm25\n" for e in records))

    job(write_jsonl(tmp_path / "flat.jsonl", records), "flat.out", format="jsonl").run()
    assert job(f"ir_datasets:{name}", "found.out", format="jsonl", run=run).run().summary.errors == 0
    assert (tmp_path / "flat.out").read_bytes() == (tmp_path / "found.out").read_bytes()

    run.write_text("q1 Q0 d10 1 2.5 t\nq1 Q0 nowhere 2 2.0 t\nnobody Q0 d3 1 1.0 t\n")
    results = job(f"ir_datasets:{name}", "some.jsonl", run=run).run()
    assert (results.summary.scored, results.summary.errors) == (1, 2)
    assert [(row["line"], row["reason"]) for row in read_jsonl(results.errors_path)] == [
        (2, "the corpus has no 'nowhere'"),
        (3, "the queries have no 'nobody'"),
    ]
    for source, options, message in (
        (f"ir_datasets:{name}", {}, "--run RUN"),
        (f"ir_datasets:{name}-queries", {"run": run}, "no documents"),
        ("ir_datasets:no/such/id", {"run": run}, "knows no such id"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            job(source, "other.jsonl", **options).run()


def test_without_ir_datasets_the_command_that_installs_it_is_said(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install ir_datasets"):
        job("ir_datasets:x").run()


def test_formats_of_the_output_agree(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(50))
    by_format = {name: job(source, f"out.{name}", include_text=True).run() for name in ("jsonl", "parquet", "trec")}
    pairs = {name: list(results) for name, results in by_format.items()}
    assert pairs["jsonl"] == pairs["parquet"]
    assert pairs["jsonl"][0].document
    assert [(p.query_id, p.doc_id, p.rank, p.margin, p.confidence) for p in pairs["trec"]] == [
        (p.query_id, p.doc_id, p.rank, p.margin, p.confidence) for p in pairs["jsonl"]
    ]
    for name, results in by_format.items():
        top = results.get_top_documents("q3", top_k=2, min_confidence=0.2)
        assert top == [p for p in pairs[name] if p.query_id == "q3" and p.confidence >= 0.2][:2]
        limit = top[1].relevance_score
        assert results.get_top_documents("q3", score_threshold=limit) == [
            p for p in pairs[name] if p.query_id == "q3" and p.relevance_score >= limit
        ]
        with pytest.raises(InvalidInputError, match="no such query"):
            results.get_top_documents("q999")
    assert (tmp_path / "out.trec").read_text().splitlines()[0].split()[1::2] == ["Q0", "1", "qwen3-ranker"]


def test_scattered_queries_are_ordered_as_they_first_appear(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sort on disk, with many small runs, gives what reading one query at a time gives."""
    records = make_records(300, 20)
    job(write_jsonl(tmp_path / "grouped.jsonl", records), "grouped.jsonl.out", format="jsonl").run()
    random.Random(1).shuffle(records)
    order = list(dict.fromkeys(record["query_id"] for record in records))
    monkeypatch.setattr(merge_module, "RUN_ROWS", 32)
    job(write_jsonl(tmp_path / "scattered.jsonl", records), "scattered.jsonl.out", format="jsonl").run()
    grouped, scattered = (read_jsonl(tmp_path / f"{name}.jsonl.out") for name in ("grouped", "scattered"))
    assert list(dict.fromkeys(row["query_id"] for row in scattered)) == order

    def ranking(rows: list[dict[str, object]], query_id: str) -> list[object]:
        return [row["margin"] for row in rows if row["query_id"] == query_id]

    assert all(ranking(grouped, query_id) == ranking(scattered, query_id) for query_id in order)
    assert not list((tmp_path / "scattered.jsonl.out.job").glob("sort-*"))


def test_a_query_too_large_to_hold_is_ordered_on_disk(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(200, 100))
    job(source, "held.jsonl").run()
    monkeypatch.setattr(windows_module, "MAX_QUERY_PAIRS", 50)
    monkeypatch.setattr(merge_module, "RUN_ROWS", 32)
    monkeypatch.setattr(merge_module, "_SLICE", 7)
    results = job(source, "sorted.jsonl").run()
    assert (tmp_path / "held.jsonl").read_bytes() == (tmp_path / "sorted.jsonl").read_bytes()
    assert [pair.rank for pair in results.get_top_documents("q1", top_k=100)] == list(range(1, 101))


def test_equal_margins_keep_the_order_of_the_input(tmp_path: Path, job: Job) -> None:
    records = [{"query_id": "q", "doc_id": f"d{i}", "query": "what", "document": "same text"} for i in range(30)]
    job(write_jsonl(tmp_path / "in.jsonl", records)).run()
    assert [row["doc_id"] for row in read_jsonl(tmp_path / "out.jsonl")] == [f"d{i}" for i in range(30)]


def test_an_empty_input_is_a_finished_job(tmp_path: Path, job: Job) -> None:
    for name in ("jsonl", "parquet", "trec"):
        summary = job(write_jsonl(tmp_path / "empty.jsonl", []), f"out.{name}").run().summary
        assert (summary.pairs, summary.scored, summary.errors) == (0, 0, 0)
        assert (tmp_path / f"out.{name}").exists()


def test_a_finished_job_is_not_done_again(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(20))
    first = job(source).run()
    changed = (tmp_path / "out.jsonl").stat().st_mtime_ns
    assert job(source).run().summary == first.summary
    assert (tmp_path / "out.jsonl").stat().st_mtime_ns == changed
    (tmp_path / "out.jsonl").unlink()
    assert job(source).run().summary.resumed == 0
    (tmp_path / "out.jsonl").write_text("changed by hand\n")
    with pytest.raises(CheckpointError, match="--restart"):
        job(source).run()
    assert job(source, restart=True).run().summary.scored == 20


def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(3))
    (tmp_path / "out.jsonl").write_text("precious\n")
    with pytest.raises(CheckpointError, match="was not made by this job"):
        job(source).run()
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"


def test_truncated_documents_are_counted_and_said(tmp_path: Path, job: Job) -> None:
    records = make_records(4, 4)
    records[2]["document"] = "word " * 500
    summary = job(write_jsonl(tmp_path / "in.jsonl", records), max_length=200).run().summary
    rows = {row["doc_id"]: row["truncated"] for row in read_jsonl(tmp_path / "out.jsonl")}
    assert summary.truncated == 1
    assert rows["d2"] > 300
    assert rows["d0"] == rows["d1"] == rows["d3"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "out.xlsx"}, "--format"),
        ({"format": "xlsx"}, "jsonl, parquet, trec"),
        ({"runner": "spark"}, "local, ray"),
        ({"max_errors": -1}, "max_errors=-1"),
        ({"window_pairs": 0}, "window_pairs=0"),
        ({"run": "x.run"}, "BEIR"),
        ({"source": "missing.jsonl"}, "no such file"),
        ({"devices": ["all"]}, "0 CUDA devices"),
        ({"devices": ["cuda:0"], "runner": "ray"}, "unless runner is .local."),
        ({"workers": 2}, "no effect unless runner is 'ray'"),
        ({"ray_address": "auto"}, "no effect unless runner is 'ray'"),
        ({"restart": True, "overwrite": True}, "give only one of them"),
        ({"columns": {"qid": "query"}, "input_format": "xml"}, "jsonl, parquet, csv, tsv"),
        ({"columns": {"qid": "qid"}}, "query_id, doc_id"),
        ({"output": "out.parquet.gz"}, "leave .gz out"),
    ],
)
def test_unusable_arguments_say_what_to_use(tmp_path: Path, job: Job, options: dict[str, object], message: str) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(2))
    with pytest.raises(InvalidInputError, match=message):
        job(**({"source": source} | options)).run()


def test_a_job_does_not_run_the_remote_engine(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="engine='remote': a job runs the model itself"):
        RerankJob("in.jsonl", tmp_path / "out.jsonl", model="m", engine="remote", engine_options={"url": "http://h"})


def test_a_job_without_a_model_is_refused(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line and Python have one rule, and neither scores with a model that nobody named."""
    monkeypatch.delenv("QWEN3_RANKER_MODEL", raising=False)
    with pytest.raises(InvalidInputError, match=r"model=None: .*Qwen3-Reranker-0\.6B.*bundled:tiny"):
        RerankJob("in.jsonl", tmp_path / "out.jsonl")
    monkeypatch.setenv("QWEN3_RANKER_MODEL", "bundled:tiny")
    assert RerankJob("in.jsonl", tmp_path / "out.jsonl").settings.model == "bundled:tiny"


def test_what_scored_is_kept_with_the_scores(tmp_path: Path, job: Job, caplog: pytest.LogCaptureFixture) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(6))
    with caplog.at_level("INFO", "qwen3_ranker_plugins.offline"):
        summary = job(source, "out.parquet").run().summary
    fingerprint = json.loads((tmp_path / "out.parquet.job" / "fingerprint.json").read_text())
    assert caplog.messages == [f"model bundled:tiny ({summary.model_hash}), engine null, cpu, float32"]
    assert (summary.model, summary.engine, summary.device) == ("bundled:tiny", "null", "cpu")
    assert fingerprint["model"] == summary.model_hash
    assert fingerprint["model_name"] == "bundled:tiny"
    stored = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"qwen3_ranker"])
    assert (stored["model_name"], stored["model"], stored["engine"]) == ("bundled:tiny", summary.model_hash, "null")
    assert job(source, "out.parquet").run().summary == summary
