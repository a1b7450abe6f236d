"""The tokenizer of Qwen3 without a hub: rebuilt from the vocabulary inside the package `dashscope` (Apache-2.0).

Qwen's models share one byte-level BPE since the first of them. The package stores it as a list of byte strings in
order of rank; merges follow from the ranks, because a pair is merged in the order of the rank of what it makes.
`tests/golden/make_prompts.py --check` compares the result with an original tokenizer.json where one is at hand.
"""

from __future__ import annotations

import base64
import json
from importlib.util import find_spec
from pathlib import Path

_CONTROL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
).split()
_FIRST_NOT_SPECIAL = _CONTROL.index("<tool_call>")
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_qwen3_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    spec = find_spec("dashscope")
    assert spec is not None, "pip install dashscope (in the test group)"
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    ranks = {base64.b64decode(line.split()[0]): rank for rank, line in enumerate(file.read_bytes().splitlines())}

    # Byte-level BPE spells printable bytes as themselves and the others as characters from U+0100 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}

    def spell(token: bytes) -> str:
        return token.decode("latin-1").translate(letters)

    merges = []
    for token in ranks:
        cuts = range(1, len(token))
        known = [(token[:cut], token[cut:]) for cut in cuts if token[:cut] in ranks and token[cut:] in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    specification = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(ranks) + number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": number < _FIRST_NOT_SPECIAL,
            }
            for number, content in enumerate(_CONTROL)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {spell(token): rank for token, rank in ranks.items()},
            "merges": [[spell(left), spell(right)] for left, right in merges],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(specification), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
