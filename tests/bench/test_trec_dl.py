"""`bench quality DL19` as documented: the real command and the real ir_datasets, in whose cache small files lie.

The library downloads what it does not find there, so that every file is at the place and in the form in which it keeps
what it has downloaded; the run is MS MARCO's: candidates in random order, without scores.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen3_ranker_plugins.bench.report_files import read_result
from qwen3_ranker_plugins.data.bm25 import BM25, rank_listed, words
from qwen3_ranker_plugins.data.demo import load_demo_corpus

from . import arithmetic

CORPUS = load_demo_corpus()
DOCUMENTS = {str(7000 + place): " ".join(each.content.split()) for place, each in enumerate(CORPUS.documents.values())}
QUERIES = {"19335": "how do I close a file", "47923": "what is a list", "1": "a query that nobody has judged"}
LISTED = 30


@pytest.fixture(scope="module")
def index() -> BM25:
    return BM25(DOCUMENTS.items())


@pytest.fixture(scope="module")
def qrels(index: BM25) -> dict[str, dict[str, int]]:
    """Grades 0 to 3 of documents at different places of BM25's ranking; grade 1 is "related", and not relevant."""
    judged: dict[str, dict[str, int]] = {}
    for query_id in list(QUERIES)[:2]:
        best = index.search(QUERIES[query_id], LISTED)
        judged[query_id] = {best[0]: 1, best[2]: 3, best[3]: 0, best[9]: 2}
    return judged


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, index: BM25, qrels: dict[str, dict[str, int]]) -> Path:
    """IR_DATASETS_HOME with both years."""
    home = tmp_path_factory.mktemp("ir-datasets")
    base = home / "msmarco-passage"
    base.mkdir()
    (base / "irds_version.txt").write_text("v2")  # of its repaired encoding; else it removes the collection
    (base / "collection.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in DOCUMENTS.items()))
    queries = "".join(f"{key}\t{text}\n" for key, text in QUERIES.items())
    choose = random.Random(5)
    for year in ("trec-dl-2019", "trec-dl-2020"):
        folder = base / year
        folder.mkdir()
        # The library unpacks the one, and leaves the other as it came.
        (folder / "queries.tsv").write_text(queries)
        (folder / "queries.tsv.gz").write_bytes(gzip.compress(queries.encode()))
        (folder / "qrels").write_text(
            "".join(f"{key} 0 {doc} {grade}\n" for key, grades in qrels.items() for doc, grade in grades.items())
        )
        pairs = [(key, doc) for key, text in QUERIES.items() for doc in index.search(text, LISTED)]
        choose.shuffle(pairs)
        (folder / "ms.run").write_text("".join(f"{key}\t{doc}\n" for key, doc in pairs))
    return home


def measure(home: Path, output: Path, *arguments: str) -> dict[str, Any]:
    """The command, in a process whose ir_datasets has that home, and no network."""
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-m", "qwen3_ranker_plugins.cli", "bench", "quality", *arguments, "-o", str(output)],
        env=os.environ
        | {
            "IR_DATASETS_HOME": str(home),
            "IR_DATASETS_DL_TRIES": "1",
            "IR_DATASETS_SKIP_DISK_FREE": "true",  # the library wants room for the whole collection
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
        },
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return read_result(output / "quality.json").as_json()


def test_dl19_is_one_command(home: Path, tmp_path: Path, index: BM25, qrels: dict[str, dict[str, int]]) -> None:
    """The best 10 of BM25's 30, which ir_datasets lists without scores and in random order."""
    result = measure(home, tmp_path, "DL19", "--candidates", "10", "--model", "bundled:tiny")
    collection = result["collection"]
    assert collection["name"] == "ir_datasets:msmarco-passage/trec-dl-2019/judged"
    assert "ordered by BM25" in collection["first_stage"]
    assert collection["relevant_from"] == 2
    assert collection["candidates"] == {key: index.search(QUERIES[key], 10) for key in qrels}
    assert collection["qrels"] == qrels
    for label, order in (
        ("first stage", collection["candidates"]),
        ("reranked", {key: _by_margin(result, key) for key in qrels}),
    ):
        measures = result["figures"]["means"][label]
        assert measures["nDCG@10"] == pytest.approx(
            sum(arithmetic.ndcg(grades, order[key]) for key, grades in qrels.items()) / len(qrels)
        )
        assert measures["MRR@10"] == pytest.approx(
            sum(
                arithmetic.reciprocal_rank({doc for doc, grade in grades.items() if grade >= 2}, order[key])
                for key, grades in qrels.items()
            )
            / len(qrels)
        )


def test_dl20_takes_a_run_of_the_users_own(
    home: Path, tmp_path: Path, index: BM25, qrels: dict[str, dict[str, int]]
) -> None:
    run = tmp_path / "mine.trec"
    lists = {key: index.search(QUERIES[key], 12)[::-1] for key in QUERIES}
    run.write_text(
        "".join(f"{key} Q0 {doc} {n} {99 - n} mine\n" for key, ids in lists.items() for n, doc in enumerate(ids))
    )
    result = measure(home, tmp_path, "DL20", "--run", str(run), "--candidates", "5", "--model", "bundled:tiny")
    assert result["collection"]["candidates"] == {key: lists[key][:5] for key in qrels}
    assert result["collection"]["first_stage"].startswith("mine.trec")


def _by_margin(result: dict[str, Any], query_id: str) -> list[str]:
    margins = result["systems"][0]["margins"][query_id]
    candidates = result["collection"]["candidates"][query_id]
    return [doc for _, doc in sorted(zip([-each for each in margins], candidates, strict=True))]


def test_lists_without_scores_get_the_order_of_the_index(index: BM25) -> None:
    """Scores of both are equal, also where a query has a word twice; so all orders are but those of equal scores."""
    queries = {"q": "close a file and close a list", "other": "zzz"}
    found = index.search(queries["q"], 200)
    scores = dict(zip(DOCUMENTS, index._index.get_scores(words(queries["q"])), strict=True))
    assert len({round(float(scores[doc]), 4) for doc in found}) > 100
    listed = {"q": sorted(found), "other": ["7001", "7000", "absent"]}
    ranked, texts = rank_listed(queries, listed, DOCUMENTS.items())
    assert ranked["other"] == ["7000", "7001", "absent"]
    expected = [scores[doc] for doc in found]
    assert [scores[doc] for doc in ranked["q"]] == pytest.approx(expected, rel=1e-5)
    assert texts == {doc: DOCUMENTS[doc] for doc in {*found, "7000", "7001"}}


def test_the_files_are_what_the_library_reads(home: Path) -> None:
    """Scores of 0 and the order of the file: what makes the ranking above necessary."""
    program = (
        "import ir_datasets, json; "
        "found = ir_datasets.load('msmarco-passage/trec-dl-2019/judged').scoreddocs_iter(); "
        "print(json.dumps([list(each) for each in found]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"IR_DATASETS_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    listed = json.loads(done.stdout)
    assert len(listed) == 2 * LISTED
    assert {score for _, _, score in listed} == {0}
    assert {query_id for query_id, _, _ in listed} == {"19335", "47923"}
