"""What cannot be scored ends in the errors file with its line and reason; everything else is scored."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen3_ranker_plugins import EngineError, InvalidInputError
from qwen3_ranker_plugins.data import files as files_module
from qwen3_ranker_plugins.offline import TooManyErrorsError

from .conftest import Job, make_records, read_jsonl, write_jsonl
from .engines import FaultyEngine


def reasons(tmp_path: Path) -> dict[tuple[str, str, int], str]:
    return {
        (row["query_id"], row["doc_id"], row["line"]): row["reason"]
        for row in read_jsonl(tmp_path / "out.jsonl.errors.jsonl")
    }


def test_a_failing_pass_is_narrowed_down_to_the_pairs_at_fault(tmp_path: Path, job: Job) -> None:
    records = make_records(200)
    for place, word in ((17, "poison"), (18, "poison"), (99, "poison"), (140, "nan"), (160, "refuse")):
        records[place]["document"] += f" {word}"
    source = write_jsonl(tmp_path / "in.jsonl", records)
    summary = job(source, engine_factory=FaultyEngine).run().summary
    assert (summary.scored, summary.errors) == (195, 5)
    assert reasons(tmp_path) == {
        ("q1", "d7", 18): "ZeroDivisionError: poisoned",
        ("q1", "d8", 19): "ZeroDivisionError: poisoned",
        ("q9", "d9", 100): "ZeroDivisionError: poisoned",
        ("q14", "d0", 141): "its margin is nan",
        ("q16", "d0", 161): "refused",
    }
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 195


def test_all_pairs_at_fault_is_not_a_dead_engine(tmp_path: Path, job: Job) -> None:
    records = make_records(3)
    for record in records:
        record["document"] += " poison"
    assert job(write_jsonl(tmp_path / "in.jsonl", records), engine_factory=FaultyEngine).run().summary.errors == 3


def test_a_dead_engine_stops_the_job_and_blames_nobody(tmp_path: Path, job: Job) -> None:
    """Otherwise every pair to come would be an error that the next run does not try again."""
    records = make_records(200)
    records[150]["document"] += " kaput"
    source = write_jsonl(tmp_path / "in.jsonl", records)
    with pytest.raises(EngineError, match="no longer scores anything: the device is gone"):
        job(source, engine_factory=FaultyEngine, window_pairs=40).run()
    assert not (tmp_path / "out.jsonl").exists()
    assert not (tmp_path / "out.jsonl.errors.jsonl").exists()


BAD_LINES = [
    (b'{"query_id": "q", "doc_id": "d"', "not JSON"),
    (b"[1, 2]", "needs a JSON object, not list"),
    (b'"text"', "needs a JSON object, not str"),
    (b'{"query_id": "q", "doc_id": "d", "query": "what"}', "document is missing"),
    (b'{"query_id": "q", "doc_id": "d", "query": "what", "document": 7}', "document needs a string, not int"),
    (b'{"query_id": true, "doc_id": "d", "query": "what", "document": "x"}', "query_id needs a string, not bool"),
    (b'{"query_id": "q", "doc_id": "", "query": "what", "document": "x"}', "doc_id is empty"),
    (b'{"query_id": "q", "doc_id": "d", "query": " \\n", "document": "x"}', "query is empty"),
    (b'{"query_id": "\\ud800", "doc_id": "d", "query": "what", "document": "x"}', "a lone surrogate"),
    (b'{"query_id": "q", "query": "what", "documents": "text"}', "documents needs a list, not str"),
    (b'{"query_id": "q", "query": "what", "documents": [null]}', "document is missing"),
    (b'{"query_id": "q", "doc_id": "d\xff", "query": "what", "document": "x"}', "not UTF-8 at byte"),
    (b"[" * 100_000, "nested too deeply"),
    (b"NaN", "needs a JSON object, not float"),
    (b"\x00\x00", "not JSON"),
]


def test_malformed_lines_are_reported_by_number(tmp_path: Path, job: Job) -> None:
    good = json.dumps(make_records(1)[0]).encode()
    lines = [b"\xef\xbb\xbf" + good, b"", *(line for line, _ in BAD_LINES), b"   ", good.replace(b'"d0"', b'"d1"')]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(lines))  # without a line break at the end
    summary = job(source).run().summary
    assert (summary.scored, summary.errors) == (2, len(BAD_LINES))
    errors = read_jsonl(tmp_path / "out.jsonl.errors.jsonl")
    assert [row["line"] for row in errors] == list(range(3, 3 + len(BAD_LINES)))
    for row, (line, reason) in zip(errors, BAD_LINES, strict=True):
        assert reason in row["reason"], line[:80]


def test_a_line_too_long_to_hold_is_skipped(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_LINE_BYTES", 1000)
    records = make_records(3)
    records[1]["document"] = "x" * 5000
    summary = job(write_jsonl(tmp_path / "in.jsonl", records)).run().summary
    assert (summary.scored, summary.errors) == (2, 1)
    assert reasons(tmp_path) == {("", "", 2): "the line is longer than 1000 bytes"}


def test_a_large_line_is_read(tmp_path: Path, job: Job) -> None:
    records = make_records(3)
    records[1]["document"] = "word " * 1_000_000
    summary = job(write_jsonl(tmp_path / "in.jsonl", records)).run().summary
    assert (summary.scored, summary.truncated) == (3, 1)


def test_a_gzip_stream_that_breaks_off_is_an_error_behind_what_can_be_read(tmp_path: Path, job: Job) -> None:
    content = "".join(json.dumps(record) + "\n" for record in make_records(2000)).encode()
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(gzip.compress(content)[:-2000])
    summary = job(source).run().summary
    assert summary.errors >= 1
    assert summary.scored > 500
    assert any("breaks off" in reason for reason in reasons(tmp_path).values())


def test_a_gzip_that_is_none_or_empty(tmp_path: Path, job: Job) -> None:
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(b"plain text\n")
    assert job(source).run().summary.errors == 1
    assert "breaks off here: Not a gzipped file" in reasons(tmp_path)["", "", 1]
    source.write_bytes(b"")
    assert job(source, restart=True).run().summary.pairs == 0


FLAT = {"query_id": ["q"] * 4, "doc_id": list("abcd"), "query": ["what"] * 4, "document": list("xyzw")}
BAD_COLUMNS = [
    ({"document": ["x", None, "z", None]}, [(2, "document is missing"), (4, "document is missing")]),
    ({"document": [1.5, 2.5, 3.5, 4.5]}, [(row, "document needs a string, not float") for row in (1, 2, 3, 4)]),
    ({"document": [b"x", b"y", b"z", b"w"]}, [(row, "document needs a string, not bytes") for row in (1, 2, 3, 4)]),
    ({"query": pa.nulls(4)}, [(row, "query is missing") for row in (1, 2, 3, 4)]),
    ({"query_id": [1, 2, 3, None]}, [(4, "query_id is missing")]),
    # bytes that are no UTF-8, in a column that says it holds strings
    (
        {
            "document": pa.StringArray.from_buffers(
                4, pa.py_buffer(struct.pack("<5i", 0, 1, 2, 3, 4)), pa.py_buffer(b"x\xffzw")
            )
        },
        [(2, "not UTF-8 at byte 0 of a text")],
    ),
    ({"document": ["x", "y\0z", "", "w"]}, []),
]


@pytest.mark.parametrize(("changed", "expected"), BAD_COLUMNS)
def test_parquet_of_other_types_is_reported_by_row(
    tmp_path: Path, job: Job, changed: dict[str, object], expected: list[tuple[int, str]]
) -> None:
    pq.write_table(pa.table(FLAT | changed), tmp_path / "in.parquet")
    summary = job(tmp_path / "in.parquet").run().summary
    assert (summary.scored, summary.errors) == (4 - len(expected), len(expected))
    if expected:
        assert [(line, reason) for (_, _, line), reason in reasons(tmp_path).items()] == expected


def test_nested_parquet_with_holes(tmp_path: Path, job: Job) -> None:
    table = pa.table({"query": ["a", None, "b"], "documents": [["x", None], ["y"], None]})
    pq.write_table(table, tmp_path / "in.parquet")
    assert job(tmp_path / "in.parquet").run().summary.scored == 1
    assert reasons(tmp_path) == {
        ("1", "1", 1): "document is missing",
        ("2", "0", 2): "query is missing",
        ("3", "", 3): "documents needs a list, not NoneType",
    }


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path, job: Job) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(make_records(3000)), source, row_group_size=1000)
    second = pq.ParquetFile(source).metadata.row_group(1).column(3)
    content = bytearray(source.read_bytes())
    content[second.data_page_offset + 40 : second.data_page_offset + 440] = b"\xff" * 400
    source.write_bytes(content)
    summary = job(source).run().summary
    assert (summary.pairs, summary.scored, summary.errors) == (3000, 2000, 1000)
    assert {line for _, _, line in reasons(tmp_path)} == set(range(1001, 2001))
    assert all("row group 1 of the file is damaged" in reason for reason in reasons(tmp_path).values())


@pytest.mark.parametrize(
    ("name", "content"), [("in.parquet", b""), ("in.parquet", b"PAR1 and no more"), ("in.parquet", b"{}\n")]
)
def test_what_is_no_parquet_is_refused(tmp_path: Path, job: Job, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match="not a Parquet file"):
        job(tmp_path / name).run()


def test_nul_characters_are_text(tmp_path: Path, job: Job) -> None:
    record = make_records(1)[0] | {"doc_id": "a\0b", "document": "x\0y", "query": "\0"}
    (pair,) = job(write_jsonl(tmp_path / "in.jsonl", [record]), include_text=True).run()
    assert (pair.doc_id, pair.document, pair.query) == ("a\0b", "x\0y", "\0")


def test_a_query_without_room_for_documents_costs_only_its_pairs(tmp_path: Path, job: Job) -> None:
    records = make_records(30)
    for record in records[10:20]:
        record["query"] = "why " * 300
    summary = job(write_jsonl(tmp_path / "in.jsonl", records), max_length=200).run().summary
    assert (summary.scored, summary.errors) == (20, 10)
    assert all("leaves no room" in reason for reason in reasons(tmp_path).values())


def test_the_first_of_equal_pairs_is_kept(tmp_path: Path, job: Job) -> None:
    records = make_records(20)
    records[5] = records[3] | {"document": "another text"}
    summary = job(write_jsonl(tmp_path / "in.jsonl", records)).run().summary
    assert (summary.scored, summary.errors) == (19, 1)
    assert reasons(tmp_path) == {
        ("q0", "d3", 6): "line 4 has the same query_id and doc_id and was kept",
    }


def test_ids_may_hold_anything_but_a_trec_run_no_blanks(tmp_path: Path, job: Job) -> None:
    names = ["健身", "a b", "\u2028", "\t", '"\\', "🙂", "é" * 500]
    records = [{"query_id": "ключ", "doc_id": name, "query": "what", "document": name} for name in names]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    results = job(source, include_text=True).run()
    assert sorted(pair.doc_id for pair in results.get_top_documents("ключ")) == sorted(names)
    assert all(pair.document == pair.doc_id for pair in results)
    parquet = job(source, "out.parquet", include_text=True).run()
    assert list(parquet) == list(results)
    trec = job(source, "out.trec").run().summary
    assert (trec.scored, trec.errors) == (4, 3)


def test_half_a_surrogate_pair_in_a_text_becomes_what_the_model_reads(tmp_path: Path, job: Job) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"query_id": "q", "doc_id": "d", "query": "what \\ud800", "document": "\\udfff x"}\n')
    for output in ("out.jsonl", "out.parquet"):
        (pair,) = job(source, output, include_text=True).run()
        assert (pair.query, pair.document) == ("what \ufffd", "\ufffd x")


def test_more_errors_than_allowed_stop_the_job_and_keep_what_was_scored(tmp_path: Path, job: Job) -> None:
    records: list[object] = list(make_records(500))
    records[100:103] = ["bad", "bad", "bad"]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    with pytest.raises(TooManyErrorsError, match="3 pairs could not be scored, and max_errors=2"):
        job(source, max_errors=2, window_pairs=50).run()
    assert not (tmp_path / "out.jsonl").exists()
    assert len(read_jsonl(tmp_path / "out.jsonl.errors.jsonl")) == 3
    summary = job(source, max_errors=3, window_pairs=50).run().summary
    assert summary.resumed >= 150
    assert (summary.scored, summary.errors) == (497, 3)


def test_duplicates_count_against_max_errors(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(10) * 2)
    with pytest.raises(TooManyErrorsError, match="10 pairs cannot be written"):
        job(source, max_errors=9).run()
    assert not (tmp_path / "out.jsonl").exists()
    assert job(source, max_errors=10).run().summary.errors == 10


def test_what_a_run_names_and_the_corpus_lacks(tmp_path: Path, job: Job) -> None:
    beir = tmp_path / "beir"
    beir.mkdir()
    write_jsonl(beir / "corpus.jsonl", [{"_id": "a", "title": "Title", "text": "text"}, {"_id": "b", "text": None}])
    write_jsonl(beir / "queries.jsonl", [{"_id": "q", "text": "what"}])
    run = tmp_path / "in.run"
    run.write_bytes(b"q Q0 a 1 1.0 t\r\nq Q0 b 2 0.5 t\nx Q0 a 1 1.0 t\nq a 1\n\xff\xfe\n\nq Q0 a 1 1.0 t\n")
    with pytest.raises(InvalidInputError, match=r"line 2.*text is None"):
        job(beir, run=run).run()
    write_jsonl(beir / "corpus.jsonl", [{"_id": "a", "title": "Title", "text": "text"}])
    (pair,) = job(beir, run=run, include_text=True, restart=True).run()
    assert pair.document == "Title text"
    assert list(reasons(tmp_path).items()) == [
        (("q", "b", 2), "the corpus has no 'b'"),
        (("x", "a", 3), "the queries have no 'x'"),
        (("", "", 4), "needs the 6 fields of a TREC run, and has 3"),
        (("", "", 5), "not UTF-8 at byte 0 of the line"),
        (("q", "a", 7), "line 1 has the same query_id and doc_id and was kept"),
    ]
