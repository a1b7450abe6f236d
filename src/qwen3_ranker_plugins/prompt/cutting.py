"""Documents -> ids of their pieces."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..types import Pieces
from .beginning import tokenize_beginnings
from .pieces import Cut, Piece, TokenizedText, cut_text, original_offset
from .tokenizer import ModelTokenizer, as_utf8

#: Maximum number of tokens of one character: NFC turns it into at most three characters of at most four bytes each.
_TOKENS_PER_CHARACTER = 12

#: (texts, maximum number of tokens of each) -> (ids of each with the suffix, tokens cut off the end of each).
EncodeTexts = Callable[[Sequence[str], int], tuple[list[list[int]], list[int]]]


class EncodedPieces(NamedTuple):
    """Pieces of several documents. The pieces of a document are adjacent.

    Attributes:
        segments: ids of each piece and the suffix.
        truncated_tokens: for each piece, the number of tokens cut off; at the last piece of a document, also the tokens
            after it.
        pieces: the document and the range of characters of each piece.
    """

    segments: list[list[int]]
    truncated_tokens: list[int]
    pieces: list[Piece]


class Cutter:
    """Cuts the documents of a request into pieces and encodes the pieces.

    Args:
        tokenizer: tokenizer of the model that will read the ids.
        before_document: text that is encoded together with the beginning of each piece.
        pieces: the overlap and the maximum number of pieces.
        longest: maximum number of tokens of a piece.
        most: maximum number of tokens of a document that are read; None for all.
        suffix_ids: the ids that follow every document; None if the suffix has to be encoded together with the document.
    """

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        before_document: str,
        pieces: Pieces,
        *,
        longest: int,
        most: int | None,
        suffix_ids: list[int] | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._before = before_document
        self._pieces = pieces
        self._longest = longest
        self._most = most
        self._suffix_ids = suffix_ids

    def encode(self, documents: Sequence[str], encode: EncodeTexts) -> EncodedPieces:
        """Segments of all pieces, in the order of the documents."""
        texts = [as_utf8(document) for document in documents]
        long, fitting = self._tokenized(texts)
        if self._most is not None and self._most <= self._longest:  # only one piece of each is read: its beginning
            segments, truncated = encode(texts, self._most)
            ranges = [self._cut(text, long.get(place), self._most).ranges for place, text in enumerate(texts)]
            return self._joined(documents, [[each] for each in segments], [[each] for each in truncated], ranges)
        # On its own, a piece may have one token more than within the text, for the white space at its end.
        lengths = {place: max(1, self._longest - 1) for place in long}
        segments_of: list[list[list[int]]] = [[]] * len(texts)
        truncated_of: list[list[int]] = [[]] * len(texts)
        ranges_of: list[list[tuple[int, int]]] = [[]] * len(texts)
        for place, ids in fitting.items():
            ranges_of[place], segments_of[place], truncated_of[place] = [(0, len(texts[place]))], [ids], [0]
        waiting = [place for place in range(len(texts)) if place not in fitting]
        while waiting:
            cuts = [self._cut(texts[place], long.get(place), lengths.get(place, self._longest)) for place in waiting]
            segments, truncated = encode(
                [texts[place][slice(*each)] for place, cut in zip(waiting, cuts, strict=True) for each in cut.ranges],
                self._longest,
            )
            first, again = 0, []
            for place, cut in zip(waiting, cuts, strict=True):
                last = first + len(cut.ranges)
                excess = max(truncated[first:last])
                if excess and lengths.get(place, 1) > 1:
                    lengths[place] = max(1, lengths[place] - excess)
                    again.append(place)
                ranges_of[place], segments_of[place] = cut.ranges, segments[first:last]
                truncated_of[place] = [*truncated[first : last - 1], truncated[last - 1] + cut.unread]
                first = last
            waiting = again
        return self._joined(documents, segments_of, truncated_of, ranges_of)

    def _tokenized(self, texts: Sequence[str]) -> tuple[dict[int, TokenizedText], dict[int, list[int]]]:
        """Tokenize the texts that may be longer than a piece.

        Returns:
            Two mappings from the position of a text: the tokens of each text that is longer, as far as it is read; and
            the segments of the other texts, if they are known without encoding the texts again.
        """
        longest = self._longest if self._most is None else min(self._longest, self._most)
        candidates = [
            place
            for place, text in enumerate(texts)
            if len(self._before) + len(text) * (1 if text.isascii() else _TOKENS_PER_CHARACTER) > longest
        ]
        read = min(self._pieces.limit * self._longest, self._most or sys.maxsize)
        before = len(self._before)
        tokenized = tokenize_beginnings(self._tokenizer, [self._before + texts[each] for each in candidates], read + 1)
        long: dict[int, TokenizedText] = {}
        fitting: dict[int, list[int]] = {}
        for place, (ids, starts, ends, whole) in zip(candidates, tokenized, strict=True):
            if len(ids) > longest:
                long[place] = TokenizedText(ids, np.maximum(starts - before, 0), np.maximum(ends - before, 0), whole)
            elif self._suffix_ids is not None:
                fitting[place] = ids + self._suffix_ids
        return long, fitting

    def _cut(self, text: str, tokens: TokenizedText | None, longest: int) -> Cut:
        if tokens is None:
            return Cut([(0, len(text))], 0)
        return cut_text(text, tokens, self._pieces, longest=longest, most=self._most)

    def _joined(
        self,
        documents: Sequence[str],
        segments: Sequence[Sequence[list[int]]],
        truncated: Sequence[Sequence[int]],
        ranges: Sequence[Sequence[tuple[int, int]]],
    ) -> EncodedPieces:
        offsets = [original_offset(document) for document in documents]
        return EncodedPieces(
            [segment for of_document in segments for segment in of_document],
            [tokens for of_document in truncated for tokens in of_document],
            [
                Piece(place, offset(start), offset(end))
                for place, (offset, of_document) in enumerate(zip(offsets, ranges, strict=True))
                for start, end in of_document
            ],
        )
