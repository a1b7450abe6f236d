"""What search teams have: shards, compressed files, tables, other names, other types; and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import uuid
from decimal import Decimal
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from qwen3_ranker_plugins import InvalidInputError
from qwen3_ranker_plugins.data.files import InputFile
from qwen3_ranker_plugins.data.pairs import Fields, parse_columns
from qwen3_ranker_plugins.data.sources import open_source
from qwen3_ranker_plugins.data.table import TableSource
from qwen3_ranker_plugins.offline.spool import spool_standard_input

from .conftest import Job, make_records, read_jsonl, write_jsonl

RECORDS = make_records(60)


def as_lines(records: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_csv(records: list[dict[str, str]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(records[0]), lineterminator="\r\n")
    table.writeheader()
    table.writerows(records)
    return text.getvalue()


@pytest.fixture
def expected(tmp_path: Path, job: Job) -> bytes:
    job(write_jsonl(tmp_path / "expected-in.jsonl", RECORDS), "expected.jsonl").run()
    return (tmp_path / "expected.jsonl").read_bytes()


def test_compressed_files_and_tables_give_what_json_lines_give(tmp_path: Path, job: Job, expected: bytes) -> None:
    lines, table = as_lines(RECORDS), as_csv(RECORDS).encode()
    tabs = "\n".join(
        "\t".join(record.values()) for record in [dict.fromkeys(RECORDS[0]) and {k: k for k in RECORDS[0]}, *RECORDS]
    )
    contents = {
        "in.jsonl.gz": gzip.compress(lines),
        "in.jsonl.zst": zstandard.compress(lines[:500]) + zstandard.compress(lines[500:]),
        "in.csv": b"\xef\xbb\xbf" + table,
        "in.csv.gz": gzip.compress(table),
        "in.csv.zst": zstandard.compress(table),
        "in.tsv": tabs.encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        job(tmp_path / name, f"{name}.out", format="jsonl").run()
        assert (tmp_path / f"{name}.out").read_bytes() == expected, name


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path, job: Job, expected: bytes) -> None:
    shards = tmp_path / "shards"
    (shards / "b").mkdir(parents=True)
    write_jsonl(shards / "a.jsonl", RECORDS[:20])
    (shards / "b" / "0.jsonl.gz").write_bytes(gzip.compress(as_lines(RECORDS[20:40])))
    pq.write_table(pa.Table.from_pylist(RECORDS[40:]), shards / "b" / "1.parquet")
    for name in ("_SUCCESS", ".a.jsonl.crc", "readme.md"):
        (shards / name).write_text("not data")
    job(shards, "folder.jsonl").run()
    assert (tmp_path / "folder.jsonl").read_bytes() == expected
    job(f"{shards}/**/*.*[lzt]", "pattern.jsonl").run()
    assert (tmp_path / "pattern.jsonl").read_bytes() == expected

    with (shards / "b" / "0.jsonl.gz").open("ab") as file:
        file.write(gzip.compress(b"bad\n"))
    results = job(shards, "errors.jsonl").run()
    assert read_jsonl(results.errors_path)[0] | {"reason": ""} == {
        "file": "b/0.jsonl.gz", "query_id": "", "doc_id": "", "line": 21, "reason": "",
    }  # fmt: skip
    with pytest.raises(InvalidInputError, match="known suffix"):
        job(f"{tmp_path}/nothing-*.jsonl", "no.jsonl").run()


def test_columns_of_a_partitioned_data_set_come_from_its_path(tmp_path: Path, job: Job) -> None:
    table = pa.Table.from_pylist(make_records(20))
    pq.write_to_dataset(table, tmp_path / "parts", partition_cols=["query_id"])
    summary = job(tmp_path / "parts").run().summary
    assert (summary.scored, summary.queries) == (20, 2)


def test_urls_are_read_through_fsspec(tmp_path: Path, job: Job, expected: bytes) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/in.jsonl", as_lines(RECORDS))
    memory.pipe("/shards/0.jsonl", as_lines(RECORDS[:30]))
    memory.pipe("/shards/1.jsonl", as_lines(RECORDS[30:]))
    for number, url in enumerate(("memory://bucket/in.jsonl", "memory://shards", "memory://shards/*.jsonl")):
        job(url, f"{number}.jsonl").run()
        assert (tmp_path / f"{number}.jsonl").read_bytes() == expected, url
    with pytest.raises(InvalidInputError, match="outputs are local"):
        job("memory://bucket/in.jsonl", "x.jsonl").__class__("memory://a", "s3://bucket/out.jsonl", model="m")


def test_standard_input_is_copied_and_can_be_packed(tmp_path: Path, expected: bytes) -> None:
    for packed in (as_lines(RECORDS), gzip.compress(as_lines(RECORDS)), zstandard.compress(as_lines(RECORDS))):
        file = spool_standard_input(tmp_path, io.BytesIO(packed))
        pairs = list(open_source(file, run=None, index=tmp_path / "x", fields=Fields()))
        assert [pair.document for pair in pairs] == [record["document"] for record in RECORDS]


def test_other_names_of_fields(tmp_path: Path, job: Job, expected: bytes) -> None:
    columns = parse_columns("qid=query_id, pid=doc_id,q=query,passage=document")
    named = {ours: theirs for theirs, ours in columns.items()}
    renamed = [{named[key]: value for key, value in record.items()} | {"document": "unused"} for record in RECORDS]
    pq.write_table(pa.Table.from_pylist(renamed), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text(as_csv(renamed))
    for source in (write_jsonl(tmp_path / "in.jsonl", renamed), tmp_path / "in.parquet", tmp_path / "in.csv"):
        output = f"{source.suffix}.jsonl"
        job(source, output, columns=columns).run()
        assert (tmp_path / output).read_bytes() == expected, source
    nested = {"qid": 1, "query": "what?", "docs": [{"docid": "a", "body": "one"}, {"docid": "b", "body": "two"}]}
    source = write_jsonl(tmp_path / "nested.jsonl", [nested])
    columns = parse_columns("qid=query_id,docs=documents,docid=doc_id,body=text")
    results = job(source, "nested-out.jsonl", columns=columns, include_text=True).run()
    assert {(pair.query_id, pair.doc_id, pair.document) for pair in results} == {("1", "a", "one"), ("1", "b", "two")}


@pytest.mark.parametrize("text", ["qid", "qid=", "=query_id", "a=query,a=document", "a=query,b=query", "a=b"])
def test_unusable_columns(text: str) -> None:
    with pytest.raises(InvalidInputError, match="columns="):
        Fields(parse_columns(text))


@pytest.mark.parametrize(
    ("value", "id_"),
    [(7, "7"), (7.0, "7"), (-3.0, "-3"), (b"abc", "abc"), (Decimal(12), "12"), (Decimal("12.00"), "12"),
     (uuid.UUID(int=5), str(uuid.UUID(int=5)))],
)  # fmt: skip
def test_ids_that_are_whole_numbers_or_bytes(tmp_path: Path, job: Job, value: object, id_: str) -> None:
    (pair,) = job([(value, "d", "what?", "text")]).run()
    assert pair.query_id == id_


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7.5, "not float"),
        (2.0**60, "not float"),
        (float("nan"), "is missing"),
        (b"\xff", "not bytes"),
        (True, "not bool"),
    ],
)
def test_ids_that_are_neither_are_reported(tmp_path: Path, job: Job, value: object, reason: str) -> None:
    results = job([("q", value, "what?", "text")]).run()
    assert reason in read_jsonl(results.errors_path)[0]["reason"]


def test_float_and_binary_ids_of_parquet(tmp_path: Path, job: Job) -> None:
    table = {"query_id": [1.0, None], "doc_id": [b"a", b"b"], "query": ["what?"] * 2, "document": ["x", "y"]}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    results = job(tmp_path / "in.parquet").run()
    assert [(pair.query_id, pair.doc_id) for pair in results] == [("1", "a")]
    assert read_jsonl(results.errors_path)[0]["reason"] == "query_id is missing"


def test_an_input_whose_first_records_are_all_unusable_is_refused(tmp_path: Path, job: Job) -> None:
    records = [{"qid": 1, "docid": number, "query": "q", "body": "text"} for number in range(150)]
    source = write_jsonl(tmp_path / "in.jsonl", records)
    with pytest.raises(
        InvalidInputError, match=r"query_id is missing\. Fields seen: qid, docid, query, body.*--columns"
    ):
        job(source).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"], "nothing is left"
    good = write_jsonl(tmp_path / "good.jsonl", [*records[:99], *make_records(1)])
    assert job(good).run().summary.errors == 99
    for name, content in (("in.csv", "qid,body\n1,x\n"), ("in.tsv", "qid\tbody\n1\tx\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InvalidInputError, match=r"heading is qid, body.*--columns"):
            job(tmp_path / name, "other.jsonl").run()


def test_nested_documents_have_ids_and_titles(tmp_path: Path, job: Job) -> None:
    documents = [
        {"id": 7, "title": "A title", "text": "and a text"},
        {"doc_id": "mine", "id": "other", "text": "alone"},
        {"text": "by place"},
        {"id": "x", "title": ["no"], "text": "text"},
    ]
    source = write_jsonl(tmp_path / "in.jsonl", [{"query_id": "q", "query": "what?", "documents": documents}])
    results = job(source, include_text=True).run()
    assert {pair.doc_id: pair.document for pair in results} == {
        "7": "A title and a text", "mine": "alone", "2": "by place",
    }  # fmt: skip
    assert read_jsonl(results.errors_path)[0]["reason"] == "title needs a string, not list"


def test_two_texts_of_one_query_id_are_reported(tmp_path: Path, job: Job, caplog: pytest.LogCaptureFixture) -> None:
    records = make_records(60)
    records[3]["query"] = "another text"  # within a group
    for record in records[40:50]:
        record["query_id"] = "q1"  # another group
    summary = job(write_jsonl(tmp_path / "in.jsonl", records)).run().summary
    assert summary.mixed_queries == 2
    assert "2 query ids have more than one text" in caplog.text
    assert "'q0' in lines 1 and 4; 'q1' in lines 11 and 41" in caplog.text


BAD_ROWS = [
    (b"q,d2,what?\r\n", "has 3 fields, and the heading has 4"),
    (b'q,d3,what?,"open" text\r\n', "not CSV"),
    (b"q,d4,what?,caf\xe9\r\n", "not UTF-8"),
    (b",d5,what?,text\r\n", "query_id is empty"),
]


def test_rows_of_csv_that_cannot_be_used_are_reported(tmp_path: Path, job: Job) -> None:
    good = b'q,d1,what?,"two\r\nlines, and ""quotes"""\r\n'
    heading = b"query_id,doc_id,query,document\r\n"
    (tmp_path / "in.csv").write_bytes(
        heading + good + b"".join(row for row, _ in BAD_ROWS) + good.replace(b"d1", b"d6")
    )
    results = job(tmp_path / "in.csv", include_text=True).run()
    assert {pair.doc_id: pair.document for pair in results} == dict.fromkeys(("d1", "d6"), 'two\r\nlines, and "quotes"')
    errors = read_jsonl(results.errors_path)
    assert [row["line"] for row in errors] == [3, 4, 5, 6], "rows, the heading being the first"
    for row, (_, reason) in zip(errors, BAD_ROWS, strict=True):
        assert reason in row["reason"]


