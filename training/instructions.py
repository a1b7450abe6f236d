"""Measure what instructions that a model has never seen do to it, on the demo corpus.

    python -m training.instructions --model before=FOLDER --model after=FOLDER --out instructions.json

Each instruction asks for relevant passages in other words, so the order should hardly change. For each question, up to
two relevant passages are judged beside eight others.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION, Reranker
from qwen3_ranker_plugins.data.demo import load_demo_corpus

INSTRUCTIONS = (
    DEFAULT_INSTRUCTION,
    "Find the passage",
    "Retrieve relevant documents",
    "Given a question, find the passage that answers it",
    "Search the documentation",
    "Is this document relevant?",
    "Find passages that help a programmer",
    "查找相关段落",
    "Select the best answer for the user",
    "Rank products by relevance to the query",
    "Judge relevance",
)
RELEVANT, OTHER = 2, 8


def measure(folder: Path, questions: int) -> dict[str, Any]:
    """{instruction: mean P(yes) of relevant and other passages, share of questions with a relevant one first}."""
    corpus = load_demo_corpus()
    asked = random.Random(0).sample([query for query in corpus.queries if corpus.qrels.get(query)], questions)
    results = {}
    with Reranker(folder) as reranker:
        for instruction in INSTRUCTIONS:
            relevant, other, right = [], [], 0
            for query in asked:
                good = list(corpus.qrels[query])[:RELEVANT]
                bad = random.Random(query).sample([each for each in corpus.documents if each not in good], OTHER)
                texts = [corpus.documents[each].content for each in (*good, *bad)]
                scores = np.array(reranker.score(corpus.queries[query], texts, instruction=instruction))
                relevant += scores[: len(good)].tolist()
                other += scores[len(good) :].tolist()
                right += int(scores.argmax()) < len(good)
            results[instruction] = {
                "P relevant": round(float(np.mean(relevant)), 3),
                "P other": round(float(np.mean(other)), 3),
                "relevant first": right / len(asked),
            }
            print(folder.name, instruction, results[instruction], flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    models = dict(model.split("=", 1) for model in arguments.model)
    results = {name: measure(Path(folder), arguments.questions) for name, folder in models.items()}
    arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
