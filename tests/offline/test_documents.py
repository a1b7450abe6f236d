"""Documents with several fields: objects in records, columns of tables, and the command `rank`."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from qwen3_ranker_plugins import InvalidInputError, Reranker
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.offline import CheckpointError

from .conftest import Job, read_jsonl, write_jsonl

FIELDS = {"title": "Files", "year": 2024, "tags": ["io", "with"], "none": None}
OTHER = {"title": "Bread", "body": "Needs yeast."}
LINES = {"rank_fields": ["title", "year", "tags", "none", "body"], "document_template": "lines"}
TEXTS = ["title: Files\nyear: 2024\ntags: io, with", "title: Bread\nbody: Needs yeast."]


def flat(number: int, document: dict[str, Any]) -> dict[str, Any]:
    return {"query_id": "q", "doc_id": str(number), "query": "what?", **document}


def judged(job: Job, source: Path, **options: Any) -> list[str]:
    """The texts of all pairs that were scored, in input order; the output's column `document` shows them."""
    output = source.with_suffix(".out")
    job(source, output.name, format="jsonl", include_text=True, **options).run()
    return [record["document"] for record in sorted(read_jsonl(output), key=lambda each: str(each["doc_id"]))]


def test_objects_and_columns_of_json_lines(tmp_path: Path, job: Job) -> None:
    nested = [{"query_id": "q", "query": "what?", "documents": [FIELDS, OTHER]}]
    inputs = {
        "nested": nested,
        "columns": [flat(0, FIELDS), flat(1, OTHER)],
        "objects": [flat(0, {"document": FIELDS}), flat(1, {"document": OTHER})],
    }
    for name, records in inputs.items():
        assert judged(job, write_jsonl(tmp_path / f"{name}.jsonl", records), **LINES) == TEXTS, name
    template = {"document_template": "{title} ({year}) {body}"}
    assert judged(job, write_jsonl(tmp_path / "template.jsonl", nested), **template) == [
        "Files (2024) ", "Bread () Needs yeast."
    ]  # fmt: skip
    whole = [{"query": "what?", "documents": [OTHER, "a text is judged as it is"]}]
    assert judged(job, write_jsonl(tmp_path / "whole.jsonl", whole), document_template="yaml") == [
        "title: Bread\nbody: Needs yeast.\n", "a text is judged as it is"
    ]  # fmt: skip


def test_columns_of_parquet_and_csv(tmp_path: Path, job: Job) -> None:
    rows = [flat(0, {"title": "Files", "day": date(2024, 1, 2), "size": None}), flat(1, {"title": "Bread", "size": 5})]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "columns.parquet")
    options = {"rank_fields": ["title", "day", "size"], "document_template": "lines"}
    assert judged(job, tmp_path / "columns.parquet", **options) == [
        "title: Files\nday: 2024-01-02",
        "title: Bread\nsize: 5",
    ]
    structs = [flat(0, {"document": FIELDS | OTHER})]
    pq.write_table(pa.Table.from_pylist(structs), tmp_path / "structs.parquet")
    assert judged(job, tmp_path / "structs.parquet", rank_fields=["title", "year"]) == ["title: Bread\nyear: 2024\n"]
    lists = [{"query_id": "q", "query": "what?", "documents": [FIELDS, {"title": "Bread"}]}]
    pq.write_table(pa.Table.from_pylist(lists), tmp_path / "lists.parquet")
    assert judged(job, tmp_path / "lists.parquet", rank_fields=["title", "year"]) == [
        "title: Files\nyear: 2024\n", "title: Bread\n"
    ]  # fmt: skip
    (tmp_path / "table.csv").write_text("query_id,doc_id,query,title,body\nq,0,what?,Files,Open.\n")
    assert judged(job, tmp_path / "table.csv", document_template="{title}: {body}") == ["Files: Open."]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"other": 1}, "document has none of the fields title, year, tags, none, body"),
        ({"title": None}, "document has none of the fields"),
        (["a list"], "document needs an object, not list"),
        ("a text without a field", "document needs an object, not str"),
    ],
)
def test_a_pair_without_the_fields_is_an_error_row(tmp_path: Path, job: Job, document: object, reason: str) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"query": "what?", "documents": [OTHER, document]}])
    result = job(source, include_text=True, **LINES).run()
    assert (result.summary.scored, result.summary.errors) == (1, 1)
    assert reason in result.errors_path.read_text()


