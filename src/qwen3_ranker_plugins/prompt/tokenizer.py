"""A model's tokenizer without control tokens, for text from outside, and the ids of control tokens, for templates."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Self

from tokenizers import Tokenizer
from tokenizers.models import BPE

from ..errors import UnsupportedModelError
from ..model_files import is_listed, read_text, remedy_of_reading

_LOOKS_LIKE_CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>|</?think>")
# Qwen's own added tokens steer a model (<|im_end|>, </think>, <tool_call>), whether they are marked special or not.
_OF_QWEN = re.compile(r"<\|.*\|>|</?(think|tool_call|tool_response|tts_\w+)>", re.DOTALL)
#: Field of an entry of added_tokens -> its type, and what it is.
_ADDED: dict[str, tuple[type, str]] = {
    "id": (int, "an id"),
    "content": (str, "a text"),
    "special": (bool, "true or false"),
    "single_word": (bool, "true or false"),
    "lstrip": (bool, "true or false"),
    "rstrip": (bool, "true or false"),
}
_log = logging.getLogger(__name__)


#: How Qwen2 and Qwen3 split a text into pieces (their tokenizer.json).
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def has_split_of_qwen(pre_tokenizer: object) -> bool:
    """Whether the pre-tokenizer of a tokenizer.json is Qwen's."""
    pieces = {"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": False}
    match pre_tokenizer:
        case {"pretokenizers": [first, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}:
            return bool(first == pieces)
    return False


class _Neighbours(NamedTuple):
    """How an added token depends on the characters next to it.

    Attributes:
        alone: it is recognized only as a separate word.
        with_blanks_before, with_blanks_after: white space next to it belongs to it.
    """

    alone: bool
    with_blanks_before: bool
    with_blanks_after: bool

    @classmethod
    def of(cls, token: Mapping[str, Any]) -> Self:
        """From an entry of `added_tokens` in tokenizer.json."""
        return cls(bool(token["single_word"]), bool(token["lstrip"]), bool(token["rstrip"]))


def _is_no_word(character: str) -> bool:
    r"""Whether `\w` of the tokenizers library, which includes some symbols, certainly does not match a character."""
    return character.isspace() or unicodedata.category(character) in {"Pd", "Ps", "Pe", "Pi", "Pf", "Po"}


class ModelTokenizer:
    """The two sides of a model's tokenizer.json: `plain` for text from outside, `control` ids for templates.

    Added tokens that are special, and Qwen's own such as `</think>`, are control tokens: no text from outside becomes
    one. Other added tokens are vocabulary, such as the names of products or the `[TITLE]` that a fine-tune was taught,
    and are recognized in every text.

    Attributes:
        plain: the tokenizer without control tokens.
        control: content of each control token -> id.
        vocabulary: contents of the other added tokens.
        added_tokens: the entries of tokenizer.json from which both were taken.
        merging: the settings of the tokenizer's model in tokenizer.json, apart from its vocabulary and its merges.
        words_end_alone: whether a piece of the pre-tokenizer ends after a word whatever surrounds it; only known of
            Qwen's own pattern, without added words.

    Raises:
        UnsupportedModelError: no tokenizer.json, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not is_listed(path):
            raise UnsupportedModelError(
                f"{folder} has no tokenizer.json: write one with AutoTokenizer.from_pretrained(...).save_pretrained()"
            )
        text = read_text(path)
        try:
            specification = json.loads(text)
            self.added_tokens: list[dict[str, Any]] = specification["added_tokens"]
            added = self.added_tokens
            _check_added(path, added)
            ordinary = [token for token in added if not (token["special"] or _OF_QWEN.fullmatch(token["content"]))]
            self.vocabulary: tuple[str, ...] = tuple(token["content"] for token in ordinary)
            self._neighbours = {token["content"]: _Neighbours.of(token) for token in ordinary}
            self.control: dict[str, int] = {
                token["content"]: token["id"] for token in added if token["content"] not in self.vocabulary
            }
            if ordinary:
                # Ids of added tokens are counted from the size of the vocabulary when the tokenizer is built. So
                # control tokens become entries of the vocabulary, to which no merge leads.
                specification["model"]["vocab"] |= self.control
            # Truncation and padding stored in the file would cut suffixes off; both are decided here. Dropout, which
            # belongs to training, would split a word differently at every call.
            specification["model"]["dropout"] = None
            self.merging = {
                name: each for name, each in specification["model"].items() if name not in ("vocab", "merges")
            }
            specification |= {"added_tokens": ordinary, "truncation": None, "padding": None, "post_processor": None}
            _check_prefix(path, specification["model"])
            self.plain: Tokenizer = Tokenizer.from_str(json.dumps(specification))
            self.words_end_alone = (
                not ordinary
                and specification.get("normalizer") in (None, {"type": "NFC"})
                and has_split_of_qwen(specification.get("pre_tokenizer"))
            )
        except UnsupportedModelError:
            raise
        except BaseException as error:
            # tokenizers raises nothing more specific than Exception, and a panic in Rust is not even that.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UnsupportedModelError(
                f"{path} cannot be read ({type(error).__name__}: {error}); {remedy_of_reading(error)}"
            ) from error
        for token in ordinary:
            self._check_id(path, token["content"], token["id"])
        for content, token_id in self.control.items():
            if token_id in self.encode(content):
                raise UnsupportedModelError(
                    f"{path} encodes the text {content!r} as the control token {token_id}, so that a document could "
                    "forge its judgement; use the tokenizer of a Qwen3-Reranker checkpoint"
                )
        if self.plain.pre_tokenizer is None:
            raise UnsupportedModelError(f"{path} has no pre-tokenizer, so it is not a Qwen tokenizer")
        self._warn_of_special_words(path)

    def _check_id(self, path: Path, content: str, token_id: int) -> None:
        """Make sure that an added token has the id that the library gives it, which counts on from the vocabulary."""
        if self.plain.token_to_id(content) == token_id:
            return
        other = self.text_of(token_id)
        why = "does not follow the ids of all other tokens" if other is None else f"is that of {other!r}"
        raise UnsupportedModelError(
            f"{path} gives the added token {content!r} the id {token_id}, which {why}: remove it from added_tokens, or "
            "use the tokenizer with which the model was trained"
        )

    def _warn_of_special_words(self, path: Path) -> None:
        if own := sorted(content for content in self.control if not _OF_QWEN.fullmatch(content)):
            _log.warning(
                "%s marks %s as special, so that no document can contain the token: there its text is read as plain "
                "text. If documents had the token in training, add it with add_tokens(..., special_tokens=False)",
                path,
                ", ".join(map(repr, own[:3])) + (", ..." if len(own) > 3 else ""),
            )

    def find(self, text: str) -> int | None:
        """The id of a text that is one token; None if it is several."""
        ids = self.plain.encode(text, add_special_tokens=False).ids
        return int(ids[0]) if len(ids) == 1 else None

    def text_of(self, token_id: int) -> str | None:
        """The text of a token; None if there is no such id."""
        if token_id in self.control.values():
            return next(content for content, each in self.control.items() if each == token_id)
        text = self.plain.decode([token_id], skip_special_tokens=False)
        return text if self.plain.id_to_token(token_id) is not None else None

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, including the content of control tokens. A character that is cut in two becomes U+FFFD."""
        contents = {token_id: content for content, token_id in self.control.items()}
        parts: list[str] = []
        for is_control, group in groupby(ids, contents.__contains__):
            run = list(group)
            parts += (
                map(contents.__getitem__, run) if is_control else [self.plain.decode(run, skip_special_tokens=False)]
            )
        return "".join(parts)

    @property
    def yes_id(self) -> int:
        """Id of `yes`, a label of Qwen3-Reranker."""
        return self._label("yes")

    @property
    def no_id(self) -> int:
        """Id of `no`, a label of Qwen3-Reranker."""
        return self._label("no")

    def _label(self, word: str) -> int:
        ids = self.plain.encode(word, add_special_tokens=False).ids
        if len(ids) != 1:
            raise UnsupportedModelError(
                f"the tokenizer splits {word!r} into {len(ids)} tokens {ids}, so there is no single logit to read: use "
                "a Qwen3-Reranker checkpoint"
            )
        return int(ids[0])

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(token) for token in sorted(self.control, key=len, reverse=True)) or "(?!)")

    def split_control(self, text: str) -> list[str | int]:
        """A template's own text as a list of plain texts and control token ids."""
        pieces: list[str | int] = []
        position = 0
        for match in self._control_pattern.finditer(text):
            if match.start() > position:
                pieces.append(text[position : match.start()])
            pieces.append(self.control[match.group()])
            position = match.end()
        if position < len(text):
            pieces.append(text[position:])
        for piece in pieces:
            if isinstance(piece, str) and (stray := _LOOKS_LIKE_CONTROL_TOKEN.search(piece)):
                raise UnsupportedModelError(
                    f"the template uses {stray.group()!r}, which the model's tokenizer does not know: "
                    "use a Qwen3 tokenizer or another template"
                )
        return pieces

    def splits_vocabulary(self, text: str, position: int) -> bool:
        """Whether a cut at `position` may lie inside a word of `vocabulary`, which may end after `text` does.

        This is also true if a word touches the cut, and the character on the other side belongs to it or decides
        whether it is recognized.

        Args:
            text: any text.
            position: more than 0, less than its length.
        """
        before, after = text[position - 1], text[position]

        def begins(word: str, first: int) -> bool:
            return first >= 0 and (text.startswith(word, first) or word.startswith(text[first:]))

        for word, neighbours in self._neighbours.items():
            if any(begins(word, first) for first in range(max(0, position - len(word) + 1), position)):
                return True
            if neighbours.alone or neighbours.with_blanks_after:
                ends = text.startswith(word, position - len(word)) if position >= len(word) else False
                if ends and (
                    (neighbours.alone and not _is_no_word(after)) or (neighbours.with_blanks_after and after.isspace())
                ):
                    return True
            if begins(word, position) and (
                (neighbours.alone and not _is_no_word(before)) or (neighbours.with_blanks_before and before.isspace())
            ):
                return True
        return False

    @cached_property
    def takes_blanks_after(self) -> set[int]:
        """Ids of the words of `vocabulary` to which the white space after them belongs."""
        words = [word for word, neighbours in self._neighbours.items() if neighbours.with_blanks_after]
        return {token_id for word in words if (token_id := self.plain.token_to_id(word)) is not None}

    @cached_property
    def highest_id(self) -> int:
        """The highest id of any token."""
        return max(*self.plain.get_vocab().values(), *self.control.values(), 0)

    @cached_property
    def longest_added(self) -> int:
        """Characters of the longest word of `vocabulary`; 0 if there is none."""
        return max(map(len, self.vocabulary), default=0)

    @cached_property
    def longest_token(self) -> int:
        """Symbols of the longest token that merges produce; with a byte-level tokenizer, a symbol is a byte."""
        return max(map(len, self.plain.get_vocab(with_added_tokens=False)))

    @cached_property
    def split_piece(self) -> Callable[[str], list[str]] | None:
        """Splits a pre-tokenizer's piece, as symbols, into tokens; None unless the priority of merges alone decides."""
        model = self.plain.model
        if not isinstance(model, BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
            return None
        return lambda symbols: [token.value for token in model.tokenize(symbols)]

    def normalize(self, text: str) -> str:
        """The text as the tokenizer's normalizer leaves it (NFC for Qwen3)."""
        text = as_utf8(text)
        normalizer = self.plain.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def encode(self, *pieces: str | int) -> list[int]:
        """Ids of texts, each encoded on its own, and of control tokens, which are passed as ids, in the order given.

        The calling thread encodes, because a batch call would wake a thread on each core, which takes 0.5 ms.
        """
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self.plain.encode(as_utf8(piece), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, none of them a control token."""
        encodings = self.plain.encode_batch_fast([as_utf8(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _check_added(path: Path, added: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that added tokens are described in the types of the format, because ids are compared and looked up."""
    for place, token in enumerate(added):
        for name, (kind, what) in _ADDED.items():
            value = token[name]
            if type(value) is not kind or value == "" or (name == "id" and token["id"] < 0):
                raise UnsupportedModelError(
                    f"{path} says added_tokens.{place}.{name}={value!r}, which is not {what}: write the value that the "
                    "checkpoint's base has, or download the file again"
                )


def _check_prefix(path: Path, model: Mapping[str, Any]) -> None:
    if prefix := model.get("continuing_subword_prefix"):
        raise UnsupportedModelError(
            f"{path} says model.continuing_subword_prefix={prefix!r}, which is not supported, because Qwen's tokens "
            "have none: if the model was trained without it, write null there, else use a checkpoint with Qwen's "
            "tokenizer"
        )


def load_tokenizer(folder: Path) -> ModelTokenizer:
    """The tokenizer of a model folder; loaded once per process, since the full one takes a second.

    Raises:
        UnsupportedModelError: see `ModelTokenizer`.
    """
    path = folder / "tokenizer.json"
    return _load_tokenizer(folder, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=4)
def _load_tokenizer(folder: Path, _modified_ns: int) -> ModelTokenizer:
    return ModelTokenizer(folder)


def as_utf8(text: str) -> str:
    """The text with lone surrogates, which have no UTF-8 form, replaced by U+FFFD as the web platform does."""
    if text.isascii():  # known without looking at the text
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
