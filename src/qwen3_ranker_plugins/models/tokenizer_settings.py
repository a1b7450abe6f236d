"""Checks that tokenizer_config.json does not contradict tokenizer.json.

transformers makes token ids from both files, this package from tokenizer.json only. If tokenizer_config.json would
change the ids of a document, the folder is refused, because the two libraries would score the document differently, and
it would be unclear which one is right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError
from ..model_files import is_listed
from ..prompt import ModelTokenizer, load_tokenizer
from ..prompt.tokenizer import QWEN_SPLIT
from .json_files import read_json, shortened

# Classes that make ids as tokenizer.json says, except that Qwen's bring their own normalizer and pre-tokenizer.
_QWEN = re.compile(r"Qwen[23]\w*Tokenizer(Fast)?")
_GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")
_NORMALIZER = {"type": "NFC"}
#: Text -> its symbols, one after another, by any tokenizer of bytes such as Qwen's.
_ENDS = {"yes": "yes", " yes": "Ġyes", "yes ": "yesĠ", "\nyes\n": "ĊyesĊ"}
_REMEDY = "save the tokenizer again with AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"


def check_tokenizer(folder: Path) -> None:
    """Make sure that tokenizer.json alone says how this folder's texts become ids.

    Raises:
        UnsupportedModelError: a setting changes the ids; the message names it and says what to do.
    """
    path = folder / "tokenizer_config.json"
    said = read_json(path) if is_listed(path) else {}
    kind = said.get("tokenizer_class")
    if kind is not None and kind not in _GENERAL and not _QWEN.fullmatch(str(kind)):
        raise UnsupportedModelError(
            f"{path} says tokenizer_class={kind!r}, which is not a tokenizer of Qwen: use the tokenizer of the "
            "checkpoint's base"
        )
    for name in ("add_prefix_space", "split_special_tokens"):
        if said.get(name):
            raise UnsupportedModelError(
                f"{path} says {name}={said[name]!r}, so texts become other tokens than in the model's training: set it "
                "to false"
            )
    tokenizer = load_tokenizer(folder)
    if kind not in _GENERAL:
        _check_steps(folder, tokenizer)
    _check_ends(folder, tokenizer)
    _check_added_words(path, said, tokenizer)


def _check_steps(folder: Path, tokenizer: ModelTokenizer) -> None:
    normalizer, pre_tokenizer = (
        None if step is None else json.loads(step.__getstate__())
        for step in (tokenizer.plain.normalizer, tokenizer.plain.pre_tokenizer)
    )
    steps = (pre_tokenizer or {}).get("pretokenizers", [])
    usual = (
        [step.get("type") for step in steps] == ["Split", "ByteLevel"]
        and steps[0].get("pattern") == {"Regex": QWEN_SPLIT}
        and not steps[1].get("add_prefix_space")
    )
    if normalizer != _NORMALIZER or not usual:
        changed = "pre_tokenizer" if normalizer == _NORMALIZER else "normalizer"
        raise UnsupportedModelError(
            f"{folder}/tokenizer.json has another {changed} than Qwen's tokenizer, and transformers would replace it "
            f"by Qwen's: {_REMEDY}, or, if the difference is intended, set tokenizer_class to "
            "'PreTrainedTokenizerFast' in tokenizer_config.json"
        )


def _check_ends(folder: Path, tokenizer: ModelTokenizer) -> None:
    """Make sure that nothing is added to or removed from the ends of a text, since prompts are encoded in pieces."""
    for text, due in _ENDS.items():
        tokens = tokenizer.plain.encode(text, add_special_tokens=False).tokens
        found = "".join(tokens)
        if found != due and set(tokens).isdisjoint(tokenizer.vocabulary):  # white space may belong to an added word
            raise UnsupportedModelError(
                f"{folder}/tokenizer.json changes the ends of a text ({text!r} becomes {found!r}), so the ids of a "
                "prompt depend on where it is divided: use the tokenizer of the checkpoint's base"
            )


def _check_added_words(path: Path, said: dict[str, Any], tokenizer: ModelTokenizer) -> None:
    """Make sure that tokenizer_config.json adds no token and recognizes none differently than tokenizer.json does."""
    known = {token["content"]: token for token in tokenizer.added_tokens}
    listed = said.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise UnsupportedModelError(
            f"{path} says added_tokens_decoder={shortened(listed)}, which is no object: {_REMEDY}"
        )
    for number, token in listed.items():
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str):
            raise UnsupportedModelError(
                f"{path} says added_tokens_decoder.{number}={shortened(token)}, which has no content: remove the "
                "entry, because tokenizer.json lists the tokens too"
            )
        if content not in known:
            other = tokenizer.text_of(int(number)) if number.isdecimal() else None
            remedy = _REMEDY if other is None else f"that is the id of {other!r} there, so remove the entry"
            raise UnsupportedModelError(
                f"{path} adds the token {content!r} ({number}) in added_tokens_decoder, which tokenizer.json does not "
                f"have: {remedy}"
            )
        if str(known[content]["id"]) != number:
            raise UnsupportedModelError(
                f"{path} gives the token {content!r} the id {number} in added_tokens_decoder, and tokenizer.json gives "
                f"it {known[content]['id']}: write the latter in both, or use the tokenizer of the checkpoint's base"
            )
        for name in ("single_word", "lstrip", "rstrip"):
            if bool(token.get(name)) != known[content][name]:
                raise UnsupportedModelError(
                    f"{path} says {name}={token.get(name)!r} of the token {content!r}, and tokenizer.json says "
                    f"{known[content][name]}, so it is unclear which white space belongs to it: {_REMEDY}"
                )
    for name, content in _special_tokens(said):
        if content not in known:
            raise UnsupportedModelError(
                f"{path} names {content!r} as {name}, which is not among the added_tokens of tokenizer.json; "
                "transformers would cut every text at it: remove the setting, or name a token of tokenizer.json, such "
                "as '<|endoftext|>'"
            )


def _special_tokens(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name of the setting, content) of each token that a tokenizer_config.json makes special."""
    for name, value in said.items():
        if name in ("additional_special_tokens", "extra_special_tokens"):
            values = list(value.values()) if isinstance(value, dict) else value
        elif re.fullmatch(r"(bos|eos|unk|sep|pad|cls|mask)_token", name):
            values = [value]
        else:
            continue
        for each in values if isinstance(values, list) else ():
            content = each.get("content") if isinstance(each, dict) else each
            if isinstance(content, str) and content:
                yield name, content


def check_adapters_tokenizer(adapter: Path, base: Path) -> None:
    """Make sure that an adapter was trained with the tokens of its base, if its folder has a tokenizer.

    Raises:
        UnsupportedModelError: the adapter adds tokens; the message says how to merge them.
    """
    if not is_listed(adapter / "tokenizer.json"):
        return
    theirs, ours = load_tokenizer(adapter), load_tokenizer(base)
    added = (set(theirs.vocabulary) | set(theirs.control)) - set(ours.vocabulary) - set(ours.control)
    if added:
        raise UnsupportedModelError(
            f"{adapter} was trained with tokens that its base {base} does not have ({', '.join(sorted(added)[:3])}): "
            "load the base with peft, call resize_token_embeddings, merge_and_unload and save_pretrained, save the "
            "adapter's tokenizer there, and give that folder as model"
        )