def test_the_fields_are_part_of_what_a_job_is(tmp_path: Path, job: Job) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [flat(0, FIELDS), flat(1, OTHER)])
    job(source, **LINES).run()
    job(source, **LINES).run()
    for options in (
        {"rank_fields": ["title"]},
        {"document_template": "{title}"},
        LINES | {"document_template": "yaml"},
    ):
        with pytest.raises(CheckpointError, match="judged_fields"):
            job(source, **options).run()
    plain = write_jsonl(tmp_path / "plain.jsonl", [flat(0, {"document": "a", "title": "b"})])
    job(plain, "plain.out", format="jsonl").run()
    assert "judged_fields" not in json.loads((tmp_path / "plain.out.job" / "fingerprint.json").read_text())
    with pytest.raises(CheckpointError, match="judged_fields: none -> "):
        job(plain, "plain.out", format="jsonl", rank_fields=["title"]).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"document_template": "yml"}, "document_template='yml'"),
        ({"rank_fields": []}, "rank_fields"),
        ({"rank_fields": ["a"], "document_template": "{a}"}, "give one of them"),
    ],
)
def test_unusable_options(tmp_path: Path, job: Job, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        job(tmp_path / "in.jsonl", **options)


def test_inputs_without_fields(tmp_path: Path, job: Job) -> None:
    with pytest.raises(InvalidInputError, match="no effect on tuples"):
        job([("q", "d", "what?", "text")], rank_fields=["title"]).run()
    (tmp_path / "table.csv").write_text("query_id,doc_id,query,title\nq,0,what?,Files\n")
    with pytest.raises(InvalidInputError, match="lacks body"):
        job(tmp_path / "table.csv", rank_fields=["title", "body"]).run()
    with pytest.raises(InvalidInputError, match="name the columns"):
        job(tmp_path / "table.csv", document_template="yaml").run()
    pq.write_table(pa.Table.from_pylist([flat(0, {"title": "Files"})]), tmp_path / "in.parquet")
    with pytest.raises(InvalidInputError, match=r"has columns .*; needs .*'body'"):
        job(tmp_path / "in.parquet", rank_fields=["title", "body"]).run()


def test_the_command_rank_takes_records(tmp_path: Path, reranker: Reranker) -> None:
    lines = write_jsonl(tmp_path / "in.jsonl", [FIELDS, OTHER, "a text"])
    rows = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist([FIELDS, {"title": "Bread"}]), rows)
    arguments = ["rank", "--query", "what?", "--json", "--device", "cpu", "--document-template", "lines"]

    def run(*more: str, text: str | None = None) -> list[tuple[str, str]]:
        result = CliRunner().invoke(app, [*arguments, *more], input=text)
        assert result.exit_code == 0, result.stderr
        hits = [json.loads(line) for line in result.stdout.splitlines()]
        return sorted((hit["source"], hit["document"]) for hit in hits)

    assert run(str(lines)) == [(f"{lines}:1", TEXTS[0]), (f"{lines}:2", TEXTS[1]), (f"{lines}:3", "a text")]
    assert run(str(rows), "--rank-fields", "year,title") == [
        (f"{rows}:1", "year: 2024\ntitle: Files"), (f"{rows}:2", "title: Bread")
    ]  # fmt: skip
    assert run("-", text=json.dumps(OTHER) + "\n") == [("stdin:1", TEXTS[1])]
    for more, message in (
        ([str(lines), "--rank-fields", "body"], f"{lines.name}:1'"),
        ([str(tmp_path)], "is not a file"),
        ([str(lines), "--by", "file"], "a whole file has no fields"),
        ([__file__], "need a .jsonl"),
    ):
        result = CliRunner().invoke(app, [*arguments, *more])
        assert isinstance(result.exception, InvalidInputError)
        assert message in str(result.exception)
