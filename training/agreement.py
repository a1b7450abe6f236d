"""How far a model agrees with its targets within a query's list: spread of both, correlation, nDCG of the targets.

    python -m training.agreement --lists DEV/cacm.jsonl.gz --run tiny=tiny.json --teacher minilm.json \
        --teacher mpnet.json --weights 1.53 4.53 4.39 -4.24 --out agreement.json

Scores are those of `training.evaluate score`; weights (teachers, coverage, intercept) those `training.mine` prints.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.evaluate import as_ranking, measure, set_name
from training.passages import join
from training.scoring import Ranking, read_lists
from training.sparse import TermIndex, hashed_terms


def coverages(rows: list[dict[str, Any]]) -> list[Tensor]:
    """BM25 coverage (documents,) of every list, as in mining; the statistics are of all listed documents."""
    texts = list(dict.fromkeys(doc["text"] for row in rows for doc in row["docs"]))
    place = {text: number for number, text in enumerate(texts)}
    index = TermIndex(join([hashed_terms(texts)]), join([hashed_terms([row["query"] for row in rows])]), "cpu")
    asked, largest = index.questions(torch.arange(len(rows)))
    covered = (index.weights(torch.arange(len(texts))) @ asked).T / largest[:, None]
    return [covered[n, [place[doc["text"]] for doc in row["docs"]]] for n, row in enumerate(rows)]


def in_order(row: dict[str, Any], run: Ranking) -> Tensor:
    return torch.tensor([run[row["qid"]][doc["docid"]] for doc in row["docs"]])


def target_logits(rows: list[dict[str, Any]], teachers: list[Ranking], weights: list[float]) -> Ranking:
    """The regression's logits, without the bonus of known positives: a list of judged documents has none."""
    *of_features, intercept = weights
    logits = []
    for row, coverage in zip(rows, coverages(rows), strict=True):
        features = torch.stack([*(in_order(row, teacher) for teacher in teachers), coverage], -1)
        logits.append(features @ torch.tensor(of_features) + intercept)
    return as_ranking(rows, iter(torch.cat(logits).tolist()))


def agreement(rows: list[dict[str, Any]], run: Ranking, targets: Ranking) -> dict[str, float]:
    """Means over queries."""
    pairs = [torch.stack([in_order(row, run), in_order(row, targets)]) for row in rows]
    spread = torch.stack([pair.std(1, correction=0) for pair in pairs]).mean(0)
    correlation = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).mean()
    found = {"margin deviation": spread[0], "target deviation": spread[1], "correlation": correlation}
    return {name: round(float(value), 4) for name, value in found.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, nargs="+", required=True)
    parser.add_argument("--run", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--teacher", type=Path, action="append", required=True, help="in the order of the weights")
    parser.add_argument("--weights", type=float, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    runs = {name: json.loads(Path(file).read_text()) for name, _, file in (r.partition("=") for r in arguments.run)}
    teachers = [json.loads(path.read_text()) for path in arguments.teacher]
    results: dict[str, Any] = {}
    for path in arguments.lists:
        name, rows = set_name(path), read_lists(path)
        targets = target_logits(rows, [teacher[name] for teacher in teachers], arguments.weights)
        results[name] = {"targets": measure(rows, targets)}
        for system, run in runs.items():
            results[name][system] = agreement(rows, run[name], targets) | measure(rows, run[name])
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
