"""(instruction, query, documents) -> token ids. The only place that knows a template.

A prompt is `prefix + document + suffix`. The prefix holds everything that the documents of a request share and
is encoded once; documents are encoded in one batch call; the suffix is constant. The ids equal those of the whole
string encoded at once, because the prefix ends where the pre-tokenizer splits the text regardless of what follows.

Text from outside never becomes a control token: it goes through a copy of the tokenizer that has none. The
`encode_special_tokens` switch of the tokenizers library does not achieve this: added tokens that are not marked
special, such as `</think>`, stay active.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, Self, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import PromptTooLongError
from ..types import Pieces
from .beginning import SLICE, encode_beginnings
from .cutting import Cutter
from .pieces import Piece
from .template import BOUNDARY, DEFAULT_INSTRUCTION, DEFAULT_MAX_LENGTH, Template
from .tokenizer import ModelTokenizer


class FlatSegments(Sequence[list[int]]):
    """The segments of a request whose ids are in one array, as a worker process receives them.

    Making and reading a list of Python numbers for each document takes about as long as laying out the pass.

    Args:
        ids: int32 [tokens], the ids of all segments, one after another.
        lengths: int64 [segments], the number of ids of each.
    """

    def __init__(self, ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> None:
        self.ids = ids
        self.lengths = lengths
        self._starts = np.cumsum(lengths) - lengths

    @classmethod
    def of(cls, segments: Sequence[Sequence[int]]) -> Self:
        """From lists of ids."""
        ids: list[int] = []
        for segment in segments:
            ids += segment
        buffer = struct.pack(f"{len(ids)}i", *ids)  # takes half the time of `np.array(ids)`
        return cls(np.frombuffer(buffer, dtype=np.int32), np.fromiter(map(len, segments), np.int64, len(segments)))

    def ordered(self, order: NDArray[np.intp]) -> NDArray[np.int32]:
        """The ids of all segments, one after another in this order."""
        lengths = self.lengths[order]
        places = np.cumsum(lengths) - lengths
        ids: NDArray[np.int32] = self.ids[np.repeat(self._starts[order] - places, lengths) + np.arange(len(self.ids))]
        return ids

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        start = self._starts[index]
        ids: list[int] = self.ids[start : start + self.lengths[index]].tolist()
        return ids


@dataclass(frozen=True)
class EncodedRequest:
    """Token ids of one request.

    Attributes:
        prefix: ids that all documents of the request share.
        segments: for each document its ids and the suffix; `prefix + segments[i]` is prompt i.
        truncated_tokens: for each document, the number of its tokens that were cut off its end. For a document of more
            than 65,536 characters, which is encoded only as far as it is read, this is a lower bound.
        pieces: for each segment the piece that it holds, if documents were cut into pieces; the pieces of a document
            are adjacent. None if each segment is a document.
        prefix_length: number of tokens in the prefix.
        lengths: for each document, the number of tokens in its segment.
    """

    prefix: list[int]
    segments: Sequence[list[int]]
    truncated_tokens: list[int]
    pieces: list[Piece] | None = field(default=None, kw_only=True)
    prefix_length: int = field(init=False, repr=False, compare=False)
    lengths: Sequence[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix_length", len(self.prefix))
        if isinstance(self.segments, FlatSegments):
            object.__setattr__(self, "lengths", self.segments.lengths.tolist())
        else:
            object.__setattr__(self, "lengths", [len(segment) for segment in self.segments])

    @property
    def num_tokens(self) -> int:
        """Tokens to be computed if the prefix is computed once."""
        return self.prefix_length + sum(self.lengths)

    def prompt(self, index: int) -> list[int]:
        """All ids of one document's prompt."""
        return self.prefix + self.segments[index]

    def take(self, indices: Sequence[int]) -> EncodedRequest:
        """The same request with only some of its segments, in the order given."""
        return EncodedRequest(
            prefix=self.prefix,
            segments=[self.segments[i] for i in indices],
            truncated_tokens=[self.truncated_tokens[i] for i in indices],
            pieces=None if self.pieces is None else [self.pieces[i] for i in indices],
        )

    def followed_by(self, other: Self) -> Self:
        """The same request with the segments of another part appended, and without `pieces`."""
        return replace(
            self,
            pieces=None,
            segments=[*self.segments, *other.segments],
            truncated_tokens=self.truncated_tokens + other.truncated_tokens,
        )