def test_a_quotation_mark_in_tsv_does_not_swallow_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.tsv"
    path.write_text('query_id\tdoc_id\tquery\tdocument\nq\ta\t"what\t"15 inch\nq\tb\twhat?\tother\n')
    pairs = list(TableSource(InputFile.local(path), Fields(), delimiter="\t"))
    assert [(pair.query, pair.document) for pair in pairs] == [('"what', '"15 inch'), ("what?", "other")]


@pytest.mark.parametrize(
    ("document", "warned"),
    [('"He said ""hi"""', True), ('"cut here', True), ('"Odyssey" by Homer', False), ('15" screen', False)],
)
def test_tsv_that_looks_quoted_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, document: str, warned: bool
) -> None:
    """pandas quotes such fields; they are read with their quotation marks."""
    path = tmp_path / "in.tsv"
    path.write_text("query_id\tdoc_id\tquery\tdocument\n" + f"q\ta\twhat?\t{document}\n" * 2)
    source = TableSource(InputFile.local(path), Fields(), delimiter="\t")
    assert [pair.document for pair in [*source, *source]] == [document] * 4
    assert caplog.text.count("QUOTE_NONE") == warned


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_zstd_stream_that_breaks_off_is_an_error_after_what_can_be_read(
    tmp_path: Path, job: Job, suffix: str
) -> None:
    records = make_records(2000)
    content = as_lines(records) if suffix == "jsonl" else as_csv(records).encode()
    source = tmp_path / f"in.{suffix}.zst"
    source.write_bytes(zstandard.ZstdCompressor().compress(content)[:-500])
    results = job(source, "out.jsonl").run()
    assert "the zstd stream breaks off here" in read_jsonl(results.errors_path)[-1]["reason"]
    source.write_bytes(b"plain\n")
    if suffix == "jsonl":
        assert job(source, "plain.jsonl").run().summary.errors == 1
