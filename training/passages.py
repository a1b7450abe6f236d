"""What mining works on: passages of three length classes, the chosen queries, and their token ids."""

import random
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.languages import translated, words_for
from training.perturb import misspelt, title_case, without_diacritics
from training.prompt import COMPACT, CONTRADICTIONS, DEFAULT_INSTRUCTION, HF, OTHER_INSTRUCTIONS, PromptTokens
from training.texts import query_variants, windows

DOCUMENT_TOKENS = (63, 151, 391, 1000)  # most tokens of a passage, for each length class
WINDOW_WORDS = (36, 92)
HEAD_TOKENS = 128  # a query of 60 tokens; 256 for wordy ones
# As written, plain, key words, capitals, title case, misspelt, another instruction, compact, a template in capitals or
# another, an instruction that contradicts. Only these before RENAMEABLE have the standard prompt's beginning.
HEAD_VARIANTS = 10
RENAMEABLE, CONTRADICTING = 6, 9
DOCUMENT_VARIANTS = 4  # as written, capitals, title case, lower case with slips and without diacritics
DOCUMENT_ERRORS = 0.08
KIND_CAP = {"labelled": 60_000, "title": 64_000, "keywords": 60_000, "sentence": 60_000, "request": 90_000}
OTHER_SHARE = 0.8  # of the cap, for pseudo queries that are not English
WINDOW_BITS = (0b001, 0b010)
DICTIONARY_BITS, WHOLE_BITS = 0b0011, 0b1111

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
        size = words_for(row["lang"], words) if translated(row["lang"]) else words
        parts = windows(row["text"], size)
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
    """A random choice of at most KIND_CAP queries of each kind, less for pseudo queries that are not English."""
    rng = random.Random(seed)
    rng.shuffle(rows)
    taken: Counter[tuple[str, bool]] = Counter()
    chosen = []
    for row in rows:
        key = (row["kind"], row["lang"] == "en")
        taken[key] += 1
        share = 1 if key[1] or row["kind"] == "labelled" else OTHER_SHARE
        if taken[key] <= KIND_CAP[row["kind"]] * share:
            chosen.append(row)
    return chosen


def document_variants(text: str, rng: random.Random) -> list[str]:
    """DOCUMENT_VARIANTS spellings of a passage, the first as written."""
    slips = misspelt(without_diacritics(text).lower(), rng, DOCUMENT_ERRORS)
    return [text, text.upper(), title_case(text), slips]


def head_ids(tokens: PromptTokens, queries: list[str], seed: int, head_tokens: int) -> list[list[list[int]]]:
    """For each query the ids of its HEAD_VARIANTS heads, of at most `head_tokens`."""
    rng = random.Random(seed)
    variants = [query_variants(query) for query in queries]
    standard = [
        *zip(*variants, strict=True),
        [query.upper() for query in queries],
        [title_case(rng.choice(variant)) for variant in variants],
        [misspelt(without_diacritics(rng.choice(variant)), rng, 0.2) for variant in variants],
    ]
    heads = [tokens.heads(list(spelt), max_tokens=head_tokens) for spelt in standard]

    def chosen(instructions: tuple[str, ...], build: Callable[[list[str], str], list[list[int]]]) -> list[list[int]]:
        """Heads with an instruction chosen for each query."""
        instruction_of = [rng.randrange(len(instructions)) for _ in queries]
        found: list[list[int]] = [[] for _ in queries]
        for i, instruction in enumerate(instructions):
            members = [number for number, choice in enumerate(instruction_of) if choice == i]
            if members:
                built = build([queries[number] for number in members], instruction)
                for number, ids in zip(members, built, strict=True):
                    found[number] = ids
        return found

    def standard_prompt(some: list[str], instruction: str) -> list[list[int]]:
        return tokens.heads(some, instruction, head_tokens)

    def other_prompt(some: list[str], instruction: str) -> list[list[int]]:
        return tokens.other_heads(some, COMPACT, instruction, head_tokens)

    spelt = [rng.choice((plain.upper(), plain, key, title_case(query))) for query, plain, key in variants]
    compact = tokens.other_heads(spelt, COMPACT, DEFAULT_INSTRUCTION, head_tokens)
    newline = tokens.other_heads(spelt, HF, DEFAULT_INSTRUCTION, head_tokens)
    heads += [
        chosen(OTHER_INSTRUCTIONS, standard_prompt),
        chosen((DEFAULT_INSTRUCTION,) * 4 + OTHER_INSTRUCTIONS, other_prompt),
        [rng.choice(pair) for pair in zip(compact, newline, strict=True)],
        chosen(CONTRADICTIONS, standard_prompt),
    ]
    return [list(ids) for ids in zip(*heads, strict=True)]