class Encoder(Protocol):
    """Turns the texts of a request into the input of an engine."""

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        instruction: str | None,
        max_document_tokens: int | None = None,
        pieces: Pieces | None = None,
    ) -> EncodedRequest:
        """Encode one request. An instruction of None means the default of the model or the remote service.

        Without `pieces`, there is one segment for each document. Callers omit `pieces` if it is None.
        """


class PromptEncoder:
    """Encodes requests with one tokenizer, template and length limit.

    Args:
        tokenizer: tokenizer of the model that will read the ids.
        template: a name from TEMPLATES, or the text of a template.
        max_length: maximum length of a prompt in tokens, prefix and suffix included.
        template_without_instruction: template of requests without an instruction if `instruction` is None too; None for
            `template`.
        instruction: default instruction; None for no default.
        empty_document: text that the prompt holds in place of an empty document.

    Raises:
        InvalidInputError: see `Template`.
    """

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        template: str = "standard",
        max_length: int = DEFAULT_MAX_LENGTH,
        *,
        template_without_instruction: str | None = None,
        instruction: str | None = DEFAULT_INSTRUCTION,
        empty_document: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.instruction = instruction
        self._with_instruction = _Prompt(tokenizer, Template.named(template), empty_document)
        self._without_instruction = (
            self._with_instruction
            if template_without_instruction is None
            else _Prompt(tokenizer, Template.named(template_without_instruction), empty_document)
        )

    @property
    def template(self) -> Template:
        """The template of a request with an instruction."""
        return self._with_instruction.template

    @property
    def suffix_ids(self) -> list[int]:
        """Ids of the text after a document, in requests with an instruction."""
        return self._with_instruction.suffix_ids

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        instruction: str | None,
        max_document_tokens: int | None = None,
        pieces: Pieces | None = None,
    ) -> EncodedRequest:
        """Ids of one request.

        Only documents are truncated, never the suffix: to the tokens that fit the prompt, or to `max_document_tokens`
        if that is less. An instruction of None means the default one.

        Args:
            query, documents, instruction, max_document_tokens: as in `Request`.
            pieces: cut a document that has more tokens than a piece may have, or than fit the prompt; each piece
                becomes a segment. None for one segment per document.

        Raises:
            PromptTooLongError: query and instruction leave no room for a document.
        """
        instruction = self.instruction if instruction is None else instruction
        prompt = self._without_instruction if instruction is None else self._with_instruction
        for argument, text in (("query", query), ("instruction", instruction if prompt.has_instruction else None)):
            # A text that cannot fit is refused without encoding all of it.
            if text is not None and len(text) > SLICE:
                [beginning] = encode_beginnings(self.tokenizer, [text], self.max_length)
                if not beginning.whole:
                    raise PromptTooLongError(
                        argument,
                        text,
                        f"its {len(text)} characters take more than max_length={self.max_length} tokens; shorten it or "
                        "raise max_length",
                    )
        prefix, before_document = prompt.encode_prefix({"instruction": instruction or "", "query": query})
        fitting = self.max_length - len(prefix) - len(prompt.suffix_ids)
        if fitting < 1:
            raise PromptTooLongError(
                "query",
                query,
                f"query and instruction take {len(prefix)} tokens and the suffix {len(prompt.suffix_ids)}, which "
                f"leaves no room for a document within max_length={self.max_length}; shorten them or raise max_length",
            )
        room = fitting if max_document_tokens is None else min(fitting, max_document_tokens)

        encode_texts = partial(prompt.encode_documents, before=before_document, fitting=fitting)
        if pieces is None:
            return EncodedRequest(prefix, *encode_texts(documents, room))
        cutter = Cutter(
            self.tokenizer,
            before_document,
            pieces,
            longest=min(pieces.tokens, fitting),
            most=max_document_tokens,
            suffix_ids=prompt.suffix_ids if prompt.suffix_is_apart else None,
        )
        segments, truncated, found = cutter.encode(documents, encode_texts)
        return EncodedRequest(prefix, segments, truncated, pieces=found)


