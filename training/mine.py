"""Tokenise, encode with the teachers, and choose and score candidates for every query, once.

Passages form three classes by length (at most 63, 151 and 391 tokens), one for each phase of training. Each
query gets candidates of every class: its positive, dense and BM25 neighbours, and random passages. The target
of a pair is the logit of a logistic regression on the teachers' cosines and the BM25 coverage, fitted on the
labelled pairs, plus a bonus for known positives. Writes one `mined.pt` that training reads into GPU memory.
"""

import argparse
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.candidates import Facts, mine_candidates
from training.passages import DOCUMENT_TOKENS, HEAD_TOKENS, cap_windows, choose_queries, head_ids, ragged, text_units
from training.prepare_data import read_jsonl
from training.prompt import PromptTokens
from training.sparse import TermIndex, hashed_terms
from training.teacher import Teacher, load_teacher

EMBEDDING_SIZE = 256


def encode_all(folder: Path, groups: list[list[str | None]], devices: list[str]) -> list[Tensor]:
    """Unit vectors of every group of texts; zeros for None (Chinese, which the teachers do not read)."""
    loaded = [load_teacher(folder, device) for device in devices]
    teachers, tokenizer = [teacher for teacher, _ in loaded], loaded[0][1]
    vectors = []
    for texts in groups:
        known = [number for number, text in enumerate(texts) if text is not None]
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast([texts[number] for number in known])]
        shares = [ids[start :: len(devices)] for start in range(len(devices))]
        with ThreadPoolExecutor(len(devices)) as pool:
            encoded = list(pool.map(Teacher.encode, teachers, shares))
        result = torch.zeros(len(texts), teachers[0].size, device=devices[0], dtype=encoded[0].dtype)
        for start, part in enumerate(encoded):
            result[torch.tensor(known[start :: len(devices)], device=devices[0])] = part.to(devices[0])
        vectors.append(result)
    return vectors


def token_vectors(tokenizer: Tokenizer, teachers: list[Path], size: int, devices: list[str], seed: int) -> Tensor:
    """Initial embeddings (tokens, size): principal components of the teachers' vectors of the token strings."""
    count = tokenizer.get_vocab_size()
    generator = torch.Generator().manual_seed(seed)
    result = torch.randn(count, size, generator=generator)
    strings = [tokenizer.decode([number]).strip() for number in range(count)]
    known = [n for n, text in enumerate(strings) if text and text.isascii() and "\ufffd" not in text]
    if teachers:
        both = torch.cat(
            [encode_all(folder, [[strings[n] for n in known]], devices)[0].float() for folder in teachers], 1
        )
        both = both - both.mean(0)
        _, _, basis = torch.linalg.svd(both, full_matrices=False)
        projected = both @ basis[:size].T
        # Half-whitened: the first components would otherwise drown the rest.
        projected = projected / projected.std(0).clamp(min=1e-6).sqrt()
        result[known] = functional.normalize(projected, dim=1).cpu() * math.sqrt(size)
    noise = torch.randn(count, size, generator=generator)
    return 0.1 * (result + 0.05 * noise)


def mine(
    data: Path,
    tokenizer_path: Path,
    teachers: list[Path],
    out: Path,
    devices: list[str],
    seed: int,
    processes: int,
    window_cap: int,
    head_tokens: int = HEAD_TOKENS,
) -> None:
    started = time.time()

    def log(message: str) -> None:
        print(f"[mine {time.time() - started:6.1f}s] {message}", flush=True)

    torch.manual_seed(seed)
    texts = list(read_jsonl(data / "texts.jsonl.gz"))
    queries = choose_queries(list(read_jsonl(data / "queries.jsonl.gz")), seed)
    # Forked before the GPU is touched.
    with get_context("fork").Pool(processes) as pool:
        jobs = ((number, row, seed) for number, row in enumerate(texts))
        found = pool.imap(text_units, jobs, chunksize=1000)
        units = cap_windows([unit for some in found for unit in some], window_cap, seed)
        log(f"{len(texts)} texts, {len(queries)} queries, {len(units)} passages")
        unit_terms = pool.map(hashed_terms, [text for _, _, text in units], chunksize=2000)
        query_terms = pool.map(hashed_terms, [row["query"] for row in queries], chunksize=2000)
    index = TermIndex(unit_terms, query_terms, devices[0])
    log(f"{len(index.vocabulary)} terms")

    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokens = PromptTokens(tokenizer)
    heads = head_ids(tokens, [row["query"] for row in queries], seed, head_tokens)
    head_values, head_starts = ragged(ids for variants in heads for ids in variants)
    document_values, document_starts = ragged(tokens.documents([text for _, _, text in units], DOCUMENT_TOKENS[-1]))
    log(f"{len(document_values)} document tokens")

    passages = [text if texts[number]["lang"] == "en" else None for number, _, text in units]
    questions = [row["query"] if row["lang"] == "en" else None for row in queries]
    unit_vectors, query_vectors = [], []
    for folder in teachers:
        of_units, of_queries = encode_all(folder, [passages, questions], devices)
        unit_vectors.append(of_units)
        query_vectors.append(of_queries)
        log(f"encoded with {folder.name}")
    embeddings = token_vectors(tokenizer, teachers, EMBEDDING_SIZE, devices, seed)

    rng = random.Random(seed)
    positive_text = torch.tensor([rng.choice(row["positives"]) if row["positives"] else -1 for row in queries])
    facts = Facts.gather(texts, queries, units, document_starts.diff(), positive_text)
    candidates, targets = mine_candidates(facts, index, unit_vectors, query_vectors, devices, log)
    group_of = [(row["lang"] != "en", row["kind"], row["source"]) for row in queries]
    groups = sorted(set(group_of))
    place = {group: number for number, group in enumerate(groups)}
    torch.save(
        {
            "head_tokens": head_tokens,
            "heads": head_values,
            "head_starts": head_starts,
            "documents": document_values,
            "document_starts": document_starts,
            "candidates": candidates,
            "targets": targets.half(),
            "group": torch.tensor([place[group] for group in group_of]),
            "groups": groups,
            "prefix": tokens.prefix,
            "ending": tokens.ending,
            "suffix": tokens.suffix,
            "embeddings": embeddings,
            "token_counts": torch.bincount(document_values.int(), minlength=len(embeddings)).float(),
        },
        out,
    )
    log(f"wrote {out}, {out.stat().st_size / 1e6:.0f} MB")


def every_device() -> list[str]:
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="output folder of training.prepare_data")
    parser.add_argument("--tokenizer", type=Path, required=True, help="trimmed tokenizer.json")
    parser.add_argument(
        "--teacher", type=Path, action="append", default=[], help="teacher folder; MiniLM first, then mpnet"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", help="without it every GPU, or the CPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--window-cap", type=int, default=250_000, help="most windows of each of the two sizes")
    parser.add_argument("--head-tokens", type=int, default=HEAD_TOKENS, help="room for instruction and query")
    arguments = parser.parse_args()
    mine(
        arguments.data,
        arguments.tokenizer,
        arguments.teacher,
        arguments.out,
        [arguments.device] if arguments.device else every_device(),
        arguments.seed,
        arguments.processes,
        arguments.window_cap,
        arguments.head_tokens,
    )


if __name__ == "__main__":
    main()
