"""The demo, with the real model and both frameworks, against measures computed here without ir-measures."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

import pytest
from rich.console import Console

from qwen3_ranker_plugins import InvalidInputError
from qwen3_ranker_plugins.data.demo import DemoCorpus, load_demo_corpus
from qwen3_ranker_plugins.demo import DEFAULT_CANDIDATES
from qwen3_ranker_plugins.demo.evaluation import evaluate
from qwen3_ranker_plugins.demo.run import Runs, run_demo, spread

SHOWN = 2

# A minute where two cores are free, several where they are not.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def corpus() -> DemoCorpus:
    return load_demo_corpus()


@dataclass(frozen=True)
class Demo:
    runs: list[Runs]
    printed: str


@pytest.fixture(scope="module")
def demo() -> Demo:
    """What `qwen3-ranker demo --queries 2` finds and prints."""
    output = StringIO()
    runs = run_demo(Console(file=output, width=100), model="bundled:tiny", queries=SHOWN)
    return Demo(runs, output.getvalue())


def ndcg(grades: Mapping[str, int], documents: Sequence[str]) -> float:
    def gain(values: Sequence[int]) -> float:
        return sum(value / math.log2(rank + 1) for rank, value in enumerate(values[:10], start=1))

    return gain([grades.get(each, 0) for each in documents]) / gain(sorted(grades.values(), reverse=True))


def reciprocal_rank(grades: Mapping[str, int], documents: Sequence[str]) -> float:
    return next((1 / rank for rank, each in enumerate(documents[:10], start=1) if each in grades), 0.0)


def means(corpus: DemoCorpus, run: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Over all judged queries; one without documents counts as 0."""
    pairs = [(grades, run.get(query_id, [])) for query_id, grades in corpus.qrels.items()]
    return {
        "nDCG@10": sum(ndcg(*pair) for pair in pairs) / len(pairs),
        "MRR@10": sum(reciprocal_rank(*pair) for pair in pairs) / len(pairs),
    }


@pytest.mark.slow
def test_printed_table_equals_measures_computed_from_the_runs(demo: Demo, corpus: DemoCorpus) -> None:
    rows = re.findall(
        r"^ +(Haystack|LangChain) +(BM25|\+ reranker) +([\d.]+) +([\d.]+) +\d+ ms", demo.printed, re.MULTILINE
    )
    expected = []
    for runs in demo.runs:
        for ranking, run in (("BM25", runs.before), ("+ reranker", runs.after)):
            values = means(corpus, run)
            expected.append((runs.framework, ranking, f"{values['nDCG@10']:.3f}", f"{values['MRR@10']:.3f}"))
    assert rows == expected
    assert len(rows) == 4


@pytest.mark.slow
def test_every_query_went_through_both_frameworks(demo: Demo, corpus: DemoCorpus) -> None:
    for runs in demo.runs:
        assert set(runs.before) == set(runs.after) == set(corpus.queries)
        for query_id, reranked in runs.after.items():
            candidates = runs.before[query_id]
            assert 0 < len(candidates) <= DEFAULT_CANDIDATES
            assert len(reranked) == min(10, len(candidates))
            assert set(reranked) <= set(candidates)


@pytest.mark.slow
def test_frameworks_agree_where_their_candidates_do(demo: Demo) -> None:
    """One core behind both adapters: the same candidates come out in the same order."""
    haystack, langchain = demo.runs
    same = [q for q, found in haystack.before.items() if set(found) == set(langchain.before[q])]
    assert same
    assert {q: haystack.after[q] for q in same} == {q: langchain.after[q] for q in same}


@pytest.mark.slow
def test_reranking_raises_ndcg_over_bm25(demo: Demo, corpus: DemoCorpus) -> None:
    """The point of it all. The bundled model is small, so the bar is BM25 itself, in both frameworks."""
    for runs in demo.runs:
        assert means(corpus, runs.after)["nDCG@10"] > means(corpus, runs.before)["nDCG@10"]


@pytest.mark.slow
def test_output_is_readable_at_100_columns(demo: Demo, corpus: DemoCorpus) -> None:
    assert max(map(len, demo.printed.splitlines())) <= 100
    for query_id in spread(list(corpus.queries), SHOWN):
        assert f"{query_id}  {corpus.queries[query_id]}" in demo.printed
    assert demo.printed.count("before: BM25") == SHOWN
    assert "★" in demo.printed
    assert f"{DEFAULT_CANDIDATES} candidates" in demo.printed


@pytest.mark.slow
def test_command_runs_to_its_end_with_one_adapter() -> None:
    arguments = ["demo", "--queries", "1", "--candidates", "5", "--top-k", "3", "--adapter", "langchain"]
    done = subprocess.run(
        [sys.executable, "-m", "qwen3_ranker_plugins.cli", *arguments],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "LangChain" in done.stdout
    assert "Haystack" not in done.stdout
    assert "5 candidates" in done.stdout


@pytest.mark.parametrize("argument", ["queries", "top_k", "candidates"])
def test_counts_have_to_be_positive(argument: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{argument}=0"):
        run_demo(Console(file=StringIO()), model="bundled:tiny", **{argument: 0})  # type: ignore[arg-type]


def test_unknown_adapter_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="adapter='both of them': use one of both, haystack, langchain"):
        run_demo(Console(file=StringIO()), model="bundled:tiny", adapter="both of them")


def test_missing_framework_ends_in_the_pip_command() -> None:
    """A fresh process in which the adapter cannot be imported, as where it was never installed."""
    code = (
        "import sys; sys.modules['langchain_qwen3_ranker'] = None\n"
        "from qwen3_ranker_plugins.cli import main\n"
        "sys.argv = ['qwen3-ranker', 'demo', '--adapter', 'langchain']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the LangChain half of the demo lacks langchain_qwen3_ranker: pip install")
    assert "make demo" in done.stderr


def test_measures_know_grades_and_missing_queries() -> None:
    qrels = {"a": {"x": 2, "y": 1}, "b": {"z": 1}}
    values = evaluate(qrels, {"a": ["n", "y", "x"]})
    ideal = 2 + 1 / math.log2(3)
    assert values["nDCG@10"] == pytest.approx((1 / math.log2(3) + 2 / 2) / ideal / 2)
    assert values["MRR@10"] == pytest.approx(1 / 2 / 2)


def test_shown_queries_are_spread_and_never_more_than_there_are() -> None:
    assert spread(list("abcdefgh"), 4) == ["a", "c", "e", "g"]
    assert spread(["a", "b"], 9) == ["a", "b"]


def test_corpus_needs_no_framework() -> None:
    """Notebooks and benchmarks load it without Haystack or LangChain."""
    code = (
        "import sys; from qwen3_ranker_plugins.data.demo import load_demo_corpus; corpus = load_demo_corpus()\n"
        "assert set(corpus.qrels) == set(corpus.queries)\n"
        "assert all(set(grades) <= set(corpus.documents) for grades in corpus.qrels.values())\n"
        "loaded = {'torch', 'haystack', 'langchain_core', 'ir_measures'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
