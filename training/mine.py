"""Tokenise, encode with the teachers, and choose and score candidates for every query, once.

Passages form three classes by length (at most 63, 151 and 391 tokens), one for each phase of training. Each
query gets candidates of every class: its positive, dense and BM25 neighbours, and random passages. The target
of a pair is the logit of a logistic regression on the teachers' cosines and the BM25 coverage, fitted on the
labelled pairs, plus a bonus for known positives. Writes one `mined.pt` that training reads into GPU memory.
"""

import argparse
import math
import os
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.candidates import Facts, mine_candidates
from training.passages import (
    DOCUMENT_TOKENS,
    HEAD_TOKENS,
    Rows,
    cap_windows,
    choose_queries,
    flat,
    head_ids,
    join,
    text_units,
)
from training.prepare_data import read_jsonl
from training.prompt import PromptTokens
from training.sparse import TermIndex, hashed_terms
from training.teacher import Teacher, load_teacher, load_tokenizer
from training.trim_tokenizer import SPECIAL_TOKENS

EMBEDDING_SIZE = 256
CHUNK = 2000  # texts that a worker process reads at once

Found = tuple[list[np.ndarray], Rows, list[Rows]]  # terms of every text, our ids, each teacher's ids


class Reader:
    """Turns texts into hashed terms and token ids; every worker process has one."""

    def __init__(self, tokenizer: Path, teachers: list[Path], head_tokens: int) -> None:
        self.tokens = PromptTokens(Tokenizer.from_file(str(tokenizer)))
        self.teachers = [load_tokenizer(folder) for folder in teachers]
        self.head_tokens = head_tokens

    def for_teachers(self, texts: list[str], english: list[bool]) -> list[Rows]:
        """Each teacher's ids; none of a Chinese text, which the teachers do not read."""
        read = [text if known else "" for text, known in zip(texts, english, strict=True)]
        return [
            flat(e.ids if known else [] for e, known in zip(teacher.encode_batch_fast(read), english, strict=True))
            for teacher in self.teachers
        ]

    def passages(self, texts: list[str], english: list[bool]) -> Found:
        return self.with_terms(self.tokens.documents(texts, DOCUMENT_TOKENS[-1]), texts, english)

    def queries(self, texts: list[str], english: list[bool], seed: int) -> Found:
        heads = head_ids(self.tokens, texts, seed, self.head_tokens)
        return self.with_terms((ids for variants in heads for ids in variants), texts, english)

    def with_terms(self, rows: Iterable[list[int]], texts: list[str], english: list[bool]) -> Found:
        return [hashed_terms(text) for text in texts], flat(rows), self.for_teachers(texts, english)


T = TypeVar("T")


