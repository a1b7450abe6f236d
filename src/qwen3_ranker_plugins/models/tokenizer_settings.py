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
from ..prompt.tokenizer import has_split_of_qwen
from .config_settings import check_own_code
from .json_files import read_json, shortened

# Classes that make ids as tokenizer.json says, except that Qwen's bring their own normalizer and pre-tokenizer. For the
# base class PreTrainedTokenizer, AutoTokenizer makes a TokenizersBackend too.
_QWEN = re.compile(r"Qwen[23]\w*Tokenizer(Fast)?")
GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer")
_NORMALIZER = {"type": "NFC"}
#: Settings of the model in tokenizer.json that transformers replaces by these, which are the defaults, for Qwen.
_MERGING = {"type": "BPE", "unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
#: Text -> its symbols, one after another, by any tokenizer of bytes such as Qwen's.
_ENDS = {"yes": "yes", " yes": "Ġyes", "yes ": "yesĠ", "\nyes\n": "ĊyesĊ"}
_REMEDY = "save the tokenizer again with AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"


def check_tokenizer(folder: Path) -> None:
    """Make sure that tokenizer.json alone says how this folder's texts become ids.

    Raises:
        UnsupportedModelError: a setting changes the ids; the message names it and says what to do.
    """
    path = folder / "tokenizer_config.json"
    said = read_tokenizer_config(folder)
    file = folder / "config.json"
    config = read_json(file) if is_listed(file) else {}
    place, kind = path, said.get("tokenizer_class")
    if kind is None:
        place, kind = file, config.get("tokenizer_class")
    if kind is not None and kind not in GENERAL and not _QWEN.fullmatch(str(kind)):
        raise UnsupportedModelError(
            f"{place} says tokenizer_class={kind!r}, which is not a tokenizer of Qwen: use the tokenizer of the "
            "checkpoint's base"
        )
    check_own_code(path, said, "Auto(Tokenizer|Processor)")
    check_own_code(file, config, "Auto(Tokenizer|Processor)")
    for name in ("add_prefix_space", "split_special_tokens", "fast_tokenizer_files"):
        if said.get(name):
            raise UnsupportedModelError(
                f"{path} says {name}={said[name]!r}, so texts become other tokens than in the model's training: remove "
                "the setting"
            )
    tokenizer = load_tokenizer(folder)
    # transformers uses Qwen's class for a Qwen2 model whatever the files say.
    is_rebuilt = kind not in GENERAL or config.get("model_type") == "qwen2"
    if is_rebuilt:
        _check_steps(folder, tokenizer)
    _check_ends(folder, tokenizer)
    _check_added_words(folder, said, tokenizer, all_listed=is_rebuilt)


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and special_tokens_map.json where transformers reads that."""
    path, older = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    said = read_json(path) if is_listed(path) else {}
    return said | read_json(older) if "added_tokens_decoder" not in said and is_listed(older) else said


def _check_steps(folder: Path, tokenizer: ModelTokenizer) -> None:
    normalizer, pre_tokenizer = (
        None if step is None else json.loads(step.__getstate__())
        for step in (tokenizer.plain.normalizer, tokenizer.plain.pre_tokenizer)
    )
    usual = has_split_of_qwen(pre_tokenizer)
    if normalizer != _NORMALIZER or not usual:
        changed = "pre_tokenizer" if normalizer == _NORMALIZER else "normalizer"
        raise UnsupportedModelError(
            f"{folder}/tokenizer.json has another {changed} than Qwen's tokenizer, and transformers would replace it "
            f"by Qwen's: {_REMEDY}, or, if the difference is intended, set tokenizer_class to "
            "'PreTrainedTokenizerFast' in tokenizer_config.json"
        )
    for name, due in _MERGING.items():
        if (value := tokenizer.merging.get(name, due)) != due:
            raise UnsupportedModelError(
                f"{folder}/tokenizer.json says model.{name}={value!r}, and transformers would replace it by Qwen's "
                f"{due!r}: {_REMEDY}, or, if the difference is intended, set tokenizer_class to "
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


def _check_added_words(folder: Path, said: dict[str, Any], tokenizer: ModelTokenizer, *, all_listed: bool) -> None:
    """Make sure that the other files add no token, and recognize each as tokenizer.json does.

    Args:
        folder: of the tokenizer.
        said: see `read_tokenizer_config`.
        tokenizer: tokenizer.json.
        all_listed: whether a list of added tokens in tokenizer_config.json replaces that of tokenizer.json.
    """
    path, older = folder / "tokenizer_config.json", folder / "added_tokens.json"
    known = {token["content"]: token for token in tokenizer.added_tokens}
    named = list(_special_tokens(said))
    for name, content in named:
        if content not in known:
            raise UnsupportedModelError(
                f"{path} (or special_tokens_map.json) names {content!r} as {name}, which is not among the added_tokens "
                "of tokenizer.json; transformers would cut every text at it: remove the setting, or name a token of "
                "tokenizer.json, such as '<|endoftext|>'"
            )
    if "added_tokens_decoder" in said:
        listed = _check_decoder(path, said["added_tokens_decoder"] or {}, tokenizer)
        if all_listed and (lost := sorted(known.keys() - listed - {content for _, content in named})):
            raise UnsupportedModelError(
                f"{path} lists the added tokens in added_tokens_decoder without {lost[0]!r}, which tokenizer.json has, "
                "so it is unclear whether texts have the token: remove added_tokens_decoder, or add the entry"
            )
    elif is_listed(older):
        for content, number in read_json(older).items():
            _check_listed(older, older.name, content, str(number), tokenizer)


def _check_decoder(path: Path, listed: Any, tokenizer: ModelTokenizer) -> set[str]:
    """The contents of added_tokens_decoder, if each entry is as in tokenizer.json."""
    known = {token["content"]: token for token in tokenizer.added_tokens}
    if not isinstance(listed, dict):
        raise UnsupportedModelError(
            f"{path} says added_tokens_decoder={shortened(listed)}, which is no object: {_REMEDY}"
        )
    contents: set[str] = set()
    for number, token in listed.items():
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str):
            raise UnsupportedModelError(
                f"{path} says added_tokens_decoder.{number}={shortened(token)}, which has no content: remove the "
                "entry, because tokenizer.json lists the tokens too"
            )
        contents.add(content)
        _check_listed(path, "added_tokens_decoder", content, number, tokenizer)
        for name in ("single_word", "lstrip", "rstrip", "normalized"):
            # transformers normalizes a text before it looks for a token that is not special.
            value = token.get(name, name == "normalized" and not token.get("special"))
            if bool(value) != known[content].get(name):
                raise UnsupportedModelError(
                    f"{path} says {name}={value!r} of the token {content!r}, and tokenizer.json says "
                    f"{known[content].get(name)}, so it is unclear in which texts it is recognized: {_REMEDY}"
                )
    return contents


def _check_listed(path: Path, setting: str, content: str, number: str, tokenizer: ModelTokenizer) -> None:
    """Make sure that tokenizer.json has an added token, with the same id."""
    found = [token["id"] for token in tokenizer.added_tokens if token["content"] == content]
    if not found:
        other = tokenizer.text_of(int(number)) if number.isdecimal() else None
        remedy = _REMEDY if other is None else f"that is the id of {other!r} there, so remove the entry"
        raise UnsupportedModelError(
            f"{path} adds the token {content!r} ({number}) in {setting}, which tokenizer.json does not have: {remedy}"
        )
    if str(found[-1]) != number:
        raise UnsupportedModelError(
            f"{path} gives the token {content!r} the id {number} in {setting}, and tokenizer.json gives it "
            f"{found[-1]}: write the latter in both, or use the tokenizer of the checkpoint's base"
        )


def _special_tokens(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name of the setting, content) of each token that a tokenizer_config.json makes special."""
    for name, value in said.items():
        if name in ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"):
            values = list(value.values()) if isinstance(value, dict) else value
        elif name.endswith("_token"):  # transformers adds those of images, too
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
