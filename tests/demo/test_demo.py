"""The demo, with the real model and both frameworks, against measures computed here without ir-measures."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from qwen3_ranker_plugins import InvalidInputError
from qwen3_ranker_plugins.bench.statistics import paired
from qwen3_ranker_plugins.data.collection import spread
from qwen3_ranker_plugins.data.demo import DemoCorpus, load_demo_corpus
from qwen3_ranker_plugins.demo.evaluation import NDCG, evaluate, evaluate_each, gain
from qwen3_ranker_plugins.demo.run import Runs, questions_to_show, run_demo
from qwen3_ranker_plugins.demo.show import verdict
from qwen3_ranker_plugins.server.settings import ServerSettings

REPOSITORY = Path(__file__).parents[2]
SHOWN = 4
CANDIDATES = 10  # fewer than the command's, for the time that it takes

# Half a minute where two cores are free, several where they are not.
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
    """What `qwen3-ranker demo --candidates 10` finds and prints."""
    output = StringIO()
    runs = run_demo(Console(file=output, width=100), model="bundled:tiny", candidates=CANDIDATES)
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
    for ranking, run in (("BM25", demo.runs[0].before), ("+ reranker", demo.runs[0].after)):
        values = means(corpus, run)
        expected.append(("Haystack", ranking, f"{values['nDCG@10']:.3f}", f"{values['MRR@10']:.3f}"))
    assert rows == expected


@pytest.mark.slow
def test_printed_interval_is_that_of_bench_quality(demo: Demo, corpus: DemoCorpus) -> None:
    runs = demo.runs[0]
    before, after = (
        [ndcg(grades, run[each]) for each, grades in corpus.qrels.items()] for run in (runs.before, runs.after)
    )
    found = paired(before, after, seed=0)
    assert (
        f"Reranking changes nDCG@10 by {found.difference:+.3f}, 95% confidence interval {found.low:+.3f} to "
        f"{found.high:+.3f}.\n{found.wins} of 49 questions get better, {found.losses} get worse." in demo.printed
    )


@pytest.mark.slow
def test_every_query_is_measured_and_those_shown_went_through_both_frameworks(demo: Demo, corpus: DemoCorpus) -> None:
    haystack, langchain = demo.runs
    assert set(haystack.before) == set(haystack.after) == set(corpus.queries)
    assert set(langchain.before) == set(langchain.after) == {each.query_id for each in corpus.shown}
    for runs in demo.runs:
        for query_id, reranked in runs.after.items():
            candidates = runs.before[query_id]
            assert 0 < len(candidates) <= CANDIDATES
            assert len(reranked) == min(10, len(candidates))
            assert set(reranked) <= set(candidates)


@pytest.mark.slow
def test_frameworks_agree_on_the_candidates_that_they_share(demo: Demo) -> None:
    """One core in both adapters: what both frameworks found comes out in the same order."""
    haystack, langchain = demo.runs
    for query_id, reranked in langchain.after.items():
        shared = set(reranked) & set(haystack.after[query_id])
        assert len(shared) > 2
        assert [each for each in reranked if each in shared] == [
            each for each in haystack.after[query_id] if each in shared
        ]


@pytest.mark.slow
def test_reranking_raises_ndcg_over_bm25(demo: Demo, corpus: DemoCorpus) -> None:
    """The point of it all. The bundled model is small, so the bar is BM25 itself."""
    runs = demo.runs[0]
    assert means(corpus, runs.after)["nDCG@10"] > means(corpus, runs.before)["nDCG@10"]


@pytest.mark.slow
def test_output_is_readable_at_100_columns(demo: Demo, corpus: DemoCorpus) -> None:
    assert max(map(len, demo.printed.splitlines())) <= 100
    for number, each in enumerate(corpus.shown):
        runs = demo.runs[number % 2]  # the frameworks take turns
        old, new = (ndcg(corpus.qrels[each.query_id], run[each.query_id]) for run in (runs.before, runs.after))
        assert (
            f"{each.query_id}  {corpus.queries[each.query_id]}\n"
            f"nDCG@10 {old:.2f} → {new:.2f} ({new - old:+.2f})  chosen as the {each.reason}\n" in demo.printed
        )
    assert demo.printed.count("before: BM25") == SHOWN
    assert "★" in demo.printed
    assert f"{CANDIDATES} candidates" in demo.printed


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
    assert done.stdout.count("before: BM25") == 1
    # What to do next comes last, with the address at which the server listens unless it is told otherwise.
    assert f"qwen3-ranker serve, then open http://127.0.0.1:{ServerSettings().port}" in done.stdout
    assert done.stdout.splitlines()[-1].lstrip().startswith("take a real model")


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
    assert all(folder in done.stderr for folder in ("models/tiny", "integrations/haystack", "integrations/langchain"))


def test_measures_know_grades_and_missing_queries() -> None:
    qrels = {"a": {"x": 2, "y": 1}, "b": {"z": 1}}
    values = evaluate(qrels, {"a": ["n", "y", "x"]})
    ideal = 2 + 1 / math.log2(3)
    assert values["nDCG@10"] == pytest.approx((1 / math.log2(3) + 2 / 2) / ideal / 2)
    assert values["MRR@10"] == pytest.approx(1 / 2 / 2)
    assert evaluate_each(qrels, {"a": ["n", "y", "x"]})[NDCG]["b"] == 0


def test_shown_queries_are_spread_and_never_more_than_there_are(corpus: DemoCorpus) -> None:
    assert spread(list("abcdefgh"), 4) == ["a", "c", "e", "g"]
    assert spread(["a", "b"], 9) == ["a", "b"]
    chosen = [each.query_id for each in corpus.shown]
    assert questions_to_show(corpus, 2) == chosen[:2]
    assert questions_to_show(corpus, 4) == chosen
    more = questions_to_show(corpus, 6)
    assert more[:4] == chosen
    assert len(set(more)) == 6
    assert sorted(questions_to_show(corpus, 99)) == sorted(corpus.queries)


def test_shown_questions_follow_from_the_rule_and_the_measured_gains() -> None:
    """Nobody picks them by hand: tools/choose_demo_questions.py has the rule, docs/results the gains."""
    done = subprocess.run(
        [sys.executable, "tools/choose_demo_questions.py", "--check"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_shown_questions_have_gains_and_one_loss(corpus: DemoCorpus) -> None:
    measured = json.loads((REPOSITORY / "docs" / "results" / "demo-questions.json").read_text())
    differences = [
        [after[each.query_id] - before[each.query_id] for each in corpus.shown]
        for before, after in zip(measured["before"].values(), measured["after"].values(), strict=True)
    ]
    assert len(differences) == 3
    for gains in differences:
        assert min(gains[:3]) > 0
        assert gains[3] < 0
    assert "loss" in corpus.shown[3].reason


def test_interval_that_holds_zero_is_said() -> None:
    unsure = gain({"a": 0.2, "b": 0.5, "c": 0.4}, {"a": 0.5, "b": 0.3, "c": 0.4})
    assert (unsure.better, unsure.worse) == (1, 1)
    assert "chance alone may explain" in verdict(unsure, 3).plain
    sure = gain({"a": 0.2, "b": 0.5, "c": 0.4}, {"a": 0.3, "b": 0.6, "c": 0.51})
    assert sure.low > 0
    assert "chance" not in verdict(sure, 3).plain


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