def parted(items: list[T]) -> list[list[T]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


READER: list[Reader] = []  # this process's


def start_worker(tokenizer: Path, teachers: list[Path], head_tokens: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process has one core
    READER.append(Reader(tokenizer, teachers, head_tokens))


def read_passages(job: tuple[list[str], list[bool]]) -> Found:
    return READER[0].passages(*job)


def read_queries(job: tuple[list[str], list[bool], int]) -> Found:
    return READER[0].queries(*job)


class Read:
    """What the workers found, joined in the order of the texts."""

    def __init__(self, found: Iterable[Found], log: Callable[[str], None]) -> None:
        parts = []
        for part in found:
            parts.append(part)
            if len(parts) % 100 == 0:
                log(f"read {len(parts) * CHUNK}")
        self.terms = [terms for texts, _, _ in parts for terms in texts]
        self.values, self.starts = join([rows for _, rows, _ in parts])
        self.teacher_rows = [join(list(rows)) for rows in zip(*(rows for _, _, rows in parts), strict=True)]


def vectors_of(teachers: list[Teacher], rows: tuple[Tensor, Tensor]) -> Tensor:
    """Unit vectors of every row by copies of one teacher, on the first one's device; zeros where there are no ids."""
    values, starts = rows
    known = torch.nonzero(starts.diff()).flatten()
    shares = [known[start :: len(teachers)] for start in range(len(teachers))]
    with ThreadPoolExecutor(len(teachers)) as pool:
        encoded = list(pool.map(lambda teacher, share: teacher.encode_rows(values, starts, share), teachers, shares))
    result = torch.zeros(len(starts) - 1, teachers[0].size, device=teachers[0].device, dtype=encoded[0].dtype)
    for share, part in zip(shares, encoded, strict=True):
        result[share.to(result.device)] = part.to(result.device)
    return result


def token_vectors(tokenizer: Tokenizer, teachers: list[tuple[Teacher, Tokenizer]], size: int, seed: int) -> Tensor:
    """Initial embeddings (tokens, size): principal components of the teachers' vectors of the token strings."""
    count = tokenizer.get_vocab_size()
    generator = torch.Generator().manual_seed(seed)
    result = torch.randn(count, size, generator=generator)
    strings = [tokenizer.decode([number]).strip() for number in range(count)]
    known = [n for n, text in enumerate(strings) if text and text.isascii() and "\ufffd" not in text]
    if teachers:
        read = [strings[n] for n in known]
        both = torch.cat(
            [teacher.encode([e.ids for e in own.encode_batch_fast(read)]).float() for teacher, own in teachers], 1
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
    # Forked before anything is loaded: a worker then shares little, and nothing of the GPU. An executor, as a pool
    # waits for ever when a worker is killed.
    with ProcessPoolExecutor(
        processes, get_context("fork"), start_worker, (tokenizer_path, teachers, head_tokens)
    ) as workers:
        for ready in [workers.submit(os.getpid) for _ in range(processes)]:
            ready.result()
        texts = list(read_jsonl(data / "texts.jsonl.gz"))
        queries = choose_queries(list(read_jsonl(data / "queries.jsonl.gz")), seed)
        numbered = ((number, row, seed) for number, row in enumerate(texts))
        found = workers.map(text_units, numbered, chunksize=1000)
        units = cap_windows([unit for some in found for unit in some], window_cap, seed)
        log(f"{len(texts)} texts, {len(queries)} queries, {len(units)} passages")
        passages = Read(
            workers.map(
                read_passages,
                [([u[2] for u in part], [texts[u[0]]["lang"] == "en" for u in part]) for part in parted(units)],
            ),
            log,
        )
        asked = Read(
            workers.map(
                read_queries,
                [
                    ([row["query"] for row in part], [row["lang"] == "en" for row in part], seed + number)
                    for number, part in enumerate(parted(queries))
                ],
            ),
            log,
        )
    log(f"{len(passages.values)} document tokens")
    index = TermIndex(passages.terms, asked.terms, devices[0])
    log(f"{len(index.vocabulary)} terms")

    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokens = PromptTokens(tokenizer)
    unit_vectors, query_vectors = [], []
    loaded = [load_teacher(folder, devices[0]) for folder in teachers]
    for number, (teacher, _) in enumerate(loaded):
        copies = [teacher, *(teacher.to(device) for device in devices[1:])]
        unit_vectors.append(vectors_of(copies, passages.teacher_rows[number]))
        query_vectors.append(vectors_of(copies, asked.teacher_rows[number]))
        log(f"encoded with {teachers[number].name}")
    embeddings = token_vectors(tokenizer, loaded, EMBEDDING_SIZE, seed)

    rng = random.Random(seed)
    positive_text = torch.tensor([rng.choice(row["positives"]) if row["positives"] else -1 for row in queries])
    facts = Facts.gather(texts, queries, units, passages.starts.diff(), positive_text)
    candidates, targets = mine_candidates(facts, index, unit_vectors, query_vectors, devices, log)
    group_of = [(row["lang"] != "en", row["kind"], row["source"]) for row in queries]
    groups = sorted(set(group_of))
    place = {group: number for number, group in enumerate(groups)}
    torch.save(
        {
            "head_tokens": head_tokens,
            "vocabulary": len(embeddings),
            "ordinary": len(embeddings) - len(SPECIAL_TOKENS),
            "heads": asked.values,
            "head_starts": asked.starts,
            "documents": passages.values,
            "document_starts": passages.starts,
            "candidates": candidates,
            "targets": targets.half(),
            "group": torch.tensor([place[group] for group in group_of]),
            "groups": groups,
            "prefix": tokens.prefix,
            "ending": tokens.ending,
            "suffix": tokens.suffix,
            "embeddings": embeddings,
            "token_counts": torch.bincount(passages.values.int(), minlength=len(embeddings)).float(),
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
