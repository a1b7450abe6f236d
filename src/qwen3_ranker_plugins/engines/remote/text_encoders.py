"""Encoders for services that take texts: bare ones, or texts that together make our prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ...errors import InvalidInputError
from ...prompt import DEFAULT_INSTRUCTION, EncodedRequest, Piece, PromptEncoder, as_utf8, encode_beginnings
from ...prompt.pieces import Cut, TokenizedText, cut_text, original_offset
from ...types import Pieces
from .options import RemoteOptions

# What a service's tokenizer reads as a control token. The tokenizer that `load_tokenizer` returns does not.
_CONTROL = re.compile(r"<(?=\|[a-z_]+\|>|/?(?:think|tool_call|tool_response)>)")
_BROKEN = "<\u200b"

_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class TextRequest(EncodedRequest):
    """A request as texts.

    For bare texts there are no ids: `prefix` and `segments` are empty, and the lengths are estimates, which only decide
    how many documents go into one HTTP request.

    Attributes:
        query: value of the body's field for the query.
        documents: value of its field for the documents.
        instruction: value of its field for the instruction; None leaves the field out.
        max_document_tokens: value of its field for the maximum number of tokens of a document; None leaves the field
            out.
        exact: whether `prefix` and `segments` hold the ids that the service should read.
    """

    query: str
    documents: list[str]
    instruction: str | None
    max_document_tokens: int | None
    exact: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.exact:
            object.__setattr__(self, "prefix_length", _estimate(self.query))
            object.__setattr__(self, "lengths", list(map(_estimate, self.documents)))

    def take(self, indices: Sequence[int]) -> TextRequest:
        """The request with only these documents, in the order of `indices`."""
        return replace(
            self,
            segments=[self.segments[i] for i in indices],
            truncated_tokens=[self.truncated_tokens[i] for i in indices],
            pieces=None if self.pieces is None else [self.pieces[i] for i in indices],
            documents=[self.documents[i] for i in indices],
        )

    def followed_by(self, other: Self) -> Self:
        """The same request with the documents of another part of it as well."""
        return replace(super().followed_by(other), documents=self.documents + other.documents)


class TextEncoder:
    """Bare texts. The service puts them into a prompt of its own and cuts what is too long for it.

    Args:
        options: name the kind of service, which decides whether a request may have an instruction and a limit.
    """

    def __init__(self, options: RemoteOptions) -> None:
        self._options = options

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        instruction: str | None,
        max_document_tokens: int | None = None,
        pieces: Pieces | None = None,
    ) -> TextRequest:
        """One request. If `instruction` is None, the service chooses it.

        Pieces are cut here, with tokens estimated at four bytes each, because the service's tokenizer is not known.

        Raises:
            InvalidInputError: the service takes no instruction, or no limit of tokens, and one was given.
        """
        if max_document_tokens is not None and not self._options.service.takes_limit:
            raise InvalidInputError(
                "max_document_tokens", max_document_tokens, f"{self._options.kind} takes none: leave it out"
            )
        if not self._options.takes_instruction:
            if instruction not in (None, DEFAULT_INSTRUCTION):
                raise InvalidInputError("instruction", instruction, f"{self._options.kind} takes none: leave it out")
            instruction = None
        found: list[Piece] | None = None
        truncated = [0] * len(documents)
        if pieces is not None:
            found, truncated = _estimated_pieces(documents, pieces, max_document_tokens)
            documents = [documents[place][start:end] for place, start, end in found]
            max_document_tokens = None
        return TextRequest(
            [],
            [[] for _ in documents],
            truncated,
            as_utf8(query),
            [as_utf8(document) for document in documents],
            None if instruction is None else as_utf8(instruction),
            max_document_tokens,
            exact=False,
            pieces=found,
        )


class RenderedEncoder:
    """Our prompt as text: the prefix is sent as the query, and each document with the suffix as a document.

    For services that concatenate the two and add nothing. Text that their tokenizer would read as a control token could
    forge an answer, so a zero-width space breaks it. Prompts that are sent as ids need no such protection.

    Args:
        encoder: makes the ids, which show where to cut a document and how many tokens the service should count.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder

    def encode(
        self,
        query: str,
        documents: Sequence[str],
        instruction: str | None,
        max_document_tokens: int | None = None,
        pieces: Pieces | None = None,
    ) -> TextRequest:
        """One request.

        Raises:
            PromptTooLongError: query and instruction leave no room for a document.
        """
        if pieces is not None:
            in_pieces = self._encoder.encode(query, documents, instruction, max_document_tokens, pieces)
            found = in_pieces.pieces or []
            request = self.encode(query, [documents[place][start:end] for place, start, end in found], instruction)
            unread = [a + b for a, b in zip(in_pieces.truncated_tokens, request.truncated_tokens, strict=True)]
            return replace(request, truncated_tokens=unread, pieces=found)
        instruction = _defused(DEFAULT_INSTRUCTION if instruction is None else instruction)
        query = _defused(query)
        texts = [_defused(document) for document in documents]
        encoded = self._encoder.encode(query, texts, instruction, max_document_tokens)
        truncated = list(encoded.truncated_tokens)
        segments = list(encoded.segments)
        for index, cut in enumerate(truncated):
            if cut:
                whole = len(encoded.segments[index]) + cut
                room = len(encoded.segments[index]) - len(self._encoder.suffix_ids)
                texts[index], segments[index] = self._shortened(texts[index], room, query, instruction)
                truncated[index] = whole - len(segments[index])
        template = self._encoder.template
        prefix = template.render_prefix({"instruction": instruction, "query": query})
        suffix = "".join(template.suffix)
        documents = [text + suffix for text in texts]
        return TextRequest(encoded.prefix, segments, truncated, prefix, documents, None, None, exact=True)

    def _shortened(self, text: str, room: int, query: str, instruction: str) -> tuple[str, list[int]]:
        """A beginning of a text that fits into `room` tokens, as long as possible, and its segment.

        The decoded text is encoded again, because ids that were cut within a character decode to another text.
        """
        tokenizer = self._encoder.tokenizer
        [(ids, _)] = encode_beginnings(tokenizer, [text], room)
        length = room
        while True:
            shorter = tokenizer.plain.decode(ids[: max(0, length)], skip_special_tokens=False).rstrip("\ufffd")
            encoded = self._encoder.encode(query, [shorter], instruction, room)
            if not encoded.truncated_tokens[0]:
                return shorter, encoded.segments[0]
            length -= encoded.truncated_tokens[0]


