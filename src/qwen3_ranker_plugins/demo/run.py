"""The whole demonstration, as `qwen3-ranker demo` prints it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import track
from rich.text import Text

from ..checks import check_choice, check_positive
from ..config import BUNDLED_MODEL
from ..data.collection import spread
from ..data.demo import DEFAULT_CANDIDATES, DemoCorpus, load_demo_corpus
from ..reranker import Reranker
from .evaluation import NDCG, Gain, evaluate, evaluate_each, gain
from .searches import Found, HaystackSearch, LangChainSearch, Search, SearchSettings
from .show import MARKS, Measured, before_and_after, measures, verdict

SEARCHES: dict[str, type[HaystackSearch | LangChainSearch]] = {"haystack": HaystackSearch, "langchain": LangChainSearch}
ADAPTERS = ("both", *SEARCHES)

#: The measures use the first ten passages, so the pipelines return at least that many.
_MEASURED = 10


@dataclass
class Runs:
    """What one framework found, query id -> document ids, and how long all its queries took."""

    framework: str
    before: dict[str, list[str]] = field(default_factory=dict)
    after: dict[str, list[str]] = field(default_factory=dict)
    seconds_before: float = 0.0
    seconds_after: float = 0.0

    def add(self, search: Search, corpus: DemoCorpus, query_id: str) -> tuple[list[Found], list[Found]]:
        """Search for one query twice, with BM25 alone and with the whole pipeline, and time both."""
        query = corpus.queries[query_id]
        started = time.perf_counter()
        before = search.retrieve(query)
        retrieved = time.perf_counter()
        after = search.rerank(query)
        self.seconds_after += time.perf_counter() - retrieved
        self.seconds_before += retrieved - started
        self.before[query_id] = [found.document_id for found in before]
        self.after[query_id] = [found.document_id for found in after]
        return before, after

    def measured(self, corpus: DemoCorpus) -> list[Measured]:
        """A row for BM25 and one for the reranked order; every question must have been added."""
        queries = len(corpus.queries)
        return [
            Measured(self.framework, "BM25", evaluate(corpus.qrels, self.before), self.seconds_before / queries),
            Measured(self.framework, "+ reranker", evaluate(corpus.qrels, self.after), self.seconds_after / queries),
        ]

    def gain(self, corpus: DemoCorpus) -> Gain:
        """What reranking changes in nDCG@10; every question must have been added."""
        before, after = (evaluate_each(corpus.qrels, run)[NDCG] for run in (self.before, self.after))
        return gain(before, after)


def run_demo(
    console: Console,
    *,
    model: str,
    device: str = "auto",
    adapter: str = "both",
    queries: int = 4,
    top_k: int = 5,
    candidates: int = DEFAULT_CANDIDATES,
) -> list[Runs]:
    """Show a few questions in each framework, and the measures over all questions.

    Args:
        console: where to print; a progress bar goes there too if it is a terminal.
        model, device: as in `Reranker`.
        adapter: one of ADAPTERS. With "both", the shown questions go through both frameworks, and the measures come
            from Haystack alone, because the second framework would double the time and score mostly the same pairs.
        queries: number of questions to show: the chosen ones of the corpus first, then others, evenly spread.
        top_k: number of passages to show for each question.
        candidates: how many passages BM25 hands to the reranker.

    Returns:
        What each framework found; the first one for every question, the second one for those that were shown.

    Raises:
        InvalidInputError: an argument is unusable.
        MissingDependencyError: a framework, its adapter or ir-measures is not installed.
    """
    check_choice("adapter", adapter, ADAPTERS)
    for name, value in (("queries", queries), ("top_k", top_k), ("candidates", candidates)):
        check_positive(name, value)
    corpus = load_demo_corpus()
    shown = questions_to_show(corpus, queries)
    console.print(
        f"{len(corpus.documents)} passages of the Python language reference, {len(corpus.queries)} questions.\n"
        f"BM25 finds {candidates} candidates for a question; the reranker {model!r} puts them in order.",
        highlight=False,
    )
    if model == BUNDLED_MODEL:
        console.print(f"{model} is a demonstration model of 7.8 M parameters, which comes with the package.")
    console.print(Text("Loading the model and the frameworks ...", style="dim"))
    started = time.perf_counter()
    settings = SearchSettings(model, device, candidates, top_k=max(top_k, _MEASURED))
    # Kept open while the searches run, so that a framework which loads its model late shares this engine.
    with Reranker(model, device=device) as reranker:
        searches = [SEARCHES[name](corpus, settings) for name in SEARCHES if adapter in ("both", name)]
        facts = reranker.describe()
        console.print(
            Text(
                f"Engine {facts.engine!r} on {facts.device} in {facts.dtype}, ready after "
                f"{time.perf_counter() - started:.0f} s.",
                style="dim",
            )
        )
        runs = [Runs(search.framework) for search in searches]
        whose = "" if model == BUNDLED_MODEL else f", with {BUNDLED_MODEL}"
        reasons = {each.query_id: f"chosen as the {each.reason}{whose}" for each in corpus.shown}
        console.print(f"\n{MARKS[2]} answers the question, {MARKS[1]} helps: judged by hand. P(yes) is the score.")
        for number, query_id in enumerate(shown):
            for place, (search, run) in enumerate(zip(searches, runs, strict=True)):
                before, after = run.add(search, corpus, query_id)
                if number % len(searches) == place:  # the frameworks take turns, as their answers are much alike
                    console.print()
                    console.print(Text(f"{search.framework}: {search.steps}", style="cyan"))
                    console.print(before_and_after(corpus, query_id, reasons.get(query_id), before, after, top_k))
        measured = runs[0]
        for query_id in _with_progress(console, [each for each in corpus.queries if each not in shown]):
            measured.add(searches[0], corpus, query_id)
    console.print(Text(f"\nAll {len(corpus.queries)} questions", style="bold"))
    console.print(measures(measured.measured(corpus)))
    console.print(verdict(measured.gain(corpus), len(corpus.queries)))
    console.print(
        "nDCG@10: gain = grade. MRR@10: both grades count as found. Time: the whole pipeline, query by query.",
        style="dim",
    )
    if len(runs) > 1:
        console.print("For the same table from LangChain: --adapter langchain", style="dim")
    return runs


def questions_to_show(corpus: DemoCorpus, count: int) -> list[str]:
    """Ids of `count` questions: the chosen ones first, then others, evenly spread over the corpus."""
    chosen = [each.query_id for each in corpus.shown][:count]
    others = [each for each in corpus.queries if each not in chosen]
    return chosen + spread(others, count - len(chosen))


def _with_progress(console: Console, query_ids: Sequence[str]) -> Iterable[str]:
    if not console.is_terminal:
        return query_ids
    return track(query_ids, description="The other questions", console=console, transient=True)
