"""The demo's nDCG is only as good as these files: strangers read them, and nothing else checks them."""

from __future__ import annotations

import csv
import importlib.util
import json
import platform
import re
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "src" / "qwen3_ranker_plugins" / "assets" / "demo"
SCRIPT = REPOSITORY / "tools" / "build_demo_corpus.py"

SHORTEST_PASSAGE_WORDS = 15
LONGEST_PASSAGE_WORDS = 270
LARGEST_TOTAL_BYTES = 600_000


def read_jsonl(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus() -> list[dict[str, object]]:
    return read_jsonl(DEMO / "corpus.jsonl")


@pytest.fixture(scope="module")
def queries() -> list[dict[str, object]]:
    return read_jsonl(DEMO / "queries.jsonl")


@pytest.fixture(scope="module")
def judgements() -> list[tuple[str, str, int]]:
    with (DEMO / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, delimiter="\t")
    assert header == ["query-id", "corpus-id", "score"]
    return [(query_id, passage_id, int(score)) for query_id, passage_id, score in rows]


@pytest.fixture(scope="module")
def build_script() -> ModuleType:
    """The script as a module; it is no part of the package, so it is loaded from its file."""
    spec = importlib.util.spec_from_file_location("build_demo_corpus", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_files_are_in_beir_layout(corpus: list[dict[str, object]], queries: list[dict[str, object]]) -> None:
    for passage in corpus:
        assert list(passage) == ["_id", "title", "text", "metadata"]
        assert all(isinstance(passage[name], str) and passage[name] for name in ("_id", "title", "text"))
    for query in queries:
        assert list(query) == ["_id", "text"]
        assert all(isinstance(value, str) and value for value in query.values())


def test_counts_are_those_of_a_demo(corpus: list[dict[str, object]], queries: list[dict[str, object]]) -> None:
    """Enough passages for retrieval to be able to fail, few enough for two CPU cores."""
    assert 300 <= len(corpus) <= 600
    assert 40 <= len(queries) <= 60
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    assert f"{len(corpus)} passages" in readme
    assert f"{len(queries)} questions" in readme
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < LARGEST_TOTAL_BYTES


def test_ids_are_unique_and_readable(corpus: list[dict[str, object]], queries: list[dict[str, object]]) -> None:
    passage_ids = [str(passage["_id"]) for passage in corpus]
    query_ids = [str(query["_id"]) for query in queries]
    assert len(set(passage_ids)) == len(passage_ids)
    assert len(set(query_ids)) == len(query_ids)
    assert all(re.fullmatch(r"[a-z-]+-\d+", passage_id) for passage_id in passage_ids)


def test_questions_are_all_different(queries: list[dict[str, object]]) -> None:
    assert len({str(query["text"]).lower() for query in queries}) == len(queries)


def test_passage_lengths_are_in_bounds(corpus: list[dict[str, object]]) -> None:
    """A stub answers nothing and a page is no passage; the middle half is a paragraph or two."""
    lengths = sorted(len(str(passage["text"]).split()) for passage in corpus)
    assert lengths[0] >= SHORTEST_PASSAGE_WORDS
    assert lengths[-1] <= LONGEST_PASSAGE_WORDS
    assert lengths[len(lengths) // 4] >= 40
    assert lengths[len(lengths) * 3 // 4] <= 160


def test_no_text_occurs_twice(corpus: list[dict[str, object]]) -> None:
    """A second copy of a right passage would be an unjudged one, counted as wrong."""
    texts = [" ".join(re.findall(r"\w+", str(passage["text"]).lower())) for passage in corpus]
    assert len(set(texts)) == len(texts)


def test_topics_do_not_repeat_each_other(corpus: list[dict[str, object]], build_script: ModuleType) -> None:
    """pydoc's topics contain one another; inside a topic, alike definitions are different definitions."""
    topics_of_shingle: dict[tuple[str, ...], set[str]] = defaultdict(set)
    shingles_of: dict[str, frozenset[tuple[str, ...]]] = {}
    topic_of = {str(passage["_id"]): str(passage["_id"]).rpartition("-")[0] for passage in corpus}
    for passage in corpus:
        passage_id = str(passage["_id"])
        shingles_of[passage_id] = build_script.word_shingles(str(passage["text"]))
        for shingle in shingles_of[passage_id]:
            topics_of_shingle[shingle].add(topic_of[passage_id])
    for passage_id, shingles in shingles_of.items():
        repeated = sum(1 for shingle in shingles if len(topics_of_shingle[shingle]) > 1)
        assert repeated <= 0.6 * len(shingles), passage_id


def test_every_judgement_names_existing_ids_once(
    corpus: list[dict[str, object]],
    queries: list[dict[str, object]],
    judgements: list[tuple[str, str, int]],
) -> None:
    pairs = [(query_id, passage_id) for query_id, passage_id, _ in judgements]
    assert len(set(pairs)) == len(pairs)
    assert {query_id for query_id, _ in pairs} <= {query["_id"] for query in queries}
    assert {passage_id for _, passage_id in pairs} <= {passage["_id"] for passage in corpus}
    assert {score for _, _, score in judgements} == {1, 2}


def test_every_question_has_an_answer(queries: list[dict[str, object]], judgements: list[tuple[str, str, int]]) -> None:
    answered = {query_id for query_id, _, score in judgements if score == 2}
    assert answered == {query["_id"] for query in queries}


def test_licence_of_the_passages_travels_with_them() -> None:
    licence = (DEMO / "LICENSE.txt").read_text(encoding="utf-8")
    assert "PSF-2.0" in licence
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in licence


def test_script_makes_the_shipped_corpus(build_script: ModuleType, tmp_path: Path) -> None:
    """The exact version, not only the minor one: 3.11.2 and 3.11.7 already differ in their topics."""
    if platform.python_version() != build_script.SHIPPED_VERSION:
        pytest.skip(f"the shipped corpus is the text of Python {build_script.SHIPPED_VERSION}")
    build_script.write_corpus(tmp_path)
    assert (tmp_path / "corpus.jsonl").read_bytes() == (DEMO / "corpus.jsonl").read_bytes()


def test_script_copes_with_other_pythons(build_script: ModuleType) -> None:
    """Other passages, but passages: the splitting rules must not lean on the wording of one version."""
    passages = build_script.build_corpus()
    assert 300 <= len(passages) <= 700
    assert len({passage.passage_id for passage in passages}) == len(passages)
    assert all(passage.title and passage.text.strip() for passage in passages)
