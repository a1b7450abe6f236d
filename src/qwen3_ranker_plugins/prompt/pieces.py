"""Where long documents are cut into pieces: at a sentence end if one is near, else between words, else between tokens.

A piece is a range of characters of a document. It is judged as if it were a document: its text is encoded on its own,
and the ids at both ends may differ from the ids of the same characters within the document. So a piece gets the score
that a call with its text alone would give, and the tokens of the whole document only determine where to cut.

The pieces of a document cover it without gaps up to the last token that is read, and adjacent pieces share at most
`Pieces.overlap` tokens.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import Pieces

#: A sentence end is near if cutting there makes a piece shorter than the longest possible one by at most this fraction.
_NEAR = 0.25
# White space after a sentence belongs to it. Scripts without spaces have full stops of their own.
_SENTENCE_END = re.compile(r"""(?:[.!?…]+["'”’»)\]]*(?=\s)|[。！？｡]+["”’」』）》]*|[\r\n])\s*""")  # noqa: RUF001
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class Piece(NamedTuple):
    """A range of characters of a document.

    Attributes:
        document: position of the document in the list that was encoded.
        start, end: offsets into the document's text; `text[start:end]` is the piece.
    """

    document: int
    start: int
    end: int


class TokenizedText(NamedTuple):
    """The tokens of a text and their positions in it.

    Attributes:
        ids: ids of the tokens; empty if the positions are estimated without a tokenizer.
        starts, ends: int64 [n_tokens], offsets of each token's characters. Tokens that make up one character share its
            offsets.
        whole: whether these are all tokens of the text; if not, at least one more follows.
    """

    ids: list[int]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    whole: bool


class Cut(NamedTuple):
    """The pieces of one text.

    Attributes:
        ranges: (start, end) of each piece in characters, in order.
        unread: number of tokens after the last piece; a lower bound if the text was not tokenized to its end.
    """

    ranges: list[tuple[int, int]]
    unread: int


def sentence_ends(text: str, start: int = 0, end: int | None = None) -> list[int]:
    """End offsets of the sentences of `text[start:end]`, after their white space; the last sentence may have none."""
    return [found.end() for found in _SENTENCE_END.finditer(text, start, len(text) if end is None else end)]


def cut_text(text: str, tokens: TokenizedText, pieces: Pieces, *, longest: int, most: int | None = None) -> Cut:
    """Cut a text that has more than `longest` tokens, or of which only the first `most` tokens are read.

    Args:
        text: without lone surrogates.
        tokens: tokens of the text from its beginning.
        pieces: the overlap and the maximum number of pieces.
        longest: maximum number of tokens of a piece.
        most: maximum number of tokens of the text that are read; None for all.
    """
    known = len(tokens.starts)
    read = known if most is None else min(known, most)
    bounds = _Bounds(text, tokens, read)
    overlap = min(pieces.overlap, longest // 2)
    ranges: list[tuple[int, int]] = []
    first = last = 0
    while last < bounds.last and len(ranges) < pieces.limit:
        if bounds.tokens[bounds.last] - bounds.tokens[first] <= longest:
            end = bounds.last
        else:
            end = bounds.end_of_piece(first, longest, after=last)
        ranges.append((bounds.offset(first), bounds.offset(end)))
        first, last = bounds.start_of_piece(end, overlap, after=first), end
    unread = known - bounds.tokens[last]
    return Cut(ranges, unread if tokens.whole else max(unread, 1))


class _Bounds:
    """The places between tokens where a text may be cut, including its beginning and its end.

    Attributes:
        tokens: number of tokens before each place.
        last: index of the place where reading ends.
    """

    def __init__(self, text: str, tokens: TokenizedText, read: int) -> None:
        self._text = text
        # Several tokens may make up one character, which is not cut.
        inner = np.flatnonzero(tokens.starts[1:read] >= tokens.ends[: max(0, read - 1)]) + 1
        inner = inner[np.diff(tokens.starts[inner], prepend=0) > 0]
        all_read = read == len(tokens.starts)
        stop = len(text) if all_read and tokens.whole else int(tokens.ends[read - 1]) if read else 0
        if not all_read and read and tokens.starts[read] < stop:  # the last character is not read whole
            stop = int(tokens.starts[read])
        self._starts: list[int] = [0, *tokens.starts[inner].tolist(), stop]
        self._ends: list[int] = [0, *tokens.ends[inner].tolist(), stop]
        self.tokens: list[int] = [0, *inner.tolist(), read]
        self.last = len(self.tokens) - 1
        self._sentences = sentence_ends(text, 0, stop)

    def offset(self, place: int) -> int:
        """Offset of a place in characters. White space before a word belongs to the text before it."""
        start = self._starts[place]
        if place in (0, self.last):
            return start
        end = self._ends[place]
        word = next((at for at in range(start, end) if not self._text[at].isspace()), start)
        return min(word, self._starts[self.last])

    def end_of_piece(self, first: int, longest: int, *, after: int) -> int:
        """The place where the piece that begins at the place `first` ends; it is later than the place `after`."""
        before = self.tokens[first]
        farthest = max(bisect_right(self.tokens, before + longest) - 1, after + 1, first + 1)
        nearest = bisect_left(self.tokens, before + math.ceil(longest * (1 - _NEAR)))
        nearest = min(max(nearest, after + 1, first + 1), farthest)
        return self._last_sentence(nearest, farthest) or self._find(range(farthest, nearest - 1, -1)) or farthest

    def start_of_piece(self, end: int, overlap: int, *, after: int) -> int:
        """The place where the next piece begins after one that ends at `end`; it is later than the place `after`."""
        earliest = min(max(bisect_left(self.tokens, self.tokens[end] - overlap), after + 1), end)
        return self._first_sentence(earliest, end) or self._find(range(earliest, end)) or earliest

    def _last_sentence(self, first: int, last: int) -> int | None:
        """The last place from `first` to `last` where a sentence ends; None if there is none."""
        number = bisect_right(self._sentences, self.offset(last))
        while number and self._sentences[number - 1] >= self._starts[first]:
            place = self._place(self._sentences[number - 1])
            if place is not None and first <= place <= last:
                return place
            number -= 1
        return None

    def _first_sentence(self, first: int, end: int) -> int | None:
        """The first place where a sentence ends, from `first` up to but without `end`; None if there is none."""
        number = bisect_left(self._sentences, self._starts[first])
        while number < len(self._sentences) and self._sentences[number] < self.offset(end):
            place = self._place(self._sentences[number])
            if place is not None and first <= place < end:
                return place
            number += 1
        return None

    def _place(self, offset: int) -> int | None:
        """The place with this offset; None if there is none."""
        place = bisect_right(self._starts, offset) - 1
        return place if self.offset(place) == offset else None

    def _find(self, places: Sequence[int]) -> int | None:
        """The first of these places that lies between words; None if there is none."""
        return next((place for place in places if self._between_words(self.offset(place))), None)

    def _between_words(self, offset: int) -> bool:
        return 0 < offset < len(self._text) and self._text[offset - 1].isspace() and not self._text[offset].isspace()


def original_offset(text: str) -> Callable[[int], int]:
    """A function that converts offsets in `as_utf8(text)` to offsets in `text`.

    They differ after a surrogate pair, which `as_utf8` replaces by one character.
    """
    if text.isascii():
        return lambda offset: offset
    pairs = [found.start() for found in _SURROGATE_PAIR.finditer(text)]
    # In `as_utf8(text)`, the character of the n-th pair, counted from 0, has an offset that is n smaller.
    shifted = [place - number for number, place in enumerate(pairs)]
    return lambda offset: offset + bisect_left(shifted, offset)
