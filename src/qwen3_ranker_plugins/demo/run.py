"""The whole demonstration, as `qwen3-ranker demo` prints it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import track
from rich.text import Text

from ..config import check_choice, check_positive
from ..data.collection import spread
from ..data.demo import DemoCorpus, load_demo_corpus
from ..reranker import Reranker
from . import DEFAULT_CANDIDATES
from .evaluation import evaluate
from .searches import Found, HaystackSearch, LangChainSearch, Search, SearchSettings
from .show import MARKS, Measured, before_and_after, measures

SEARCHES: dict[str, type[HaystackSearch | LangChainSearch]] = {"haystack": HaystackSearch, "langchain": LangChainSearch}
ADAPTERS = ("both", *SEARCHES)

#: Measures look at ten passages, so that many are reranked to the end.
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
        """Search for one query, twice: with BM25 alone, and with the whole pipeline. Both are timed."""
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
        """A row for BM25 and one for the reranked order."""
        queries = len(corpus.queries)
        return [
            Measured(self.framework, "BM25", evaluate(corpus.qrels, self.before), self.seconds_before / queries),
            Measured(self.framework, "+ reranker", evaluate(corpus.qrels, self.after), self.seconds_after / queries),
        ]


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
    """Search the demo corpus in each framework, show a few queries and the measures over all of them.

    Args:
        console: where to print; a progress bar goes there too if it is a terminal.
        model, device: as in `Reranker`.
        adapter: one of ADAPTERS.
        queries: how many to show, evenly spread over the corpus's.
        top_k: how many passages of each to show.
        candidates: how many passages BM25 hands to the reranker.

    Returns:
        What each framework found for every query.

    Raises:
        InvalidInputError: an argument is unusable.
        MissingDependencyError: a framework, its adapter or ir-measures is not installed.
    """
    check_choice("adapter", adapter, ADAPTERS)
    for name, value in (("queries", queries), ("top_k", top_k), ("candidates", candidates)):
        check_positive(name, value)
    corpus = load_demo_corpus()
    console.print(
        f"Searching {len(corpus.documents)} passages of the Python language reference for {len(corpus.queries)} "
        f"questions.\nBM25 finds {candidates} candidates for each; the reranker {model!r} puts them in order.",
        highlight=False,
    )
    console.print(Text("Loading the model and the frameworks ...", style="dim"))
    started = time.perf_counter()
    settings = SearchSettings(model, device, candidates, top_k=max(top_k, _MEASURED))
    # Held while the searches run, so that a framework which loads its model late finds it there.
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
        shown = spread(list(corpus.queries), queries)
        console.print(f"\nMarked: {MARKS[2]} answers the question, {MARKS[1]} helps.", highlight=False)
        for number, query_id in enumerate(shown):
            for place, (search, run) in enumerate(zip(searches, runs, strict=True)):
                before, after = run.add(search, corpus, query_id)
                if number % len(searches) == place:  # the frameworks take turns, as their answers are much alike
                    console.print()
                    console.print(Text(f"{search.framework}: {search.steps}", style="cyan"))
                    console.print(before_and_after(corpus, query_id, before, after, top_k))
        for query_id in _with_progress(console, [each for each in corpus.queries if each not in shown]):
            for search, run in zip(searches, runs, strict=True):
                run.add(search, corpus, query_id)
    console.print(Text(f"\nAll {len(corpus.queries)} questions", style="bold"))
    console.print(measures([row for run in runs for row in run.measured(corpus)]))
    console.print(_notes(runs), highlight=False)
    return runs


def _with_progress(console: Console, query_ids: Sequence[str]) -> Iterable[str]:
    if not console.is_terminal:
        return query_ids
    return track(query_ids, description="The other questions", console=console, transient=True)


def _notes(runs: Sequence[Runs]) -> str:
    notes = "nDCG@10: gain = grade. MRR@10: both grades count as found. Time: the whole pipeline, query by query."
    if len(runs) > 1 and runs[0].before != runs[1].before:
        notes += "\nThe BM25 rows differ because Haystack's default is BM25L and LangChain's is BM25Okapi."
    return notes
