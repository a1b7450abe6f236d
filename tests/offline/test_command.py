"""`qwen3-ranker rerank` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .conftest import make_records, read_jsonl, write_jsonl


def rerank(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwen3_ranker_plugins.cli", "rerank", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={key: value for key, value in os.environ.items() if not key.startswith("QWEN3_RANKER")},
    )


def test_exit_codes_and_messages(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(20))
    output = tmp_path / "out.jsonl"
    done = rerank(source, "--model", "bundled:tiny", "-o", output, "--include-text")
    assert done.returncode == 0, done.stderr
    assert "20 pairs of 2 queries: 20 scored, 0 errors" in done.stderr
    assert "tokens/s" in done.stderr
    assert done.stdout == ""
    assert {"query", "document", "processing_time"} < set(read_jsonl(output)[0])

    refused = rerank(source, "--model", "bundled:tiny", "-o", output, "--include-text", "--instruction", "other")
    assert refused.returncode == 1
    assert "instruction: Given a web search query" in refused.stderr
    assert "--restart" in refused.stderr

    with source.open("a") as file:
        file.write("{\n")
    some = rerank(source, "--model", "bundled:tiny", "-o", tmp_path / "some.trec")
    assert some.returncode == 1
    assert f"1 pairs have no score: see {tmp_path / 'some.trec'}.errors.jsonl" in some.stderr
    assert len((tmp_path / "some.trec").read_text().splitlines()) == 20

    for option, message in (("depth=3", "no such option"), ("depth", "NAME=VALUE")):
        unusable = rerank(
            source,
            "--model",
            "bundled:tiny",
            "-o",
            tmp_path / "other.jsonl",
            "--engine",
            "packed",
            "--engine-option",
            option,
        )
        assert unusable.returncode == 2
        assert message in unusable.stderr

    unusable = rerank(source, "--model", "bundled:tiny", "-o", tmp_path / "other.jsonl", "--gpus", "all")
    assert unusable.returncode == 2
    assert "0 CUDA devices" in unusable.stderr
