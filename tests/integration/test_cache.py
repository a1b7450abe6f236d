"""The cache of scores with a real model: what a hit saves, what it must be equal to, and what must never be one."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_ranker_plugins import EngineClosedError, InvalidInputError, Request, Reranker, ScoringError
from qwen3_ranker_plugins.cache import Entry, ScoreCache, Segment
from qwen3_ranker_plugins.cache.file import ROW_BYTES, FileStore
from qwen3_ranker_plugins.cache.store import ENTRY_BYTES, MemoryStore
from qwen3_ranker_plugins.checks import canonical_size
from qwen3_ranker_plugins.engines.base import Margins
from qwen3_ranker_plugins.prompt import PromptEncoder

QUERY = "how do I close a file?"
DOCUMENTS = ["Tigers live in Asia.", "The with statement closes a file.", "Bread needs yeast.", "file.close()", ""]


@pytest.fixture
def cached(reranker: Reranker) -> Iterator[Reranker]:
    """It shares the engine of `reranker`."""
    with Reranker("bundled:tiny", cache="1MB") as made:
        yield made


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The documents that reach the tokenizer from now on."""
    seen: list[str] = []
    encode = PromptEncoder.encode

    def watched(self: PromptEncoder, query: str, documents: Any, *rest: Any) -> Any:
        seen.extend(documents)
        return encode(self, query, documents, *rest)

    monkeypatch.setattr(PromptEncoder, "encode", watched)
    return seen


def passes(reranker: Reranker) -> int:
    return sum(each.passes for each in reranker.replicas())


def test_a_hit_is_the_same_score_without_tokenizer_and_engine(cached: Reranker, encoded: list[str]) -> None:
    first = cached.rerank(QUERY, DOCUMENTS)
    before = passes(cached)
    del encoded[:]
    again = cached.rerank(QUERY, DOCUMENTS)
    assert again.hits == first.hits  # bit for bit, with truncated tokens
    assert not encoded
    assert passes(cached) == before
    assert again.usage.cached_documents == len(DOCUMENTS)
    assert first.usage.cached_documents == 0
    assert again.usage.prompt_tokens == first.usage.prompt_tokens
    assert (again.usage.computed_tokens, first.usage.computed_tokens > 0) == (0, True)
    np.testing.assert_array_equal(cached.score(QUERY, DOCUMENTS), cached.score(QUERY, DOCUMENTS))
    statistics = cached.cache_statistics()
    assert statistics is not None
    assert (statistics.entries, statistics.misses, statistics.hits) == (5, 5, 15)
    assert statistics.bytes <= statistics.limit == 1_000_000
    assert "15 hits, 5 misses" in cached.describe().details["cache"]


def test_only_new_documents_are_scored_and_all_are_in_order(
    cached: Reranker, reranker: Reranker, encoded: list[str]
) -> None:
    cached.rerank(QUERY, DOCUMENTS[1:3])
    del encoded[:]
    mixed = [*DOCUMENTS, *DOCUMENTS[::-1], "Close it with file.close()."]
    found = cached.rerank(QUERY, mixed)
    assert set(encoded) == set(mixed) - set(DOCUMENTS[1:3])
    expected = reranker.rerank(QUERY, mixed)
    assert {hit.index: hit.document for hit in found} == dict(enumerate(mixed))
    assert {hit.index: hit.margin for hit in found} == pytest.approx(
        {hit.index: hit.margin for hit in expected}, abs=1e-4
    )
    assert found.usage.prompt_tokens == expected.usage.prompt_tokens
    assert found.usage.cached_documents == 4


async def test_every_way_of_calling_uses_it(cached: Reranker) -> None:
    first = cached.rerank(QUERY, DOCUMENTS)
    before = passes(cached)
    assert (await cached.arerank(QUERY, DOCUMENTS)).hits == first.hits
    assert cached.rerank_many([Request(QUERY, DOCUMENTS)])[0].hits == first.hits
    whole = cached.prepare(Request(QUERY, DOCUMENTS))
    cached.submit(whole, encoded=cached.encode(whole))
    assert whole.result(cached.options).hits == first.hits
    assert passes(cached) == before
    part = cached.prepare(Request(QUERY, [*DOCUMENTS, "one more"]))
    cached.submit(part, encoded=cached.encode(part))
    assert [hit for hit in part.result(cached.options) if hit.index < 5] == list(first.hits)
    assert passes(cached) == before + 1
    await cached.ascore(QUERY, DOCUMENTS, cached=False)
    assert passes(cached) == before + 2


