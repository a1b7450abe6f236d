"""Evaluate a Qwen3 reranker with MTEB: reranking tasks, or retrieval tasks with the candidates of another model.

    pip install mteb
    export PYTHONPATH=src:. MODEL=Qwen/Qwen3-Reranker-0.6B
    python benchmarks/mteb_rerank.py OUTPUT.json --model $MODEL --tasks AskUbuntuDupQuestions
    python benchmarks/mteb_rerank.py OUTPUT.json --model $MODEL --tasks SciFact --candidates PREDICTIONS --top-k 100

PREDICTIONS is the folder that `mteb.evaluate(embedding_model, tasks, prediction_folder=PREDICTIONS)` wrote, for example
with Qwen/Qwen3-Embedding-0.6B, as in the published evaluation (https://arxiv.org/abs/2506.05176). mteb downloads its
data sets from the hub. The file holds the main score and nDCG@10 of each task, split and language, and what computed
the scores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_ranker_plugins import Request, Reranker
from qwen3_ranker_plugins.bench.machine import environment

#: One batch of an mteb data loader: the texts of its pairs, and other columns.
Batch = Mapping[str, Sequence[Any]]


class MtebReranker:
    """A `Reranker` as mteb's `CrossEncoderProtocol`.

    mteb hands over pairs: a batch of queries and a batch of documents of equal length. The pairs of one query follow
    each other, so they become one request, and the query's prefix is computed once.
    """

    def __init__(self, reranker: Reranker, name: str, instruction: str | None = None) -> None:
        from mteb.models import ModelMeta

        self._reranker, self._instruction = reranker, instruction
        owner_and_name = name if name.count("/") == 1 else f"local/{Path(name).name.replace(':', '-')}"
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": owner_and_name, "revision": "local"})

    def predict(self, inputs1: Iterable[Batch], inputs2: Iterable[Batch], **_: Any) -> NDArray[np.float32]:
        """P(yes) of each pair (queries, documents), in mteb's order: (pairs,)."""
        queries = [text for batch in inputs1 for text in batch["text"]]
        documents = iter([text for batch in inputs2 for text in batch["text"]])
        requests = [
            Request(query, [next(documents) for _ in pairs], instruction=self._instruction)
            for query, pairs in groupby(queries)
        ]
        if not requests:
            return np.zeros(0, dtype=np.float32)
        return np.concatenate(self._reranker.score_many(requests, show_progress=True))


def evaluate(model: MtebReranker, tasks: Iterable[Any], candidates: Path | None, top_k: int) -> list[dict[str, Any]]:
    """A row for each task, split and language."""
    import mteb

    rows = []
    for task in tasks:
        if candidates is not None:
            task.convert_to_reranking(candidates, top_k=top_k)
        [result] = mteb.evaluate(model, task, cache=None)
        rows += [
            {
                "task": result.task_name,
                "split": split,
                "subset": each["hf_subset"],
                "main_score": float(each["main_score"]),
                "ndcg_at_10": float(each["ndcg_at_10"]),
            }
            for split, scores in result.scores.items()
            for each in scores
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="bundled:tiny", help="a name on the hub, a local folder, or bundled:tiny")
    parser.add_argument("--tasks", required=True, help="names of mteb's tasks, with commas between them")
    parser.add_argument("--candidates", type=Path, help="folder of another model's predictions, for retrieval tasks")
    parser.add_argument("--top-k", type=int, default=100, help="candidates of a query that are reranked [default: 100]")
    parser.add_argument("--instruction", help="of the task; default: the model's own")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    if not arguments.output.absolute().parent.is_dir():  # the file is written after the evaluation, which takes long
        parser.error(f"OUTPUT {arguments.output}: the folder does not exist: create it first")
    try:
        import mteb
    except ModuleNotFoundError:
        parser.error("mteb is not installed: pip install mteb")

    tasks = mteb.get_tasks(tasks=arguments.tasks.split(","))
    with Reranker(arguments.model, device=arguments.device) as reranker:
        model = MtebReranker(reranker, arguments.model, arguments.instruction)
        rows = evaluate(model, tasks, arguments.candidates, arguments.top_k)
        result = {
            "environment": environment(),
            "mteb": mteb.__version__,
            "model": asdict(reranker.describe()),
            "instruction": arguments.instruction,
            "top_k": arguments.top_k if arguments.candidates else None,
            "rows": rows,
        }
    arguments.output.write_text(json.dumps(result, indent=1, default=str) + "\n", "utf-8")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
