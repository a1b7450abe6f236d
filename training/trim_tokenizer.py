"""Trim the Qwen3 tokenizer to a vocabulary that a 15 MiB model can afford.

Kept: all byte tokens, Qwen3's first merges (a strict prefix), the merges that lead to `yes`, `no` and the
words of the fixed prompt, and the merges that complete the most frequent Han characters of the training
texts. A strict prefix alone holds about ten Han characters, so each Chinese character would cost two or three
tokens. Merges keep Qwen3's order and every part of a kept merge is kept, so the result is a valid BPE.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from training.prepare_data import read_jsonl
from training.prompt import DEFAULT_INSTRUCTION, prompt

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
Merge = tuple[str, str]


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte, as the ByteLevel pre-tokenizer uses it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(256 + len(table) - len(printable))
    return table


def as_bytes_token(text: str) -> str:
    table = byte_characters()
    return "".join(table[byte] for byte in text.encode())


def needed_merges(token: str, made_by: dict[str, int], merges: list[Merge]) -> set[int]:
    """Numbers of all merges on the path to `token`."""
    if token not in made_by:
        return set()
    number = made_by[token]
    left, right = merges[number]
    return {number} | needed_merges(left, made_by, merges) | needed_merges(right, made_by, merges)


def choose_merges(merges: list[Merge], han: Iterable[str], fixed: Iterable[str], prefix: int, total: int) -> list[int]:
    """The prefix, the merges of `fixed` tokens, then Han characters by frequency while there is room."""
    made_by = {left + right: number for number, (left, right) in reversed(list(enumerate(merges)))}
    chosen = set(range(min(prefix, total)))
    for token in fixed:
        chosen |= needed_merges(token, made_by, merges)
    for character in han:
        path = needed_merges(as_bytes_token(character), made_by, merges)
        if len(chosen | path) <= total:
            chosen |= path
    rest = (number for number in range(len(merges)) if number not in chosen)
    while len(chosen) < total and (number := next(rest, None)) is not None:
        if all(len(part) == 1 or made_by[part] in chosen for part in merges[number]):
            chosen.add(number)
    return sorted(chosen)


def trim(source: dict[str, Any], han: Iterable[str], prefix: int, vocabulary: int) -> dict[str, Any]:
    """The trimmed `tokenizer.json`; `source` is Qwen3's."""
    merges: list[Merge] = [tuple(merge) for merge in source["model"]["merges"]]
    qwen = Tokenizer.from_str(json.dumps(source))
    specials = [entry for entry in source["added_tokens"] if entry["content"] in SPECIAL_TOKENS]
    names = {entry["content"] for entry in source["added_tokens"]}
    fixed = [token for token in qwen.encode(prompt("", "", DEFAULT_INSTRUCTION)).tokens if token not in names]
    total = vocabulary - 256 - len(specials)
    numbers = choose_merges(merges, han, [*fixed, "yes", "no"], prefix, total)
    tokens = [*byte_characters().values()]
    tokens.sort(key=lambda token: source["model"]["vocab"][token])
    tokens += ["".join(merges[number]) for number in numbers]
    kept = {token: index for index, token in enumerate(tokens)}
    trimmed = {**source, "model": {**source["model"], "vocab": kept, "merges": [list(merges[n]) for n in numbers]}}
    trimmed["added_tokens"] = [{**entry, "id": len(kept) + index} for index, entry in enumerate(specials)]
    return trimmed


def tokenizer_config(source: dict[str, Any], tokenizer: dict[str, Any]) -> dict[str, Any]:
    kept = {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in tokenizer["added_tokens"]
    }
    return {
        **source,
        "added_tokens_decoder": kept,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "model_max_length": 8192,
        "padding_side": "left",
    }


def han_by_frequency(texts: Iterable[str]) -> list[str]:
    counts = Counter(
        char
        for text in texts
        for char in text
        if "\u3400" <= char <= "\u9fff" or char in "，。、；：？！（）《》「」“”"  # noqa: RUF001
    )
    return [char for char, count in counts.most_common() if count > 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--qwen3", type=Path, required=True, help="folder with Qwen3's tokenizer.json and tokenizer_config.json"
    )
    parser.add_argument("--data", type=Path, required=True, help="output folder of training.prepare_data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prefix", type=int, default=10_200, help="number of Qwen3's first merges to keep")
    parser.add_argument("--vocabulary", type=int, default=14_464, help="all tokens, bytes and special tokens included")
    arguments = parser.parse_args()
    rows = read_jsonl(arguments.data / "texts.jsonl.gz")
    han = han_by_frequency(row["text"] for row in rows if row["lang"].startswith("zh"))
    source = json.loads((arguments.qwen3 / "tokenizer.json").read_text("utf-8"))
    trimmed = trim(source, han, arguments.prefix, arguments.vocabulary)
    config = json.loads((arguments.qwen3 / "tokenizer_config.json").read_text("utf-8"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tokenizer.json").write_text(json.dumps(trimmed, ensure_ascii=False), "utf-8")
    text = json.dumps(tokenizer_config(config, trimmed), ensure_ascii=False, indent=1)
    (arguments.out / "tokenizer_config.json").write_text(text + "\n", "utf-8")
    print(f"{len(trimmed['model']['vocab']) + len(trimmed['added_tokens'])} tokens")


if __name__ == "__main__":
    main()
