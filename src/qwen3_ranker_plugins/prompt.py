"""(instruction, query, documents) -> token ids. The only place that knows a template.

A prompt is `head + document + suffix`. The head holds everything that the documents of a request share and
is encoded once; documents are encoded in one batch call; the suffix is constant. The ids equal those of the
whole string encoded at once, because the head is cut where the tokenizer's pre-tokenizer cuts whatever
follows (`_shared_length`).

Text from outside never becomes a control token: it goes through a copy of the tokenizer that has none. The
`encode_special_tokens` switch of the tokenizers library is not enough for this: it leaves added tokens that
are not marked special, among them `</think>`, active.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from .errors import InvalidInputError, PromptTooLongError, UnsupportedModelError

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
DEFAULT_MAX_LENGTH = 8192

# From the model card of Qwen/Qwen3-Reranker-0.6B, which shows both separators: "\n\n" in its vLLM example,
# "\n" in its transformers example.
_JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def _chat(system: str, user: str) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}{_SUFFIX}"


#: Named templates. Add one here, or pass the text itself as `template`.
#: `compact` is the T4 benchmark report's format: fewer tokens, and not what the model was trained on.
TEMPLATES: dict[str, str] = {
    "standard": _chat(_JUDGE, "<Instruct>: {instruction}\n\n<Query>: {query}\n\n<Document>: {document}"),
    "standard-hf": _chat(_JUDGE, "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"),
    "compact": _chat("{instruction}", "<Query>: {query}\n<Document>: {document}"),
}

_FIELDS = ("instruction", "query", "document")
_LOOKS_LIKE_CONTROL_TOKEN = re.compile(r"<\|[a-z_]+\|>|</?think>")


@dataclass(frozen=True)
class EncodedRequest:
    """Token ids of one request.

    Attributes:
        head: ids that all documents of the request share.
        segments: for each document its ids and the suffix; `head + segments[i]` is prompt i.
        truncated_tokens: for each document, how many of its tokens were cut off at the end.
    """

    head: list[int]
    segments: list[list[int]]
    truncated_tokens: list[int]

    @property
    def num_tokens(self) -> int:
        """Tokens to be computed if the head is computed once."""
        return self.head_length + sum(self.lengths)

    @property
    def head_length(self) -> int:
        """Tokens of the head."""
        return len(self.head)

    @cached_property
    def lengths(self) -> Sequence[int]:
        """For each document, the tokens of its segment."""
        return [len(segment) for segment in self.segments]

    def prompt(self, index: int) -> list[int]:
        """All ids of one document's prompt."""
        return self.head + self.segments[index]

    def joined(self, rest: EncodedRequest) -> EncodedRequest:
        """The request with the documents of both, which have one head."""
        return EncodedRequest(self.head, self.segments + rest.segments, self.truncated_tokens + rest.truncated_tokens)

    def take(self, indices: Sequence[int]) -> EncodedRequest:
        """The same request with only some of its documents, in the order given."""
        return EncodedRequest(
            head=self.head,
            segments=[self.segments[i] for i in indices],
            truncated_tokens=[self.truncated_tokens[i] for i in indices],
        )


class Encoder(Protocol):
    """What turns texts into what an engine is given."""

    def encode(
        self, query: str, documents: Sequence[str], instruction: str | None, max_document_tokens: int | None = None
    ) -> EncodedRequest:
        """One request; an instruction of None stands for the model's default, or the service's own."""


@dataclass(frozen=True)
class Template:
    """A prompt with the fields {instruction}, {query} and {document}, the last of them in last place.

    Literal braces are written `{{` and `}}`. Text after {document} is encoded on its own and is the suffix.

    Raises:
        InvalidInputError: an unknown field, a missing or repeated one, or one after {document}.
    """

    text: str

    @classmethod
    def named(cls, template: str) -> Template:
        """A name from TEMPLATES, or the text of a template itself."""
        if isinstance(template, str) and template in TEMPLATES:
            return cls(TEMPLATES[template])
        if not isinstance(template, str) or "{document}" not in template:
            raise InvalidInputError(
                "template", template, f"give one of {', '.join(TEMPLATES)}, or a text with {{query}} and {{document}}"
            )
        return cls(template)

    def __post_init__(self) -> None:
        fields = [field for _, field in self.parts if field is not None]
        if unknown := [field for field in fields if field not in _FIELDS]:
            raise InvalidInputError("template", self.text, f"unknown field {{{unknown[0]}}}: use {', '.join(_FIELDS)}")
        if fields.count("query") != 1 or fields.count("document") != 1 or fields.count("instruction") > 1:
            raise InvalidInputError(
                "template", self.text, "needs {query} and {document} once, and {instruction} at most once"
            )
        if fields[-1] != "document":
            raise InvalidInputError("template", self.text, "{document} must be the last field")

    @cached_property
    def parts(self) -> list[tuple[str, str | None]]:
        """(literal text, field that follows it or None) in order."""
        try:
            parsed = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise InvalidInputError("template", self.text, f"{error}; write a literal brace as {{{{ or }}}}") from error
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise InvalidInputError("template", self.text, "fields take no format or conversion")
        return [(literal, field) for literal, field, _, _ in parsed]

    @property
    def head(self) -> list[tuple[str, str | None]]:
        """The parts up to {document}."""
        return self.parts[: self._document + 1]

    @property
    def suffix(self) -> str:
        """The text after {document}."""
        return "".join(literal for literal, _ in self.parts[self._document + 1 :])

    def render_head(self, fields: Mapping[str, str]) -> str:
        """The text in front of the document, with its fields filled in."""
        return "".join(literal + fields.get(field or "", "") for literal, field in self.head)

    @property
    def _document(self) -> int:
        return [field for _, field in self.parts].index("document")


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


