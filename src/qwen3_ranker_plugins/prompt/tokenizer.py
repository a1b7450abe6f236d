"""A model's tokenizer: plain text for what comes from outside, ids of control tokens for templates."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from ..errors import UnsupportedModelError

_LOOKS_LIKE_CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>|</?think>")


class ModelTokenizer:
    """The two sides of a model's tokenizer.json: `plain` for text from outside, `control` ids for templates.

    Attributes:
        plain: the tokenizer without its added tokens; no text can produce a control token with it.
        control: content of each added token -> id.
        yes_id, no_id: ids of the labels.

    Raises:
        UnsupportedModelError: no tokenizer.json, or `yes` or `no` is not one token.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UnsupportedModelError(
                f"{folder} has no tokenizer.json: write one with AutoTokenizer.from_pretrained(...).save_pretrained()"
            )
        try:
            specification = json.loads(path.read_text(encoding="utf-8"))
            self.control: dict[str, int] = {token["content"]: token["id"] for token in specification["added_tokens"]}
            # Truncation and padding stored in the file would cut suffixes off; both are decided here.
            specification |= {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
            self.plain: Tokenizer = Tokenizer.from_str(json.dumps(specification))
        except Exception as error:  # tokenizers raises nothing more specific
            raise UnsupportedModelError(
                f"{path} cannot be read ({type(error).__name__}: {error}); download it again"
            ) from error
        if self.plain.pre_tokenizer is None:
            raise UnsupportedModelError(f"{path} has no pre-tokenizer, so it is not a Qwen3 tokenizer")
        self.yes_id, self.no_id = (self._label(folder, word) for word in ("yes", "no"))

    def _label(self, folder: Path, word: str) -> int:
        ids = self.plain.encode(word, add_special_tokens=False).ids
        if len(ids) != 1:
            raise UnsupportedModelError(
                f"{folder} is not a yes/no reranker: its tokenizer splits {word!r} into {len(ids)} tokens {ids}, "
                "so there is no single logit to compare; use a Qwen3-Reranker checkpoint"
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

    def normalize(self, text: str) -> str:
        """The text as the tokenizer's normalizer leaves it (NFC for Qwen3)."""
        text = as_utf8(text)
        normalizer = self.plain.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def encode(self, text: str) -> list[int]:
        """Ids of one text, by the calling thread: a batch would wake a thread on each core, half a millisecond."""
        ids: list[int] = self.plain.encode(as_utf8(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, none of them a control token."""
        encodings = self.plain.encode_batch_fast([as_utf8(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


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
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