def _estimated_pieces(documents: Sequence[str], pieces: Pieces, most: int | None) -> tuple[list[Piece], list[int]]:
    """(pieces of documents, tokens that none of them holds) as `EncodedRequest` has them."""
    found: list[Piece] = []
    truncated: list[int] = []
    for place, document in enumerate(documents):
        text = as_utf8(document)
        widths = [len(character.encode()) for character in text] if not text.isascii() else [1] * len(text)
        ends = np.cumsum(widths)
        # A token begins with each character that reaches into the next four bytes.
        starts = np.flatnonzero(np.diff((ends - 1) // _BYTES_PER_TOKEN, prepend=-1))
        tokens = TokenizedText([], starts, np.append(starts[1:], len(text)), whole=True)
        cut = Cut([(0, len(text))], 0)
        if len(starts) > min(pieces.tokens, most or pieces.tokens):
            cut = cut_text(text, tokens, pieces, longest=pieces.tokens, most=most)
        offset = original_offset(document)
        found += [Piece(place, offset(start), offset(end)) for start, end in cut.ranges]
        truncated += [0] * (len(cut.ranges) - 1) + [cut.unread]
    return found, truncated


def _defused(text: str) -> str:
    return _CONTROL.sub(_BROKEN, as_utf8(text))


def _estimate(text: str) -> int:
    """Number of tokens of a text, at about four bytes each."""
    return len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN + 1
