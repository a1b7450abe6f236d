"""The demo corpus: passages, questions and judgements from the package's assets, in BEIR's layout."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

#: How many passages BM25 hands to the reranker in demonstrations: as many as a RAG pipeline usually takes.
DEFAULT_CANDIDATES = 50


@dataclass(frozen=True, slots=True)
class DemoDocument:
    """A passage.

    Attributes:
        document_id: stable, such as "with-2".
        title: title of the section.
        text: a paragraph or two.
    """

    document_id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """Title and text: what is searched and what is judged."""
        return f"{self.title}\n{self.text}"


@dataclass(frozen=True, slots=True)
class ShownQuestion:
    """A question that demonstrations show first.

    Attributes:
        query_id: its id.
        reason: why it was chosen, and its gain in nDCG@10, such as "median of the gains, +0.22 on average": over three
            first stages, see tools/choose_demo_questions.py.
    """

    query_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """A test collection.

    Attributes:
        documents: id -> passage.
        queries: id -> question.
        qrels: query id -> document id -> grade. 2: answers the question; 1: helps; not listed: does neither.
        shown: three questions with typical gains and the one with the largest loss, chosen by
            tools/choose_demo_questions.py.
    """

    documents: Mapping[str, DemoDocument]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    shown: Sequence[ShownQuestion]


def load_demo_corpus() -> DemoCorpus:
    """The corpus that comes with this package: passages of the Python language reference."""
    folder = files(__package__.rpartition(".")[0]) / "assets" / "demo"

    def lines(name: str) -> list[str]:
        # Not splitlines(), which also ends a line at characters that may occur inside a JSON string.
        return folder.joinpath(name).read_text(encoding="utf-8").rstrip("\n").split("\n")

    passages = [json.loads(line) for line in lines("corpus.jsonl")]
    questions = [json.loads(line) for line in lines("queries.jsonl")]
    qrels: dict[str, dict[str, int]] = {}
    for row in csv.DictReader(lines("qrels/test.tsv"), delimiter="\t"):
        qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    shown = json.loads(folder.joinpath("shown.json").read_text(encoding="utf-8"))["questions"]
    return DemoCorpus(
        documents={each["_id"]: DemoDocument(each["_id"], each["title"], each["text"]) for each in passages},
        queries={each["_id"]: each["text"] for each in questions},
        qrels=qrels,
        shown=[
            ShownQuestion(each["query_id"], f"{each['reason']}, {each['mean_gain']:+.2f} on average") for each in shown
        ],
    )


def lower_case_words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case, as Haystack's BM25 splits Latin text too."""
    return re.findall(r"\w+", text.lower())
