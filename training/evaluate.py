"""Rerank candidate lists and measure: nDCG@10 and RR@10 by ir-measures, and how far P(yes) separates.

    python -m training.evaluate score --model FOLDER --lists a.jsonl.gz b.jsonl.gz --out tiny.json
    python -m training.evaluate score --teacher FOLDER --lists ... --out minilm.json
    python -m training.evaluate table --lists ... --run tiny=tiny.json --run all-MiniLM-L6-v2=minilm.json --out results

Scoring needs torch alone (it runs on the GPU machine); the table needs `pip install ir-measures`.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from training.model import ModelShape, TinyQwen3
from training.prompt import PromptTokens, token_id
from training.scoring import Ranking, margins, no_attention_plans, read_lists
from training.teacher import load_teacher
from training.texts import BM25, HAN_CHARACTER, characters, terms

DOCUMENT_TOKENS = 1024
BASELINE = "BM25"
CHARACTERS = "BM25 (characters)"  # of Chinese sets, whose BM25 knows pairs of characters too


def load_exported(folder: Path, device: str) -> tuple[TinyQwen3, Tokenizer]:
    """The exported model with its bf16 weights widened to float32 parameters."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    model = TinyQwen3(ModelShape(**{name: config[name] for name in ModelShape().as_dict()}))
    model.load_state_dict({name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()})
    return model.to(device).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def as_ranking(rows: list[dict[str, Any]], values: Iterator[float]) -> Ranking:
    return {row["qid"]: {doc["docid"]: next(values) for doc in row["docs"]} for row in rows}


def score_model(folder: Path, rows: list[dict[str, Any]], device: str) -> Ranking:
    """Margins logit(yes) - logit(no) under the default instruction."""
    model, tokenizer = load_exported(folder, device)
    tokens = PromptTokens(tokenizer)
    heads = tokens.heads([row["query"] for row in rows])
    prompts = [
        head + document + tokens.suffix
        for row, head in zip(rows, heads, strict=True)
        for document in tokens.documents([doc["text"] for doc in row["docs"]], DOCUMENT_TOKENS)
    ]
    yes, no = token_id(tokenizer, "yes"), token_id(tokenizer, "no")
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    batch_tokens = 131_072 if device.startswith("cuda") else 8192
    return as_ranking(rows, iter(margins(model, prompts, yes, no, dtype, batch_tokens).tolist()))


def score_packed(folder: Path, rows: list[dict[str, Any]]) -> Ranking:
    """The same margins by the package's own engine, which computes a query once."""
    from qwen3_ranker_plugins import Reranker
    from qwen3_ranker_plugins.types import Request

    found: Ranking = {}
    with Reranker(folder) as reranker:
        for row in rows:
            request = Request(row["query"], [doc["text"] for doc in row["docs"]], max_document_tokens=DOCUMENT_TOKENS)
            [result] = reranker.rerank_many([request])
            found[row["qid"]] = {row["docs"][hit.index]["docid"]: hit.margin for hit in result}
    return found


def score_teacher(folder: Path, rows: list[dict[str, Any]], device: str) -> Ranking:
    """Cosines of a bi-encoder."""
    teacher, tokenizer = load_teacher(folder, device)
    texts = sorted({doc["text"] for row in rows for doc in row["docs"]} | {row["query"] for row in rows})
    place = {text: number for number, text in enumerate(texts)}
    vectors = teacher.encode([e.ids for e in tokenizer.encode_batch_fast(texts)]).float().cpu()
    return {
        row["qid"]: {
            doc["docid"]: float(vectors[place[row["query"]]] @ vectors[place[doc["text"]]]) for doc in row["docs"]
        }
        for row in rows
    }


def rank_bm25(rows: list[dict[str, Any]], split: Callable[[str], list[str]] = terms) -> Ranking:
    """BM25 scores of the candidates, with the statistics of all listed documents."""
    texts = {doc["docid"]: doc["text"] for row in rows for doc in row["docs"]}
    index = BM25(texts.values(), split)
    number_of = {docid: number for number, docid in enumerate(texts)}
    found: Ranking = {}
    for row in rows:
        scores = index.scores(row["query"])
        found[row["qid"]] = {doc["docid"]: scores.get(number_of[doc["docid"]], 0.0) for doc in row["docs"]}
    return found


def rank_characters(rows: list[dict[str, Any]]) -> Ranking | None:
    """BM25 over single characters; None for a set without Chinese."""
    return rank_bm25(rows, characters) if HAN_CHARACTER.search(rows[0]["query"]) else None


def set_name(path: Path) -> str:
    return path.name.removesuffix(".jsonl.gz")


