from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from statistics import fmean

import ir_measures
import pytest
from rich.console import Console
from typer.testing import CliRunner

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.bench.published import QUALITY
from qwen3_ranker_plugins.bench.quality.reranking import QualityResult, evaluate, override, quality_report, trec_files
from qwen3_ranker_plugins.bench.report_files import read_result, recomputed, report_of
from qwen3_ranker_plugins.bench.results import plain, write_result
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.data.collection import Collection
from qwen3_ranker_plugins.errors import InvalidInputError, MissingDependencyError
from qwen3_ranker_plugins.pip_command import pip_install

from . import arithmetic

LABELS = ["first stage", "max_length=8192", "max_length=120"]


def test_raw_values_are_those_of_the_reranker(
    quality_result: QualityResult, collection: Collection, reranker: Reranker
) -> None:
    assert [system.label for system in quality_result.systems] == LABELS[1:]
    for query_id, doc_ids in collection.candidates.items():
        hits = reranker.rerank(collection.queries[query_id], [collection.texts[each] for each in doc_ids])
        expected = [hit.margin for hit in sorted(hits, key=lambda hit: hit.index)]
        assert quality_result.systems[0].margins[query_id] == pytest.approx(expected, abs=1e-3)
    assert sum(quality_result.systems[0].truncated_documents.values()) == 0
    assert sum(quality_result.systems[1].truncated_documents.values()) > 0


def test_figures_follow_from_the_raw_values(quality_result: QualityResult, collection: Collection) -> None:
    """Ordered and measured again here, with nothing of the package."""
    figures = evaluate(quality_result)
    assert plain(figures) == quality_result.figures
    runs = {"first stage": dict(collection.candidates)}
    for system in quality_result.systems:
        runs[system.label] = {
            query_id: [doc_id for _, doc_id in sorted(zip((-m for m in margins), collection.candidates[query_id]))]  # noqa: B905
            for query_id, margins in system.margins.items()
        }
    ndcg = {
        label: {query_id: arithmetic.ndcg(collection.qrels[query_id], ranked) for query_id, ranked in run.items()}
        for label, run in runs.items()
    }
    for label in LABELS:
        assert figures.per_query[label]["nDCG@10"] == pytest.approx(ndcg[label], abs=1e-9)
        assert figures.means[label]["nDCG@10"] == pytest.approx(fmean(ndcg[label].values()), abs=1e-9)
    compared = {
        (each.before, each.after): each.significance for each in figures.comparisons if each.measure == "nDCG@10"
    }
    assert set(compared) == {(LABELS[0], LABELS[1]), (LABELS[0], LABELS[2]), (LABELS[1], LABELS[2])}
    gains = [ndcg[LABELS[1]][query_id] - ndcg[LABELS[0]][query_id] for query_id in collection.queries]
    first = compared[LABELS[0], LABELS[1]]
    assert first.difference == pytest.approx(fmean(gains), abs=1e-9)
    assert first.wins == sum(gain > 1e-12 for gain in gains)


def test_trec_files_give_other_evaluators_the_same_values(quality_result: QualityResult, tmp_path: Path) -> None:
    files = trec_files(quality_result)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    runs = sorted(name for name in files if name.startswith("run-"))
    assert len(runs) == 3
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels.txt")))
    for name, label in zip(runs, LABELS, strict=True):
        run = list(ir_measures.read_trec_run(str(tmp_path / name)))
        found = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.AP], qrels, run)
        means = quality_result.figures["means"][label]
        assert found[ir_measures.nDCG @ 10] == pytest.approx(means["nDCG@10"], abs=1e-9)
        assert found[ir_measures.AP] == pytest.approx(means["MAP"], abs=1e-9)


def test_report_names_everything_and_labels_what_is_published(quality_result: QualityResult) -> None:
    report = quality_report(quality_result)
    text = report.markdown("x.png")
    for label in LABELS:
        assert f"| {label} |" in text
        assert f"{quality_result.figures['means'][label]['nDCG@10']:.4f}" in text
    assert all(f"| {model} |" in text for model in QUALITY)
    assert "not measured here" in text
    assert "![Gain in nDCG@10 of each query](x.png)" in text
    assert report.picture is not None
    assert report.picture[0].startswith(b"\x89PNG")
    printed = io.StringIO()
    report.print(Console(file=printed, width=160))
    assert "Published elsewhere" in printed.getvalue()


def test_results_say_where_they_come_from(quality_result: QualityResult, tmp_path: Path) -> None:
    about = quality_result.about
    assert about.engine["engine"] == "packed"
    assert set(about.libraries) >= {"torch", "transformers", "tokenizers", "ir-measures"}
    assert about.cores is not None
    assert about.cores >= 1
    assert about.command.startswith("qwen3-ranker")
    assert quality_result.settings["template"] == "standard"
    assert quality_result.seed == 3
    write_result(tmp_path / "new" / "r.json", quality_result)
    assert read_result(tmp_path / "new" / "r.json") == quality_result
    text = (tmp_path / "new" / "r.json").read_text(encoding="utf-8")
    assert text.count("\n") == 1, "compact"


def test_what_is_missing_is_said_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour on a GPU must not end in an import that fails."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as Python marks a module that cannot be imported
    done = CliRunner().invoke(app, ["bench", "quality", "demo", "--model", "./nowhere"])
    assert isinstance(done.exception, MissingDependencyError)
    assert f"need matplotlib: {pip_install('bench')}" in str(done.exception)