class _Prompt:
    """A template whose literal text has been split at control tokens.

    Attributes:
        has_instruction: whether the prompt holds the instruction.
        suffix_is_apart: whether the suffix begins with a control token, so that its ids do not depend on the document.
    """

    def __init__(self, tokenizer: ModelTokenizer, template: Template, empty_document: str) -> None:
        self.template = template
        self._empty_document = empty_document
        self.has_instruction = any(field == "instruction" for _, field in template.prefix)
        self._tokenizer = tokenizer
        self._parts = [(tokenizer.split_control(literal), field) for literal, field in template.prefix]
        # The text before the first field is the same in every request. It is encoded here up to its last control token.
        literal, field = self._parts[0]
        end = max((place for place, piece in enumerate(literal, start=1) if isinstance(piece, int)), default=0)
        self._first_ids = tokenizer.encode(*literal[:end])
        self._parts[0] = (literal[end:], field)
        first, *others = [tokenizer.split_control(literal) for literal in template.suffix] or [[]]
        # Plain text right after the document is encoded together with it, because one token may span the end of the
        # document and the beginning of that text.
        self._after_document = str(first.pop(0)) if first and isinstance(first[0], str) else ""
        self._rest_ids = [token_id for pieces in (first, *others) for token_id in tokenizer.encode(*pieces)]
        self.suffix_ids = [*tokenizer.encode(self._after_document), *self._rest_ids]
        self.suffix_is_apart = not self._after_document

    def encode_documents(
        self, documents: Sequence[str], room: int, *, before: str, fitting: int
    ) -> tuple[list[list[int]], list[int]]:
        """(ids of each document and its suffix, number of tokens that were cut off the end of each).

        Args:
            documents: texts.
            room: maximum number of tokens of a document.
            before: text in front of each document, which is encoded with it.
            fitting: number of tokens that the prompt leaves for a document. If `room` is less, it limits the document
                alone, without the text after it.
        """
        texts = [before + (document or self._empty_document) for document in documents]
        longest = room + len(self.suffix_ids) - len(self._rest_ids)
        beginnings = encode_beginnings(self._tokenizer, [text + self._after_document for text in texts], longest)
        segments = [ids for ids, _ in beginnings]
        truncated = [0] * len(texts)
        for place, (ids, all_encoded) in enumerate(beginnings):
            if not (room == fitting and all_encoded and len(ids) <= longest):
                document, document_encoded = ids, all_encoded
                if self._after_document:
                    [(document, document_encoded)] = encode_beginnings(self._tokenizer, [texts[place]], room)
                # A document that was not encoded to its end has at least one more token.
                truncated[place] = max(0, len(document) - room + (not document_encoded))
            if truncated[place]:
                segments[place] = document[:room] + self.suffix_ids
            else:
                ids.extend(self._rest_ids)
        return segments, truncated

    def encode_prefix(self, fields: Mapping[str, str]) -> tuple[list[int], str]:
        """(ids that all documents share, the text that has to be encoded together with each document)."""
        pieces: list[str | int] = []
        text = ""
        for literal_pieces, name in self._parts:
            for piece in literal_pieces:
                if isinstance(piece, int):
                    pieces += [text, piece] if text else [piece]
                    text = ""
                else:
                    text += piece
            if name == BOUNDARY:
                pieces += [text] if text else []
                text = ""
            else:
                text += fields.get(name or "", "")
        text = self._tokenizer.normalize(text)
        # The pre-tokenizer ends a piece at a character that cannot continue it. A piece that is not the last one, and
        # does not end in white space, was ended by a character of `text` itself, so it ends there regardless of what
        # follows. (White space is an exception, because the pre-tokenizer looks ahead: blanks and a later line break
        # form one piece.) The last such end is where the shared ids end.
        ids, shared = [], 0
        plain, others = self._tokenizer.plain, self._tokenizer.vocabulary
        if others:  # an added word ends a piece in the encoding only if what follows lets it count as a word
            ends = [end for _, (_, end) in plain.pre_tokenizer.pre_tokenize_str(text)] if text else []
            for end in reversed(ends[:-1]):
                if not text[end - 1].isspace() and not self._tokenizer.splits_vocabulary(text, end):
                    ids, shared = self._tokenizer.encode(text[:end]), end
                    break
        else:
            encoding = plain.encode(text, add_special_tokens=False)
            piece_of, offsets = encoding.word_ids, encoding.offsets
            for place in range(len(piece_of) - 1, 0, -1):
                end = offsets[place - 1][1]
                if piece_of[place] != piece_of[place - 1] and not text[end - 1].isspace():
                    ids, shared = encoding.ids[:place], end
                    break
        return [*self._first_ids, *self._tokenizer.encode(*pieces), *ids], text[shared:]


def length_order(request: EncodedRequest) -> list[int]:
    """Indices of the documents, shortest first; equal lengths keep their order."""
    order: list[int] = np.argsort(np.asarray(request.lengths), kind="stable").tolist()
    return order
