"""Choose the questions that `qwen3-ranker demo` and the server's page show first, by the rule in RULE.

python tools/choose_demo_questions.py            # rank, measure and choose: about two minutes on two cores
python tools/choose_demo_questions.py --check    # only check that shown.json follows from the measured gains

Writes docs/results/demo-questions.json, with nDCG@10 of every question before and after, and
src/qwen3_ranker_plugins/assets/demo/shown.json, with the choice.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from qwen3_ranker_plugins import Reranker, __version__
from qwen3_ranker_plugins.config import BUNDLED_MODEL
from qwen3_ranker_plugins.data.bm25 import BM25
from qwen3_ranker_plugins.data.demo import DEFAULT_CANDIDATES, load_demo_corpus
from qwen3_ranker_plugins.demo.evaluation import NDCG, evaluate_each
from qwen3_ranker_plugins.demo.searches import HaystackSearch, LangChainSearch, SearchSettings

REPOSITORY = Path(__file__).parents[1]
MEASURED = REPOSITORY / "docs" / "results" / "demo-questions.json"
CHOICE = REPOSITORY / "src" / "qwen3_ranker_plugins" / "assets" / "demo" / "shown.json"

RULE = (
    f"The gain of a question is nDCG@10 after reranking minus before, with the bundled model and {DEFAULT_CANDIDATES} "
    "candidates; it is averaged over three first stages (the page's BM25, Haystack's and LangChain's). Of the "
    "questions that gain with all three, ordered by gain, those at the upper quartile, the median and the lower "
    "quartile are typical gains. Of all questions, the one with the most negative gain is the largest loss."
)

#: First stage -> query id -> nDCG@10.
Measured = Mapping[str, Mapping[str, float]]


def choose(before: Measured, after: Measured) -> list[dict[str, object]]:
    """Apply RULE: entries of shown.json, gains first."""
    query_ids = list(next(iter(before.values())))
    gains = {each: [after[stage][each] - before[stage][each] for stage in before] for each in query_ids}
    means = {query_id: sum(values) / len(values) for query_id, values in gains.items()}
    # sorted() is stable: of equal gains, the first question of the corpus comes first.
    ordered = sorted((each for each in query_ids if min(gains[each]) > 0), key=lambda each: -means[each])
    chosen = [
        (ordered[(len(ordered) - 1) * quarter // 4], reason)
        for quarter, reason in enumerate(
            ("upper quartile of the gains", "median of the gains", "lower quartile of the gains"), start=1
        )
    ]
    chosen.append((min(query_ids, key=lambda each: means[each]), "largest loss of all questions"))
    return [
        {"query_id": query_id, "reason": reason, "mean_gain": round(means[query_id], 4)} for query_id, reason in chosen
    ]


def measure() -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """nDCG@10 of every question with each first stage, before and after reranking."""
    corpus = load_demo_corpus()
    index = BM25((document_id, each.content) for document_id, each in corpus.documents.items())
    settings = SearchSettings(BUNDLED_MODEL, "cpu", DEFAULT_CANDIDATES, top_k=10)
    frameworks = {"Haystack": HaystackSearch(corpus, settings), "LangChain": LangChainSearch(corpus, settings)}
    before: dict[str, dict[str, list[str]]] = {stage: {} for stage in ("page", *frameworks)}
    after: dict[str, dict[str, list[str]]] = {stage: {} for stage in before}
    with Reranker(BUNDLED_MODEL, device="cpu", dtype="float32") as reranker:
        for query_id, query in corpus.queries.items():
            before["page"][query_id] = index.search(query, DEFAULT_CANDIDATES)
            for framework, search in frameworks.items():
                before[framework][query_id] = [found.document_id for found in search.retrieve(query)]
            pooled = list(dict.fromkeys(each for found in before.values() for each in found[query_id]))
            hits = reranker.rerank(query, [corpus.documents[each].content for each in pooled])
            margins = {pooled[hit.index]: hit.margin for hit in hits}
            for stage, found in before.items():
                after[stage][query_id] = sorted(found[query_id], key=lambda each: -margins[each])

    def ndcg(runs: Mapping[str, dict[str, list[str]]]) -> dict[str, dict[str, float]]:
        return {
            stage: {each: round(value, 6) for each, value in evaluate_each(corpus.qrels, run)[NDCG].items()}
            for stage, run in runs.items()
        }

    return ndcg(before), ndcg(after)


def chosen_text(before: Measured, after: Measured) -> str:
    """The text of shown.json."""
    return json.dumps({"rule": RULE, "questions": choose(before, after)}, indent=1, ensure_ascii=False) + "\n"


def check() -> str | None:
    """What is wrong with shown.json; None if it follows from the measured gains."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    if CHOICE.read_text(encoding="utf-8") != chosen_text(measured["before"], measured["after"]):
        return f"{CHOICE} does not follow from {MEASURED}: run python tools/choose_demo_questions.py"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        if problem := check():
            sys.exit(problem)
        return
    before, after = measure()
    about = {
        "command": "python tools/choose_demo_questions.py",
        "date": datetime.now(UTC).date().isoformat(),
        "version": __version__,
        "python": platform.python_version(),
        "model": BUNDLED_MODEL,
        "measure": NDCG,
        "candidates": DEFAULT_CANDIDATES,
    }
    MEASURED.write_text(json.dumps({**about, "before": before, "after": after}, indent=1) + "\n", encoding="utf-8")
    CHOICE.write_text(chosen_text(before, after), encoding="utf-8")
    print(CHOICE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
