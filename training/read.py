"""Turn texts and queries into token ids and terms, once, on the CPU: what mining reads.

Worker processes do it; nothing here needs a GPU or a teacher's weights, only the teachers' tokenizers, so it can run
where the texts are. Writes one `read.pt`: ragged vectors of ids, and what is known of passages and queries.
"""

import os
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.candidates import Facts, language_class
from training.passages import (
    DOCUMENT_TOKENS,
    DOCUMENT_VARIANTS,
    HEAD_TOKENS,
    Rows,
    cap_windows,
    choose_queries,
    document_variants,
    flat,
    head_ids,
    join,
    text_units,
)
from training.prepare_data import read_jsonl
from training.prompt import PromptTokens
from training.sparse import hashed_terms
from training.stage import stage_log, stage_parser
from training.teacher import load_tokenizer

CHUNK = 2000  # texts that a worker process reads at once

Found = tuple[Rows, Rows, list[Rows]]  # terms, our ids, each teacher's ids
Ragged = tuple[Tensor, Tensor]  # all values, start of every row with the end appended


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
        rng = random.Random(texts[0])
        spelt = [variant for text in texts for variant in document_variants(text, rng)]
        return self.with_terms(self.tokens.documents(spelt, DOCUMENT_TOKENS[-1]), texts, english)

    def queries(self, texts: list[str], english: list[bool], seed: int) -> Found:
        heads = head_ids(self.tokens, texts, seed, self.head_tokens)
        return self.with_terms((ids for variants in heads for ids in variants), texts, english)

    def with_terms(self, rows: Iterable[list[int]], texts: list[str], english: list[bool]) -> Found:
        return hashed_terms(texts), flat(rows), self.for_teachers(texts, english)


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


def joined(found: Iterable[Found], log: Callable[[str], None]) -> tuple[Ragged, Ragged, list[Ragged]]:
    """What the workers found, in the order of the texts: terms, our ids, each teacher's ids."""
    parts = []
    for part in found:
        parts.append(part)
        if len(parts) % 50 == 0:
            log(f"read {len(parts) * CHUNK}")
    teachers = zip(*(rows for _, _, rows in parts), strict=True)
    return (
        join([terms for terms, _, _ in parts]),
        join([rows for _, rows, _ in parts]),
        [join(rows) for rows in teachers],
    )


def renumber(*terms: Ragged) -> list[Ragged]:
    """The same terms as small numbers, equal where they were equal."""
    _, numbers = torch.unique(torch.cat([values for values, _ in terms]), return_inverse=True)
    parts = torch.split(numbers.int(), [len(values) for values, _ in terms])
    return [(part.clone(), starts) for part, (_, starts) in zip(parts, terms, strict=True)]


def read(
    data: Path,
    tokenizer: Path,
    teachers: list[Path],
    out: Path,
    seed: int,
    processes: int,
    window_cap: int,
    head_tokens: int = HEAD_TOKENS,
) -> None:
    log = stage_log("read")
    # Forked before anything is loaded, so a worker shares little. An executor, as a pool waits for ever when a worker
    # is killed.
    with ProcessPoolExecutor(
        processes, get_context("fork"), start_worker, (tokenizer, teachers, head_tokens)
    ) as workers:
        workers.submit(os.getpid).result()
        texts = list(read_jsonl(data / "texts.jsonl.gz"))
        queries = choose_queries(list(read_jsonl(data / "queries.jsonl.gz")), seed)
        numbered = ((number, row, seed) for number, row in enumerate(texts))
        units = [unit for some in workers.map(text_units, numbered, chunksize=1000) for unit in some]
        units = cap_windows(units, window_cap, seed)
        log(f"{len(texts)} texts, {len(queries)} queries, {len(units)} passages")
        english = [texts[number]["lang"] == "en" for number, _, _ in units]
        jobs = zip(parted([text for _, _, text in units]), parted(english), strict=True)
        terms, ids, teacher_ids = joined(workers.map(read_passages, jobs), log)
        query_terms, heads, query_teacher_ids = joined(
            workers.map(
                read_queries,
                [
                    ([row["query"] for row in part], [row["lang"] == "en" for row in part], seed + number)
                    for number, part in enumerate(parted(queries))
                ],
            ),
            log,
        )
    log(f"{len(ids[0])} document tokens")
    terms, query_terms = renumber(terms, query_terms)
    rng = random.Random(seed)
    positive_text = torch.tensor([rng.choice(row["positives"]) if row["positives"] else -1 for row in queries])
    facts = Facts.gather(texts, queries, units, ids[1].diff()[::DOCUMENT_VARIANTS], positive_text)
    group_of = [(language_class(row["lang"]), row["kind"], row["source"]) for row in queries]
    groups = sorted(set(group_of))
    place = {group: number for number, group in enumerate(groups)}
    torch.save(
        {
            "head_tokens": head_tokens,
            "passages": (terms, ids, teacher_ids),
            "queries": (query_terms, heads, query_teacher_ids),
            "facts": asdict(facts),
            "group": torch.tensor([place[group] for group in group_of]),
            "groups": groups,
        },
        out,
    )
    log(f"wrote {out}, {out.stat().st_size / 1e6:.0f} MB")


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="output folder of training.prepare_data")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--window-cap", type=int, default=250_000, help="most windows of each of the two sizes")
    parser.add_argument("--head-tokens", type=int, default=HEAD_TOKENS, help="room for instruction and query")
    read(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