def relevance(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Judgements; relevant documents outside the list count towards the ideal under names of their own."""
    qrels: dict[str, dict[str, int]] = {}
    for row in rows:
        judged = {doc["docid"]: int(doc["rel"]) for doc in row["docs"] if doc["rel"] is not None}
        missing = sorted((rel for rel in row["all_rels"] if rel > 0), reverse=True)
        for rel in judged.values():
            if rel in missing:
                missing.remove(rel)
        qrels[row["qid"]] = {**judged, **{f"outside-{n}": rel for n, rel in enumerate(missing)}}
    return qrels


def measure(rows: list[dict[str, Any]], run: Ranking) -> dict[str, float]:
    try:
        import ir_measures
    except ImportError as error:
        raise ImportError('measuring needs ir-measures: pip install "ir-measures"') from error
    wanted = [ir_measures.nDCG @ 10, ir_measures.RR @ 10]
    found = ir_measures.calc_aggregate(wanted, relevance(rows), run)
    return dict(sorted((str(name), round(float(value), 4)) for name, value in found.items()))


def separation(rows: list[dict[str, Any]], run: Ranking) -> dict[str, float]:
    """Mean P(yes) of relevant and of other documents."""
    sums = {"relevant": [0.0, 0], "other": [0.0, 0]}
    for row in rows:
        for doc in row["docs"]:
            entry = sums["relevant" if (doc["rel"] or 0) > 0 else "other"]
            entry[0] += 1 / (1 + math.exp(-run[row["qid"]][doc["docid"]]))
            entry[1] += 1
    return {f"P(yes) {name}": round(total / max(count, 1), 3) for name, (total, count) in sums.items()}


def table(lists: list[Path], runs: dict[str, dict[str, Ranking]], out: Path) -> None:
    """Write `quality.json` and `quality.md`; a set is measured on the queries that the first run scored."""
    results: dict[str, Any] = {}
    names = [BASELINE, CHARACTERS, *runs]
    lines = ["| set | queries | " + " | ".join(names) + " | best | P(yes) relevant / other |"]
    lines.append("|---" * (len(names) + 4) + "|")
    first = next(iter(runs.values()))
    for path in lists:
        name = set_name(path)
        everything = read_lists(path)
        rows = [row for row in everything if row["qid"] in first.get(name, {})]
        if not rows:
            continue
        systems = {BASELINE: {row["qid"]: {doc["docid"]: -float(doc["rank"]) for doc in row["docs"]} for row in rows}}
        if (by_character := rank_characters(rows)) is not None:
            systems[CHARACTERS] = by_character
        for system, found in runs.items():
            if name in found:
                systems[system] = {row["qid"]: found[name][row["qid"]] for row in rows}
        values = {system: measure(rows, run) for system, run in systems.items()}
        spread = separation(rows, first[name])
        results[name] = {"queries": len(rows), "of": len(everything), "systems": values, **spread}
        shown = [f"{values[system]['nDCG@10']:.4f}" if system in values else "" for system in names]
        best = max(values, key=lambda system: values[system]["nDCG@10"])
        count = str(len(rows)) if len(rows) == len(everything) else f"{len(rows)} of {len(everything)}"
        cells = [name, count, *shown, best, " / ".join(str(value) for value in spread.values())]
        lines.append("| " + " | ".join(cells) + " |")
    out.mkdir(parents=True, exist_ok=True)
    (out / "quality.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (out / "quality.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score")
    system = score.add_mutually_exclusive_group(required=True)
    system.add_argument("--model", type=Path)
    system.add_argument("--packed", type=Path, help="an exported model, scored by the package's own engine")
    system.add_argument("--teacher", type=Path)
    score.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    report = commands.add_parser("table")
    report.add_argument("--run", action="append", required=True, metavar="NAME=FILE")
    for command in (score, report):
        command.add_argument("--lists", type=Path, nargs="+", required=True)
        command.add_argument("--out", type=Path, required=True)
    score.add_argument("--limit", type=int, help="at most about so many queries of a set")
    arguments = parser.parse_args(argv)
    if arguments.command == "table":
        runs = {
            name: json.loads(Path(file).read_text()) for name, _, file in (run.partition("=") for run in arguments.run)
        }
        table(arguments.lists, runs, arguments.out)
        return
    no_attention_plans()
    found: dict[str, Ranking] = {}
    for path in arguments.lists:
        rows = read_lists(path, arguments.limit)
        if arguments.model is not None:
            found[set_name(path)] = score_model(arguments.model, rows, arguments.device)
        elif arguments.packed is not None:
            found[set_name(path)] = score_packed(arguments.packed, rows)
        else:
            found[set_name(path)] = score_teacher(arguments.teacher, rows, arguments.device)
        # After every set: a call that runs out of time keeps what it has scored.
        arguments.out.write_text(json.dumps(found))
        print(f"scored {set_name(path)}: {len(rows)} queries", flush=True)


if __name__ == "__main__":
    main()