def test_overrides() -> None:
    settings = RerankerSettings(model="bundled:tiny")
    assert override(settings, ["template=compact", "max-length=99"]).max_length == 99
    other = override(settings, ["adapter=somebody/lora", "scoring=Yes / 5"])
    assert (other.adapter, other.scoring) == ("somebody/lora", "Yes / 5")
    fast = override(settings, ["max_length=300", "preset=fast"])
    assert (fast.template, fast.max_length, fast.token_budget) == ("compact", 300, 4096)
    for change, message in (
        ("max_length=many", "whole number"),
        ("colour=red", "write NAME=VALUE"),
        ("template", "write NAME=VALUE"),
        ("preset=slow", "use one of accurate, balanced, fast"),
        ("dtype=int8", "use one of auto"),
        ("scoring= ", "scoring="),
    ):
        with pytest.raises(InvalidInputError, match=message):
            override(settings, [change])


def test_command_writes_everything_and_the_report_can_be_computed_again(beir: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    arguments = ["bench", "quality", str(beir), "--candidates", "3", "--queries", "2", "-o", str(tmp_path / "out")]
    done = runner.invoke(app, [*arguments, "--tag", "mine", "--model", "bundled:tiny"])
    assert done.exit_code == 0, done.output
    assert "Quality on small/test, 2 of 6 queries" in done.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "mine.json", "mine.md", "mine.png", "mine.html",
        "mine-qrels.txt", "mine-run-0-first-stage.trec", "mine-run-1-reranked.trec",
    }  # fmt: skip
    raw = json.loads((tmp_path / "out" / "mine.json").read_text(encoding="utf-8"))
    figures, raw["figures"] = raw["figures"], {}
    (tmp_path / "out" / "mine.json").write_text(json.dumps(raw), encoding="utf-8")
    again = runner.invoke(app, ["bench", "report", str(tmp_path / "out" / "mine.json"), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "mine.md").read_text() == (tmp_path / "out" / "mine.md").read_text()
    assert read_result(tmp_path / "again" / "mine.json").as_json()["figures"] == figures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quality", "nowhere"], "no such file or folder"),
        (["quality", "demo", "--against", "max_length=8192"], "equals the first configuration"),
        (["quality", "demo", "--preset", "slow"], "use one of accurate, balanced, fast"),
        (["quality", "demo", "--tag", "a/b", "-o", "x"], "use a name that a file can have"),
        (["throughput", "--batch-sizes", "4,x"], "give numbers separated by commas"),
        (["throughput", "--batch-sizes", "4,4"], "none of them twice"),
        (["throughput", "--repeat", "0"], "repeat=0"),
        (["compare", "nowhere.json", "nowhere.json"], "give a result file"),
        (["titles", "0"], "count=0"),
        (["titles", "--language", "fr"], "use one of zh, en, both"),
        (["latency", "10", "--url", "ftp://x"], "give the address of a server"),
        (["latency", "0"], "give positive numbers"),
        (["latency", "10", "--titles", "nowhere.txt"], "one title per line"),
        (["latency", "10", "--preset", "slow"], "use one of accurate, balanced, fast"),
        (
            ["latency", "10", "--url", "http://127.0.0.1:9", "--preset", "fast"],
            "preset='fast': has no effect with --url",
        ),
        (
            ["latency", "10", "--url", "http://127.0.0.1:9", "--template", "compact"],
            "template='compact': has no effect",
        ),
        (
            ["latency", "10", "--url", "http://127.0.0.1:9", "--engine", "auto"],
            "engine='auto': has no effect with --url",
        ),
        (["matrix", "10", "--preset", "fast,slow"], "use one of accurate, balanced, fast"),
        (["matrix", "10", "--preset", "fast,fast"], "none of them twice"),
        (["matrix", "10", "--preset", "fast", "--templates", "standard"], "leave out --templates standard"),
        (["matrix", "10", "--preset", "fast", "--max-lengths", "160"], "leave out --max-lengths 160"),
        (["matrix", "10", "--engines", ","], "give names separated by commas"),
        (["matrix", "10", "--engines", "packed,nope"], "engine='nope': "),
        (["matrix", "10", "--templates", "standard,{query}"], "template="),
    ],
)
def test_unusable_arguments_are_named(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(done.exception, InvalidInputError), done.output
    assert message in str(done.exception)


def test_queries_that_are_not_measured_are_counted(beir: Path, tmp_path: Path) -> None:
    """One without any judgement, and one whose judgements find nothing relevant."""
    folder = tmp_path / "gaps"
    shutil.copytree(beir, folder)
    with (folder / "queries.jsonl").open("a", encoding="utf-8") as queries:
        queries.write('{"_id": "unjudged", "text": "who?"}\n{"_id": "hopeless", "text": "why?"}\n')
    doc_id = json.loads((folder / "corpus.jsonl").read_text(encoding="utf-8").partition("\n")[0])["_id"]
    with (folder / "qrels" / "test.tsv").open("a", encoding="utf-8") as qrels:
        qrels.write(f"hopeless\t{doc_id}\t0\n")
    arguments = ["bench", "quality", str(folder), "--candidates", "2", "--queries", "2", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--model", "bundled:tiny"])
    assert done.exit_code == 0, done.output
    assert "1 queries have no judgement and are left out" in done.output
    assert "1 judged queries have no relevant document and are left out" in done.output
    result = read_result(tmp_path / "out" / "quality.json").as_json()["collection"]
    assert (result["left_out"], result["unjudged"]) == (1, 1)


RESULTS = sorted((Path(__file__).parents[2] / "docs" / "results").glob("bench-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_files_that_pages_quote_can_be_read_and_reported(path: Path) -> None:
    result = recomputed(read_result(path))
    assert report_of(result).tables
    given = json.loads(path.read_text(encoding="utf-8"))
    assert result.as_json().keys() >= given.keys()
    for name in ("rows", "systems", "settings", "prompt_tokens", "chosen"):
        if name in given:
            assert result.as_json()[name] == given[name]
