from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from pathlib import Path

import pytest

from qwen3_ranker_plugins.data.bm25 import BM25, words
from qwen3_ranker_plugins.data.collection import Collection, open_collection
from qwen3_ranker_plugins.errors import InvalidInputError

from .conftest import QUERIES, json_lines


def test_words_of_several_scripts() -> None:
    assert words("A File_name, 5000mAh!") == ["a", "file", "name", "5000mah"]
    assert words("健身女生T恤 短袖") == ["健身", "身女", "女生", "t", "恤", "短袖"]


def test_bm25_finds_by_rare_words_and_nothing_for_unknown_ones() -> None:
    index = BM25([("a", "the file is closed"), ("b", "the tiger sleeps"), ("c", "the file of the tiger")])
    assert index.search("closed file", 10) == ["a", "c"]
    assert index.search("the closed file", 1) == ["a"]
    assert index.search("unknown", 10) == []


def test_folder_with_bm25(collection: Collection, beir: Path) -> None:
    assert len(collection.queries) == len(collection.candidates) == QUERIES
    assert collection.depth == 4
    assert collection.name == "small/test"
    assert "BM25" in collection.first_stage
    assert set(collection.texts) >= {doc_id for ids in collection.candidates.values() for doc_id in ids}
    first = json.loads((beir / "corpus.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert f"{first['title']}\n{first['text']}" in open_collection(str(beir), candidates=100).texts.values()


def test_compressed_files_are_the_same_collection(collection: Collection, beir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(beir, folder)
    for name in ("corpus", "queries"):
        path = folder / f"{name}.jsonl"
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert open_collection(str(folder), candidates=4) == collection


def test_a_run_is_ordered_by_score_and_its_unjudged_queries_are_left_out(beir: Path, tmp_path: Path) -> None:
    run = tmp_path / "first.trec"
    run.write_text(
        "q01 Q0 with-2 1 1.5 x\nq01 Q0 with-1 2 9.0 x\nq01 Q0 objects-5 3 1.5 x\nzzz Q0 with-1 1 1 x\n",
        encoding="utf-8",
    )
    found = open_collection(str(beir), candidates=100, run=run)
    assert found.candidates["q01"] == ["with-1", "with-2", "objects-5"]
    assert "zzz" not in found.candidates
    assert found.candidates["q02"] == []  # counts as 0 instead of vanishing
    assert open_collection(str(beir), candidates=1, run=run).candidates["q01"] == ["with-1"]


def test_judgements_of_trec_may_replace_those_of_the_folder(beir: Path, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("q01 0 with-1 3\nq01 0 with-2 0\nq02 0 with-2 0\n", encoding="utf-8")
    found = open_collection(str(beir), candidates=4, qrels=qrels, relevant_from=2)
    assert found.qrels == {"q01": {"with-1": 3, "with-2": 0}}
    assert found.left_out == 1


def test_lists_count_relevant_documents_outside_of_them(tmp_path: Path) -> None:
    """`all_rels` is the ideal: two relevant ones, of which the list holds one."""
    path = tmp_path / "lists.jsonl.gz"
    docs = [{"docid": "a", "text": "one", "rank": 1, "rel": None}, {"docid": "b", "text": "two", "rank": 2, "rel": 2}]
    lines = [{"qid": 1, "query": "what?", "docs": docs, "all_rels": [2, 1]}, {"qid": 2, "query": "x", "docs": docs[:1]}]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    found = open_collection(str(path), candidates=100)
    assert found.qrels == {"1": {"1/b": 2, "1/outside-0": 1}}
    assert found.candidates == {"1": ["1/a", "1/b"]}
    assert found.left_out == 1
    assert found.pairs == [("1", "1/a", 0), ("1", "1/b", 2)]


def test_a_data_set_of_ir_datasets_comes_with_its_own_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set made with the library's own parts from local files, as no network is here."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    import ir_datasets
    from ir_datasets.formats import TrecQrels, TrecScoredDocs, TsvDocs, TsvQueries
    from ir_datasets.util import LocalDownload

    files = {
        "docs": "d1\tThe with statement closes a file.\nd2\tTigers sleep.\nd3\tA file has lines.\n",
        "queries": "1\thow to close a file\n2\tnot judged\n",
        "qrels": "1 0 d1 3\n1 0 d3 1\n",
        "run": "1 Q0 d3 1 9.0 x\n1 Q0 d1 2 8.0 x\n1 Q0 d2 3 1.0 x\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    local = {name: LocalDownload(tmp_path / name) for name in files}
    docs = TsvDocs(local["docs"], namespace="local", count_hint=None)
    dataset = ir_datasets.Dataset(
        docs,
        TsvQueries(local["queries"]),
        TrecQrels(local["qrels"], {0: "no", 1: "related", 3: "yes"}),
        TrecScoredDocs(local["run"]),
    )
    ir_datasets.registry.register("local-test", dataset)
    found = open_collection("ir_datasets:local-test", candidates=2, relevant_from=2)
    assert found.candidates == {"1": ["d3", "d1"]}
    assert found.texts["d1"] == "The with statement closes a file."
    assert found.relevant_from == 2
    assert "come with the data" in found.first_stage


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"corpus.jsonl": "not json\n"}, {}, "corpus.jsonl='line 1': not JSON"),
        ({"corpus.jsonl": '{"text": "x"}\n'}, {}, "corpus.jsonl='line 1': KeyError('_id')"),
        ({"corpus.jsonl": "[1]\n"}, {}, "corpus.jsonl='line 1': TypeError"),
        ({"corpus.jsonl": '{"_id": "a", "text": "..."}\n'}, {}, "no word in them"),
        ({"corpus.jsonl": None}, {}, "has no corpus.jsonl or corpus.jsonl.gz"),
        ({"queries.jsonl": '{"_id": "q01", "text": "\\n'}, {}, "queries.jsonl='line 1': not JSON"),
        ({"qrels/test.tsv": "q01\twith-1\n"}, {}, "test.tsv, line 1': needs 3 or 4 fields, and has 2"),
        ({"qrels/test.tsv": "q01\twith-1\thigh\n"}, {}, "must be a whole number"),
        ({"qrels/test.tsv": "q01\twith-1\t0\n"}, {}, "no query of the data has a document of grade 1 or more"),
        ({}, {"split": "dev"}, "has no qrels/dev.tsv: there are test"),
        ({}, {"candidates": 0}, "candidates=0: use a positive integer"),
        ({}, {"queries": -1}, "queries=-1: use a positive integer"),
        ({"run": "q01 Q0 with-1 1 1.0\n"}, {"run": "run"}, "run, line 1': needs 6 fields, and has 5"),
        ({"run": "q01 Q0 with-1 1 high x\n"}, {"run": "run"}, "needs rank and score"),
        ({"run": "q01 Q0 with-1 1 2 x\nq01 Q0 with-1 2 1 x\n"}, {"run": "run"}, "'with-1' appears twice for 'q01'"),
        ({"run": "q01 Q0 absent 1 2 x\n"}, {"run": "run"}, "run='absent': small/test has no such document"),
        ({"run": "zzz Q0 with-1 1 2 x\n"}, {"run": "run"}, "has no query of small/test that is judged"),
        ({}, {"run": "nowhere"}, "there is no such file"),
    ],
)
def test_unusable_folders_say_where(
    beir: Path, tmp_path: Path, change: dict[str, str | None], arguments: dict[str, object], message: str
) -> None:
    folder = tmp_path / "small"
    shutil.copytree(beir, folder)
    for name, text in change.items():
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text, encoding="utf-8")
    if "run" in arguments:
        arguments = {**arguments, "run": folder / str(arguments["run"])}
    with pytest.raises(InvalidInputError) as raised:
        open_collection(str(folder), **{"candidates": 4, **arguments})  # type: ignore[arg-type]
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "x", "docs": []}, "KeyError('qid')"),
        ({"qid": "1", "query": "x", "docs": [{"docid": "a"}]}, "KeyError('text')"),
        ({"qid": "1", "query": "x", "docs": [{"docid": "a", "text": "t", "rel": "high"}]}, "ValueError"),
    ],
)
def test_unusable_lists_say_where(tmp_path: Path, record: dict[str, object], message: str) -> None:
    path = tmp_path / "lists.jsonl"
    json_lines(path, [record])
    with pytest.raises(InvalidInputError, match=r"line 1") as raised:
        open_collection(str(path), candidates=4)
    assert message in str(raised.value)


def test_a_source_that_is_nothing_lists_what_there_is() -> None:
    with pytest.raises(InvalidInputError, match="DL19, DL20"):
        open_collection(str(Path(tempfile.gettempdir()) / "no-such-folder"), candidates=4)
    with pytest.raises(InvalidInputError, match="knows no such id"):
        open_collection("ir_datasets:no/such/id", candidates=4)
