"""What changes of spelling, prompt and language do to a model: one JSON file for all sets.

    python -m training.robustness --model FOLDER --lists DEV/*.jsonl.gz --out robustness.json          # on a GPU
    python -m training.robustness --packed FOLDER --lists DEV/*.jsonl.gz --limit 60 --out robustness.json  # on a CPU
    python -m training.robustness --table before.json after.json       # two of these files, as a Markdown table

For each set and change: nDCG@10 of the model and of BM25 for the same queries, the mean P(yes) of relevant and of other
documents, the median share of a query's candidates above .9, and the mean spread of P(yes) in the first ten. BM25 is
counted over all listed documents of the set with the queries as changed, so it also ranks key words.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training.evaluate import as_ranking, load_exported, rank_bm25, set_name
from training.perturb import perturbed
from training.prompt import COMPACT, CONTRADICTIONS, DEFAULT_INSTRUCTION, OTHER_INSTRUCTIONS, PromptTokens, token_id
from training.scoring import Ranking, margins, no_attention_plans, quick_ndcg, read_lists

Rows = list[dict[str, Any]]
Score = Callable[[Rows, str, str], Ranking]  # rows, template, instruction
DOCUMENT_TOKENS = 1024
QUERY_SPELLINGS = ("upper", "title", "lower", "typing errors", "keywords", "no diacritics")
DOCUMENT_SPELLINGS = ("upper", "lower")
ABOVE = 0.9


def changed(rows: Rows, spelling: str, seed: int, field: str) -> Rows:
    """The same lists with the queries (`field` "query") or the documents' texts ("text") in another spelling."""
    rng = random.Random(seed)
    if field == "query":
        return [{**row, "query": perturbed(row["query"], spelling, rng)} for row in rows]
    texts: dict[str, str] = {}
    found = []
    for row in rows:
        for doc in row["docs"]:
            if doc["text"] not in texts:
                texts[doc["text"]] = perturbed(doc["text"], spelling, rng)
        found.append({**row, "docs": [{**doc, "text": texts[doc["text"]]} for doc in row["docs"]]})
    return found


def cases(seed: int) -> Iterator[tuple[str, Callable[[Rows], Rows], str, str]]:
    """(name, change of the rows, template, instruction) of everything measured."""

    def same(rows: Rows) -> Rows:
        return rows

    yield "as written", same, "standard", DEFAULT_INSTRUCTION
    for kind, field, spellings in (("queries", "query", QUERY_SPELLINGS), ("documents", "text", DOCUMENT_SPELLINGS)):
        for spelling in spellings:
            change = partial(changed, spelling=spelling, seed=seed, field=field)
            yield f"{kind} {spelling}", change, "standard", DEFAULT_INSTRUCTION
    yield "template compact", same, "compact", DEFAULT_INSTRUCTION
    yield "another instruction", same, "standard", OTHER_INSTRUCTIONS[3]
    yield "instruction that contradicts", same, "standard", CONTRADICTIONS[0]


def ndcg(rows: Rows, run: Ranking) -> float:
    """nDCG@10 with linear gains, as ir-measures counts it; that package is not needed here."""
    return round(quick_ndcg(rows, [[run[row["qid"]][doc["docid"]] for doc in row["docs"]] for row in rows]), 4)


def ranks(values: torch.Tensor) -> torch.Tensor:
    return values.argsort().argsort().double()


def spearman(left: Ranking, right: Ranking) -> float:
    """Mean over queries of the rank correlation of two runs."""
    each = [
        torch.corrcoef(torch.stack([ranks(torch.tensor([run[q][d] for d in docs])) for run in (left, right)]))[0, 1]
        for q, docs in left.items()
        if len(docs) > 1
    ]
    return float(torch.stack(each).nanmean())


def describe(rows: Rows, run: Ranking) -> dict[str, float]:
    relevant, other, above, spread = [], [], [], []
    for row in (each for each in rows if each["docs"]):
        p = torch.tensor([run[row["qid"]][doc["docid"]] for doc in row["docs"]], dtype=torch.float64).sigmoid()
        known = torch.tensor([(doc["rel"] or 0) > 0 for doc in row["docs"]])
        relevant.append(p[known])
        other.append(p[~known])
        above.append((p > ABOVE).double().mean())
        best = p.topk(min(10, len(p))).values
        spread.append(best[0] - best[-1])
    return {
        "nDCG@10": ndcg(rows, run),
        "P relevant": round(float(torch.cat(relevant).mean()), 3),
        "P other": round(float(torch.cat(other).mean()), 3),
        f"above {ABOVE}": round(float(torch.stack(above).median()), 3),
        "spread of the first ten": round(float(torch.stack(spread).mean()), 3),
    }