def test_what_makes_another_score_is_another_key(tiny: Path, tmp_path: Path) -> None:
    """One file for rerankers that differ in one thing each: none of them may find the scores of another."""
    path, document = tmp_path / "scores.cache", ["word " * 300]
    other_weights = tmp_path / "other"
    shutil.copytree(tiny, other_weights)
    weights = bytearray((other_weights / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other_weights / "model.safetensors").write_bytes(weights)
    settings: list[dict[str, Any]] = [
        {},
        {"model": other_weights},
        {"template": "compact"},
        {"instruction": "Find recipes"},
        {"max_length": 128},
        {"dtype": "bfloat16"},
        {"scoring": "no - yes"},
        {"long_documents": "pieces", "piece_tokens": 100, "piece_overlap": 8},
        {"long_documents": "pieces", "piece_tokens": 90, "piece_overlap": 8},
    ]
    for count, each in enumerate(settings):
        with Reranker(**({"model": "bundled:tiny", "cache_path": path} | each)) as one:
            assert one.rerank(QUERY, document).usage.cached_documents == 0, each
            assert one.rerank(QUERY, document).usage.cached_documents == 1, each
            statistics = one.cache_statistics()
            assert statistics is not None
            assert statistics.misses == 1, (count, each)


def test_requests_that_differ_are_other_keys(cached: Reranker) -> None:
    """Also those whose texts are equal when they are joined, or when documents are cut."""
    long = "word " * 50
    requests = [
        Request("ab", ["c"]),
        Request("a", ["bc"]),
        Request("a", ["b"], instruction="c"),
        Request("a", ["b"]),
        Request("a", [long]),
        Request("a", [long], max_document_tokens=3),
        Request("a", [long + "end"], max_document_tokens=3),
        Request("a", [long[:10]]),
        Request("a", ["\ud800"]),
        Request("a", ["\ufffd"]),
    ]
    for request in requests:
        assert cached.rerank_many([request])[0].usage.cached_documents == 0, request
    for request in requests:
        assert cached.rerank_many([request])[0].usage.cached_documents == 1, request


def test_truncated_tokens_and_pieces_come_back(reranker: Reranker) -> None:
    documents = ["The with statement closes a file. " * 30, "short"]
    with Reranker("bundled:tiny", max_length=128, cache=10**6) as cut:
        first = cut.rerank(QUERY, documents)
        assert cut.rerank(QUERY, documents).hits == first.hits
        assert max(hit.truncated_tokens for hit in first) > 0
        prepared = cut.prepare(Request(QUERY, documents))
        cut.submit(prepared)
        assert prepared.truncated == [(0, max(hit.truncated_tokens for hit in first))]
    needles = "Needles come in several sizes. " * 15
    documents[0] = f"{needles}The with statement closes a file even after an error. {needles}"  # one piece is the best
    options: dict[str, Any] = {"long_documents": "pieces", "piece_tokens": 40, "piece_overlap": 8}
    with Reranker("bundled:tiny", cache=10**6, **options) as pieces, Reranker("bundled:tiny", **options) as plain:
        first = pieces.rerank(QUERY, documents)
        again = pieces.rerank(QUERY, [*documents, "new"])
        assert [hit for hit in again if hit.index < 2] == list(first.hits)
        assert all(hit.piece is not None for hit in again)
        expected = plain.rerank(QUERY, [*documents, "new"])
        assert [(hit.index, hit.piece) for hit in again] == [(hit.index, hit.piece) for hit in expected]
        assert again.usage.pieces == expected.usage.pieces
        assert again.usage.prompt_tokens == expected.usage.prompt_tokens


def test_a_score_is_kept_before_it_is_returned(cached: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes; otherwise a call right after another one would miss, and `close` could lose scores."""
    put = ScoreCache.put

    def slow(self: ScoreCache, entries: Any) -> None:
        time.sleep(0.1)
        put(self, entries)

    monkeypatch.setattr(ScoreCache, "put", slow)
    cached.rerank(QUERY, DOCUMENTS)
    assert cached.rerank(QUERY, DOCUMENTS).usage.cached_documents == len(DOCUMENTS)


def test_an_error_of_the_cache_reaches_the_caller(cached: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: ScoreCache, entries: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(ScoreCache, "put", failing)
        with pytest.raises(MemoryError):
            cached.rerank(QUERY, DOCUMENTS)
    assert len(cached.rerank(QUERY, DOCUMENTS)) == len(DOCUMENTS)


def test_calibrations_share_margins(reranker: Reranker, tmp_path: Path) -> None:
    from qwen3_ranker_plugins.calibration import Calibration

    file = tmp_path / "calibration.json"
    Calibration("platt", 0.5, -1.0, reranker.judgement_facts()).write(file)
    with (
        Reranker("bundled:tiny", cache=10**6) as plain,
        Reranker("bundled:tiny", cache=10**6, calibration=file) as other,
    ):
        first = plain.rerank(QUERY, DOCUMENTS)
        found = other.rerank(QUERY, DOCUMENTS)
        assert found.usage.cached_documents == len(DOCUMENTS)
        assert [hit.margin for hit in found] == [hit.margin for hit in first]
        assert [hit.score for hit in found] != [hit.score for hit in first]


def test_a_margin_that_is_no_number_is_never_kept(cached: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cached._lease.engine
    score = engine.score

    def broken(requests: Any) -> list[Margins]:
        found = score(requests)
        values = found[0].values.copy()
        values[0] = np.nan
        return [Margins(values, found[0].computed_tokens)]

    with monkeypatch.context() as patch:
        patch.setattr(engine, "score", broken)
        with pytest.raises(ScoringError):
            cached.rerank(QUERY, DOCUMENTS[:2])
    statistics = cached.cache_statistics()
    assert statistics is not None
    assert statistics.entries == 1  # the other one is kept
    found = cached.rerank(QUERY, DOCUMENTS[:2])
    assert found.usage.cached_documents == 1
    assert np.isfinite([hit.margin for hit in found]).all()


def test_a_closed_reranker_answers_nothing_from_its_cache() -> None:
    cached = Reranker("bundled:tiny", cache="1MB")
    cached.rerank(QUERY, DOCUMENTS)
    cached.close()
    cached.close()
    with pytest.raises(EngineClosedError):
        cached.rerank(QUERY, DOCUMENTS)


def test_fifty_threads(tmp_path: Path, reranker: Reranker) -> None:
    """Whatever they find, in memory or in a file, is what the engine says."""
    texts = [f"The with statement closes file {number}." for number in range(40)]
    expected = dict(zip(texts, reranker.score(QUERY, texts).tolist(), strict=True))
    for place in ({"cache": "9kB"}, {"cache_path": tmp_path / "scores.cache"}):
        with Reranker("bundled:tiny", **place) as cached, ThreadPoolExecutor(50) as pool:  # type: ignore[arg-type]

            def ask(number: int, cached: Reranker = cached) -> list[tuple[str, float]]:
                mine = [texts[(number * 7 + step) % len(texts)] for step in range(6)]
                return list(zip(mine, cached.score(QUERY, mine).tolist(), strict=True))

            for answers in pool.map(ask, range(60)):
                for text, score in answers:
                    assert score == pytest.approx(expected[text], abs=1e-4)
            statistics = cached.cache_statistics()
            assert statistics is not None
            assert statistics.hits + statistics.misses == 360
            assert statistics.hits > 30
            assert statistics.bytes <= statistics.limit
            assert (statistics.evictions > 0) == ("cache" in place)


def ask_in_child(path: str, texts: list[str]) -> tuple[list[float], int]:
    with Reranker("bundled:tiny", cache_path=path) as cached:
        found = cached.rerank(QUERY, texts)
        return [hit.margin for hit in found], found.usage.cached_documents


@pytest.mark.slow
def test_another_process_finds_the_scores(tmp_path: Path) -> None:
    """While this one has the file open."""
    path, texts = str(tmp_path / "scores.cache"), [f"text {number}" for number in range(20)]
    with Reranker("bundled:tiny", cache_path=path) as cached:
        first = [hit.margin for hit in cached.rerank(QUERY, texts)]
        time.sleep(0.5)  # until it is written
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(ask_in_child, (path, [*texts, "one more"]))[1] == 20
            assert pool.apply(ask_in_child, (path, texts)) == (first, 20)
        assert cached.rerank(QUERY, ["one more"]).usage.cached_documents == 1


def test_two_processes_write_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "scores.cache"
    script = WRITER.replace("while True", "while number < 5000").replace('b"key', 'b"key') + "store.close()\n"
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [each.wait(60) for each in writers] == [0, 0]
    store = FileStore(path, 10**9)
    assert store.get([b"key 0", b"key 4999", b"key 5000"]) == [b"value 0", b"value 4999", None]
    store.close()


WRITER = """
import sys
from pathlib import Path
from qwen3_ranker_plugins.cache.file import FileStore
store = FileStore(Path(sys.argv[1]), 10**9)
number = 0
while True:
    store.put({f"key {number + n}".encode(): f"value {number + n}".encode() for n in range(500)})
    number += 500
    if number == 2000:
        print("going", flush=True)
    import time; time.sleep(0.01)
"""


def test_a_killed_process_leaves_a_usable_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.cache"
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = FileStore(path, 10**9)
        keys = [f"key {number}".encode() for number in range(3000)]
        found = store.get(keys)
        assert {
            value for key, value in zip(keys, found, strict=True) if value not in (None, key.replace(b"key", b"value"))
        } == set()
        assert sum(value is not None for value in found) >= 500
        store.close()
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


def test_a_file_is_bounded_and_the_least_used_go_first(tmp_path: Path) -> None:
    path = tmp_path / "scores.cache"
    limit = 200 * (ROW_BYTES + 24)
    store = FileStore(path, limit)
    for start in range(0, 2000, 100):
        store.put({f"{number:020}".encode(): bytes(20) for number in range(start, start + 100)})
    store.close()
    assert store.evictions >= 1700
    again = FileStore(path, limit)
    found = again.get([f"{number:020}".encode() for number in range(2000)])
    again.close()
    assert 100 <= sum(value is not None for value in found) <= 200
    big = tmp_path / "big.cache"
    store = FileStore(big, 500_000)
    random = np.random.default_rng(0)
    for _ in range(8):
        store.put({random.bytes(20): random.bytes(17) for _ in range(2000)})
        time.sleep(0.3)  # in transactions of their own
    store.close()
    assert store.size()[1] <= 500_000
    assert big.stat().st_size <= 700_000


def test_memory_is_bounded_and_the_least_used_go_first() -> None:
    store = MemoryStore(10 * (ENTRY_BYTES + 17))
    for number in range(10):
        store.put({bytes([number]): bytes(17)})
    store.get([bytes([0])])
    store.put({b"new": bytes(17)})
    assert store.get([bytes([0]), bytes([1]), b"new"]) == [bytes(17), None, bytes(17)]
    assert store.size() == (10, 10 * (ENTRY_BYTES + 17))
    assert store.evictions == 1
    store.put({b"huge": bytes(10_000)})
    assert store.get([b"huge"]) == [None]


def test_an_entry_takes_no_more_memory_than_it_is_counted_for() -> None:
    import tracemalloc

    store = MemoryStore(10**9)
    tracemalloc.start()
    random = np.random.default_rng(0)
    for _ in range(6):
        store.put({random.bytes(20): random.bytes(17) for _ in range(500)})
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used <= store.size()[1]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"this is no database, and long enough to be looked at by SQLite" * 20, "cannot be read as a cache"),
        (None, "is the database of another program"),
        (7, "has format 7, and this version reads 1"),
    ],
)
def test_files_that_are_no_cache_are_refused_and_kept(tmp_path: Path, content: object, why: str) -> None:
    path = tmp_path / "scores.cache"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (a)")
        connection.close()
    else:
        FileStore(path, 10**6).close()
        with sqlite3.connect(path) as connection:
            connection.execute(f"PRAGMA user_version = {content}")
        connection.close()
    before = path.read_bytes()
    with pytest.raises(InvalidInputError, match=why):
        Reranker("bundled:tiny", cache_path=path)
    assert path.read_bytes() == before
    with pytest.raises(InvalidInputError, match="give a path that can be written"):
        Reranker("bundled:tiny", cache_path=tmp_path / "missing" / "scores.cache")


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of processes")
def test_a_place_that_cannot_be_written_is_refused_with_its_remedy(tmp_path: Path) -> None:
    """Such as a full disk; deleting the file would not help, and would lose its scores."""
    import resource

    path = tmp_path / "scores.cache"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(InvalidInputError, match=r"cannot be written \(.*free space") as refused:
            FileStore(path, 10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "delete" not in str(refused.value)
    FileStore(path, 10**6).close()


@pytest.mark.parametrize("size", [256, "1", "0.5kB"])
def test_a_size_without_its_unit_is_refused(size: object) -> None:
    with pytest.raises(InvalidInputError, match="has no room for scores: give bytes, or a unit as in '256MB'"):
        Reranker("bundled:tiny", cache=size)  # type: ignore[arg-type]


def test_a_damaged_row_is_a_miss(tmp_path: Path) -> None:
    path = tmp_path / "scores.cache"
    with Reranker("bundled:tiny", cache_path=path) as cached:
        first = cached.rerank(QUERY, DOCUMENTS)
    with sqlite3.connect(path) as connection:
        for key, value in connection.execute("SELECT key, value FROM scores").fetchall():
            damaged = bytes([*value[:6], value[6] ^ 1, *value[7:]])  # the exponent or the sign of a margin
            connection.execute("UPDATE scores SET value = ? WHERE key = ?", (damaged, key))
    connection.close()
    with Reranker("bundled:tiny", cache_path=path) as cached:
        found = cached.rerank(QUERY, DOCUMENTS)
        assert found.usage.cached_documents == 0
        assert [hit.margin for hit in found] == pytest.approx([hit.margin for hit in first], abs=1e-4)
        assert cached.rerank(QUERY, DOCUMENTS).usage.cached_documents == len(DOCUMENTS)


def test_a_file_that_is_damaged_meanwhile_costs_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "scores.cache"
    # Several pages of rows: the first of them stays in the memory of SQLite after the file was opened.
    documents = [f"document {number}" for number in range(200)]
    with Reranker("bundled:tiny", cache_path=path) as cached:
        first = cached.rerank(QUERY, documents)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)  # all pages but the first
    with caplog.at_level(logging.WARNING):
        try:
            cached = Reranker("bundled:tiny", cache_path=path)
        except InvalidInputError:
            pytest.fail("the file was whole when it was opened")
        with cached:
            path.write_bytes(content)
            found = cached.rerank(QUERY, documents)
            assert cached.describe().details["cache"].startswith("failed, all scores are computed: ")
    assert [hit.margin for hit in found] == pytest.approx([hit.margin for hit in first], abs=1e-4)
    path.write_bytes(content)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    with pytest.raises(InvalidInputError, match="cannot be read as a cache"):
        Reranker("bundled:tiny", cache_path=path)


def test_no_text_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.cache"
    with Reranker("bundled:tiny", cache_path=path) as cached:
        cached.rerank(QUERY, DOCUMENTS)
    assert b"statement" not in b"".join(each.read_bytes() for each in tmp_path.iterdir())


def test_remote_scores_are_not_kept_in_a_file(tmp_path: Path) -> None:
    options: dict[str, Any] = {"url": "http://127.0.0.1:9", "route": "v1/rerank"}
    with pytest.raises(InvalidInputError, match="has its weights elsewhere"):
        Reranker("m", engine="remote", engine_options={"url": options["url"]}, cache_path=tmp_path / "scores.cache")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MB", 256_000_000),
        ("1GiB", 2**30),
        ("1.5 kB", 1500),
        (" 10 MB ", 10_000_000),
        ("1000", 1000),
        (7, 7),
        (None, None),
    ],
)
def test_sizes(text: object, size: int | None) -> None:
    assert canonical_size("cache", text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", 0, -5, True, "1 XB", "1MBs", 1.5, [], "nan", "0.0000001kB"])
def test_sizes_that_are_none(text: object) -> None:
    with pytest.raises(InvalidInputError, match="cache="):
        canonical_size("cache", text)


def test_an_entry_is_unpacked_as_it_was_packed() -> None:
    for entry in (
        Entry(3, [Segment(float(np.float32(-1.1)), 7, 0)]),
        Entry(
            0, [Segment(0.5, 1, 2, 3, 4), Segment(-0.0, 2**31, 9, 0, 2**31)], has_pieces=True, counted_elsewhere=True
        ),
    ):
        assert Entry.unpack(entry.pack()) == entry
        assert entry.is_sound
    assert not Entry(1, [Segment(float("nan"), 1, 0)]).is_sound
    assert not Entry(1, [Segment(float("inf"), 1, 0)]).is_sound
    assert not Entry(1, []).is_sound


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_leaves_the_cache_alone(cached: Reranker) -> None:
    cached.rerank(QUERY, DOCUMENTS)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            cached.rerank(QUERY, DOCUMENTS)
            answer = "it answered"
        except EngineClosedError:
            answer = "refused"
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    assert json.loads(os.read(reading, 100)) == "refused"
    os.close(reading)
    assert isinstance(cached._cache, ScoreCache)
    assert cached.rerank(QUERY, DOCUMENTS).usage.cached_documents == len(DOCUMENTS)
