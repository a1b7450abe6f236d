"""What mining works on: passages of three length classes, the chosen queries, and their token ids."""

import random
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.prompt import OTHER_INSTRUCTIONS, PromptTokens
from training.texts import query_variants, windows

DOCUMENT_TOKENS = (63, 151, 391)  # most tokens of a passage, for each length class
WINDOW_WORDS = (36, 92)
HEAD_TOKENS = 128  # a query of 60 tokens; 256 for wordy ones
HEAD_VARIANTS = 4  # as written, plain, key words, another instruction
KIND_CAP = {"labelled": 60_000, "title": 64_000, "keywords": 60_000, "sentence": 60_000, "request": 90_000}
CHINESE_SHARE = 0.4  # of the cap, for Chinese pseudo queries
WINDOW_BITS = (0b001, 0b010)
DICTIONARY_BITS, WHOLE_BITS = 0b011, 0b111

PUNCTUATION = re.compile(r"([.,;:()])(?=\s|$)")

Rows = tuple[np.ndarray, np.ndarray]
Unit = tuple[int, int, str]  # text number, one bit for each class that may use it, passage


def restyled(text: str, rng: random.Random) -> str:
    """A tenth in lower case, another tenth with blanks around punctuation too, as old collections are printed."""
    draw = rng.random()
    if draw < 0.1:
        return PUNCTUATION.sub(r" \1 ", text.lower()).strip()
    return text.lower() if draw < 0.2 else text


def text_units(job: tuple[int, dict[str, Any], int]) -> list[Unit]:
    """(text number, class bits, passage) of one text: the whole and its windows, some of them restyled."""
    number, row, seed = job
    rng = random.Random(f"{seed}-{number}")
    dictionary = row["source"].startswith(("dict-", "wordnet"))
    units = [(number, DICTIONARY_BITS if dictionary else WHOLE_BITS, row["text"])]
    for class_bit, words, most in zip(WINDOW_BITS, WINDOW_WORDS, (6, 3), strict=True):
        parts = windows(row["text"], words)
        if len(parts) > 1:
            chosen = sorted(rng.sample(range(len(parts)), min(most, len(parts))))
            units += [(number, class_bit, parts[i]) for i in chosen]
    return [(n, bits, restyled(text, rng)) for n, bits, text in units]


def cap_windows(units: list[Unit], cap: int, seed: int) -> list[Unit]:
    """All whole texts and a random `cap` windows of each size, in their order."""
    rng = random.Random(seed)
    dropped: set[int] = set()
    for bits in WINDOW_BITS:
        numbers = [number for number, unit in enumerate(units) if unit[1] == bits]
        dropped.update(rng.sample(numbers, max(0, len(numbers) - cap)))
    return [unit for number, unit in enumerate(units) if number not in dropped]


def ragged(rows: Iterable[list[int]]) -> tuple[Tensor, Tensor]:
    """(all values in one int16 vector, start of every row with the end appended)."""
    return join([flat(rows)])


def flat(rows: Iterable[list[int]]) -> Rows:
    """(all values, length of every row)."""
    values = array("h")
    lengths = array("i")
    for row in rows:
        values.extend(row)
        lengths.append(len(row))
    return np.frombuffer(values, dtype=np.int16), np.frombuffer(lengths, dtype=np.int32)


def join(parts: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    """(all values in one int16 vector, start of every row with the end appended) of rows read in parts."""
    values = np.concatenate([np.empty(0, np.int16), *(values for values, _ in parts)])
    lengths = np.concatenate([np.zeros(1, np.int64), *(lengths for _, lengths in parts)])
    return torch.from_numpy(values), torch.from_numpy(lengths.cumsum())


def choose_queries(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """A random choice of at most KIND_CAP queries of each kind, less for Chinese pseudo queries."""
    rng = random.Random(seed)
    rng.shuffle(rows)
    taken: Counter[tuple[str, bool]] = Counter()
    chosen = []
    for row in rows:
        key = (row["kind"], row["lang"] == "en")
        taken[key] += 1
        share = 1 if key[1] or row["kind"] == "labelled" else CHINESE_SHARE
        if taken[key] <= KIND_CAP[row["kind"]] * share:
            chosen.append(row)
    return chosen


def head_ids(tokens: PromptTokens, queries: list[str], seed: int, head_tokens: int) -> list[list[list[int]]]:
    """For each query the ids of its HEAD_VARIANTS heads, of at most `head_tokens`."""
    rng = random.Random(seed)
    variants = [query_variants(query) for query in queries]
    heads = [tokens.heads([variant[i] for variant in variants], max_tokens=head_tokens) for i in range(3)]
    instruction_of = [rng.randrange(len(OTHER_INSTRUCTIONS)) for _ in queries]
    other: list[list[int]] = [[] for _ in queries]
    for i, instruction in enumerate(OTHER_INSTRUCTIONS):
        members = [number for number, chosen in enumerate(instruction_of) if chosen == i]
        found = tokens.heads([queries[number] for number in members], instruction, head_tokens)
        for number, ids in zip(members, found, strict=True):
            other[number] = ids
    return [list(ids) for ids in zip(*heads, other, strict=True)]