def robustness(lists: dict[str, Rows], score: Score, seed: int, write: Callable[[dict[str, Any]], None]) -> None:
    """Measures every case of every set; `write` gets all results after each."""
    results: dict[str, Any] = {}
    for name, rows in lists.items():
        results[name] = {"queries": len(rows)}
        first: Ranking | None = None
        for case, change, template, instruction in cases(seed):
            shown = change(rows)
            if case != "as written" and shown == rows and template == "standard" and instruction == DEFAULT_INSTRUCTION:
                continue
            run = score(shown, template, instruction)
            first = first or run
            found = {**describe(shown, run), "BM25": ndcg(shown, rank_bm25(shown))}
            if run is not first:
                found["Spearman"] = round(spearman(first, run), 3)
            results[name][case] = found
            print(f"{name:12} {case:30} {found}", flush=True)
            write(results)


def model_score(folder: Path, device: str) -> Score:
    model, tokenizer = load_exported(folder, device)
    tokens = PromptTokens(tokenizer)
    yes, no = token_id(tokenizer, "yes"), token_id(tokenizer, "no")
    cuda = device.startswith("cuda")
    known: dict[str, list[int]] = {}

    def document_ids(texts: list[str]) -> list[list[int]]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, tokens.documents(new, DOCUMENT_TOKENS), strict=True))
        return [known[text] for text in texts]

    def score(rows: Rows, template: str, instruction: str) -> Ranking:
        queries = [row["query"] for row in rows]
        if template == "standard":
            heads = tokens.heads(queries, instruction)
        else:
            heads = tokens.other_heads(queries, COMPACT, instruction, 10_000)
        prompts = [
            head + document + tokens.suffix
            for row, head in zip(rows, heads, strict=True)
            for document in document_ids([doc["text"] for doc in row["docs"]])
        ]
        dtype = torch.bfloat16 if cuda else torch.float32
        return as_ranking(rows, iter(margins(model, prompts, yes, no, dtype, 131_072 if cuda else 8192).tolist()))

    return score


def packed_score(folder: Path) -> Score:
    from qwen3_ranker_plugins import Reranker
    from qwen3_ranker_plugins.types import Request

    rerankers = {template: Reranker(folder, template=template) for template in ("standard", "compact")}

    def score(rows: Rows, template: str, instruction: str) -> Ranking:
        found: Ranking = {}
        for row in rows:
            request = Request(
                row["query"],
                [doc["text"] for doc in row["docs"]],
                instruction=instruction,
                max_document_tokens=DOCUMENT_TOKENS,
            )
            [result] = rerankers[template].rerank_many([request])
            found[row["qid"]] = {row["docs"][hit.index]["docid"]: hit.margin for hit in result}
        return found

    return score


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """nDCG@10 of two models on every set and change, and what the changes do to P(yes), in Markdown."""
    sets = [name for name in after if name in before]
    lines = [f"| change | {' | '.join(sets)} |", "|---|" + "---|" * len(sets)]
    cases = dict.fromkeys(case for name in sets for case in after[name] if case != "queries")
    for case in cases:
        cells = []
        for name in sets:
            old, new = before[name].get(case), after[name].get(case)
            cells.append(f"{old['nDCG@10']:.3f} → {new['nDCG@10']:.3f} ({new['BM25']:.3f})" if old and new else "")
        lines.append(f"| {case} | {' | '.join(cells)} |")
    for what in ("P relevant", "P other", f"above {ABOVE}"):
        cells = [f"{before[name]['as written'][what]} → {after[name]['as written'][what]}" for name in sets]
        lines.append(f"| {what}, as written | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    system = parser.add_mutually_exclusive_group(required=True)
    system.add_argument("--table", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="print a table of two files")
    system.add_argument("--model", type=Path, help="an exported model, scored by plain PyTorch")
    system.add_argument("--packed", type=Path, help="an exported model, scored by the package's own engine")
    parser.add_argument("--lists", type=Path, nargs="+", help="required to score")
    parser.add_argument("--limit", type=int, help="at most about so many queries of a set")
    parser.add_argument("--seed", type=int, default=0, help="of the typing errors")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="required to score")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(*(json.loads(path.read_text("utf-8")) for path in arguments.table)))
        return
    if not arguments.lists or arguments.out is None:
        parser.error("give --lists and --out")
    no_attention_plans()
    score = packed_score(arguments.packed) if arguments.packed else model_score(arguments.model, arguments.device)
    lists = {set_name(path): read_lists(path, arguments.limit) for path in arguments.lists}

    def write(results: dict[str, Any]) -> None:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")

    robustness(lists, score, arguments.seed, write)


if __name__ == "__main__":
    main()
