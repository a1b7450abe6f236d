"""`qwen3-ranker rerank` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Ended

from .conftest import committed, make_records, read_jsonl, write_jsonl

COMMAND = [sys.executable, "-m", "qwen3_ranker_plugins.cli", "rerank"]


@pytest.fixture
def rerank(call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    for name in [name for name in os.environ if name.startswith("QWEN3_RANKER_")]:
        monkeypatch.delenv(name)
    return partial(call, "rerank")


def test_exit_codes_and_messages(tmp_path: Path, rerank: Callable[..., Ended]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(20))
    output = tmp_path / "out.jsonl"
    done = rerank(source, "--model", "bundled:tiny", "-o", output, "--include-text")
    assert done.code == 0, done.stderr
    assert "20 pairs of 2 queries: 20 scored, 0 errors" in done.stderr
    assert "tokens/s" in done.stderr
    assert done.stdout == ""
    assert {"query", "document", "processing_time"} < set(read_jsonl(output)[0])

    refused = rerank(source, "--model", "bundled:tiny", "-o", output, "--include-text", "--instruction", "other")
    assert refused.code == 1
    assert "instruction: Given a web search query" in refused.stderr
    assert "--restart" in refused.stderr

    with source.open("a") as file:
        file.write("{\n")
    some = rerank(source, "--model", "bundled:tiny", "-o", tmp_path / "some.trec")
    assert some.code == 1
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
        assert unusable.code == 2
        assert message in unusable.stderr

    unusable = rerank(source, "--model", "bundled:tiny", "-o", tmp_path / "other.jsonl", "--gpus", "all")
    assert unusable.code == 2
    assert "0 CUDA devices" in unusable.stderr


def test_a_cache_file(tmp_path: Path, rerank: Callable[..., Ended]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(20))
    arguments = [source, "--model", "bundled:tiny", "--no-processing-time", "--cache-path", tmp_path / "scores.cache"]
    for name, line in (("a", "cache: 0 hits, 20 misses"), ("b", "cache: 20 hits, 0 misses")):
        done = rerank(*arguments, "--cache", "10MB", "-o", tmp_path / f"{name}.jsonl")
        assert done.code == 0, done.stderr
        assert line in done.stderr
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_without_a_model_nothing_is_scored(tmp_path: Path, rerank: Callable[..., Ended]) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(20))
    refused = rerank(source, "-o", tmp_path / "out.jsonl")
    assert refused.code == 2
    assert "Qwen/Qwen3-Reranker-0.6B" in refused.stderr
    assert "bundled:tiny" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_standard_input_to_standard_output(tmp_path: Path) -> None:
    records = [*make_records(20), {"query_id": "q"}]
    done = subprocess.run(
        [*COMMAND, "-", "-o", "-", "--model", "bundled:tiny", "--format", "csv", "--no-processing-time"],
        input="".join(json.dumps(record) + "\n" for record in records),
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("query_id,doc_id,relevance_score,")
    assert len(done.stdout.splitlines()) == 21
    assert "model bundled:tiny" in done.stderr
    assert '"reason": "doc_id is missing"' in done.stderr


def test_an_interrupt_says_which_command_goes_on(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", make_records(20_000))
    output = tmp_path / "out.jsonl"
    arguments = [str(source), "-o", str(output), "--model", "bundled:tiny", "--restart"]
    running = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while committed(output)[0] < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, messages = running.communicate(timeout=60)
    assert running.returncode == 130, messages
    assert f"continues: qwen3-ranker rerank {source} -o {output} --model bundled:tiny\n" in messages
    assert committed(output)[0] >= 1