class PromptEncoder:
    """Encodes requests with one tokenizer, template and length limit.

    Args:
        tokenizer: of the model that will read the ids.
        template: a name from TEMPLATES, or the text of a template.
        max_length: longest prompt in tokens, head and suffix included.

    Raises:
        InvalidInputError: see `Template`.
    """

    def __init__(
        self, tokenizer: ModelTokenizer, template: str = "standard", max_length: int = DEFAULT_MAX_LENGTH
    ) -> None:
        self.tokenizer = tokenizer
        self.template = Template.named(template)
        self.max_length = max_length
        self._head_parts = [(tokenizer.split_control(literal), field) for literal, field in self.template.head]
        self.suffix_ids = self._encode_pieces(tokenizer.split_control(self.template.suffix))

    def encode(
        self, query: str, documents: Sequence[str], instruction: str | None, max_document_tokens: int | None = None
    ) -> EncodedRequest:
        """Ids of one request.

        Only documents are cut, at their end and before the suffix: to what fits the prompt, and to
        `max_document_tokens` if that is less. An instruction of None is the default one.

        Raises:
            PromptTooLongError: query and instruction leave no room for a document.
        """
        instruction = DEFAULT_INSTRUCTION if instruction is None else instruction
        pieces, before_document = self._head({"instruction": instruction, "query": query})
        head = self._encode_pieces(pieces)
        room = self.max_length - len(head) - len(self.suffix_ids)
        if room < 1:
            raise PromptTooLongError(
                "query",
                query,
                f"query and instruction take {len(head)} tokens and the suffix {len(self.suffix_ids)}, which leaves no "
                f"room for a document within max_length={self.max_length}; shorten them or raise max_length",
            )
        if max_document_tokens is not None:
            room = min(room, max_document_tokens)
        encoded = self.tokenizer.encode_batch([before_document + document for document in documents])
        truncated = [max(0, len(ids) - room) for ids in encoded]
        for ids in encoded:
            del ids[room:]
            ids.extend(self.suffix_ids)
        return EncodedRequest(head=head, segments=encoded, truncated_tokens=truncated)

    def _head(self, fields: dict[str, str]) -> tuple[list[str | int], str]:
        """The shared pieces, and the text that has to be encoded together with each document."""
        pieces: list[str | int] = []
        text = ""
        for literal_pieces, field in self._head_parts:
            for piece in literal_pieces:
                if isinstance(piece, int):
                    pieces += [text, piece] if text else [piece]
                    text = ""
                else:
                    text += piece
            text += fields.get(field or "", "")
        text = self.tokenizer.normalize(text)
        cut = self._shared_length(text)
        return ([*pieces, text[:cut]] if cut else pieces), text[cut:]

    def _shared_length(self, text: str) -> int:
        """How much of the text before a document can be encoded without knowing the document.

        The pre-tokenizer's pieces end where a later character stops them. A piece that ends in a
        non-blank, and is not the last one, was stopped by a character of `text` itself, so its end stays
        an end whatever follows. (Blanks look further ahead: a run of them joins a later line break.)
        """
        if not text:
            return 0
        pieces = self.tokenizer.plain.pre_tokenizer.pre_tokenize_str(text)
        ends = [end for _, (_, end) in pieces[:-1] if not text[end - 1].isspace()]
        return ends[-1] if ends else 0

    def _encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += [piece] if isinstance(piece, int) else self.tokenizer.encode(piece)
        return ids


def as_utf8(text: str) -> str:
    """The text with lone surrogates, which have no UTF-8 form, replaced by U+FFFD as the web platform does."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
