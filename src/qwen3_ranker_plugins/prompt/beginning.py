"""The first ids of texts. The part of a long text that is not read is not encoded.

A text is encoded in slices until enough ids are known. They equal the first ids of the whole text for one of three
reasons, which are tried in this order:

1. The slice is the rest of the text.
2. The slice is cut at the end of a pre-tokenizer piece that ends there regardless of what follows. Every piece but the
   last was ended by the characters after it, which are in the slice. White space is an exception, because the
   pre-tokenizer looks ahead to the end of a run of it. So at least one of the two characters next to the cut is not
   white space, or the run ends in the slice.
3. The slice lies within one piece, such as a run of one letter. Byte-pair encoding merges by priority, so if no merge
   crosses a position in a piece, the ids before that position are those of the text before it. The whole piece has a
   token boundary among any n consecutive bytes, where n is the length of the longest token. So if the slice has a token
   boundary at some position whichever of its last n bytes it is cut at, the whole piece has a token boundary at that
   position, too.

None of these reasons covers the following texts, which are cut at the end of a slice by definition: 256 characters in
which Unicode normalization does not restart (Unicode's stream-safe format allows 30 characters), or that Python's
version of Unicode does not have; white space in which line breaks are followed by more blanks than a slice holds; white
space that is longer than a slice and belongs to the added token after it; and runs of added tokens that overlap, or
that touch although they are recognized only as separate words.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding

from .pieces import TokenizedText
from .side_by_side import LONG, MANY, encode_side_by_side
from .tokenizer import ModelTokenizer, as_utf8

#: Texts of at most this many characters are encoded whole; longer ones in slices of at most this many.
SLICE = 65_536
# One batch of the tokenizer holds at most this many characters: its results take about 40 bytes per character.
_BATCH = 1_000_000
#: The suffix after a text counts as this many characters, at four characters a token.
SUFFIX_CHARACTERS = 36
# How many characters at the end of a slice are searched for a position where normalization restarts.
_LONGEST_SEQUENCE = 256
# What the tokenizers library counts as white space next to an added token; Python also counts U+001C to U+001F.
_BLANKS = re.compile(r"[^\S\x1c-\x1f]+")
# More characters than Unicode ever composes into one.
_COMPOSING = 8


class Beginning(NamedTuple):
    """The first ids of a text.

    Attributes:
        ids: at least as many ids as requested, or all.
        whole: whether these are all ids of the text; if not, it has at least one more.
    """

    ids: list[int]
    whole: bool


def encode_beginnings(
    tokenizer: ModelTokenizer, texts: Sequence[str], count: int, *, slice_length: int = SLICE
) -> list[Beginning]:
    """The first ids of each text, none of them a control token.

    Args:
        tokenizer: tokenizer of the model that will read the ids.
        texts: texts of any length.
        count: number of ids that are read of each text.
        slice_length: length of a slice in characters; at least a few times the longest token.
    """
    beginnings: list[Beginning] = []
    for group in in_groups(texts, _BATCH, read=slice_length):
        readers = {place: _Reader(tokenizer, text) for place, text in enumerate(group) if len(text) > slice_length}
        unfinished = list(readers.values())
        while unfinished:
            slices = [reader.next_slice(slice_length) for reader in unfinished]
            encodings = tokenizer.plain.encode_batch(slices, add_special_tokens=False)
            for reader, encoding in zip(unfinished, encodings, strict=True):
                reader.take(encoding)
            unfinished = [reader for reader in unfinished if not reader.whole and len(reader.ids) < count]
        rest = [text for text in group if len(text) <= slice_length]
        few_and_long = len(rest) < MANY and max(map(len, rest), default=0) >= LONG
        short = iter(encode_side_by_side(tokenizer, rest) if few_and_long else tokenizer.encode_batch(rest))
        for place in range(len(group)):
            long = readers.get(place)
            beginnings.append(Beginning(next(short), True) if long is None else Beginning(long.ids, long.whole))
    return beginnings


def tokenize_beginnings(
    tokenizer: ModelTokenizer, texts: Sequence[str], count: int, *, slice_length: int = SLICE
) -> Iterator[TokenizedText]:
    """The first tokens of each text and their positions: at least `count` tokens, or all.

    Args:
        tokenizer: tokenizer of the model that will read the ids.
        texts: texts of any length, without lone surrogates.
        count: number of tokens that are needed of each text.
        slice_length: see `encode_beginnings`.
    """
    for group in in_groups(texts, _BATCH, read=slice_length):
        short = iter(
            tokenizer.plain.encode_batch(
                [text for text in group if len(text) <= slice_length], add_special_tokens=False
            )
        )
        for text in group:
            if len(text) <= slice_length:
                encoding = next(short)
                yield _tokenized(encoding.ids, encoding.offsets, whole=True)
                continue
            reader = _Reader(tokenizer, text, keep_offsets=True)
            while not reader.whole and len(reader.ids) < count:
                reader.take(tokenizer.plain.encode(reader.next_slice(slice_length), add_special_tokens=False))
            yield _tokenized(reader.ids, reader.offsets, whole=reader.whole)


def _tokenized(ids: list[int], offsets: Sequence[tuple[int, int]], *, whole: bool) -> TokenizedText:
    places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    return TokenizedText(ids, places[:, 0], places[:, 1], whole)


def in_groups(texts: Sequence[str], most: int, *, read: int | None) -> list[list[str]]:
    """The texts in groups of at most `most` characters, or of one text that has more.

    Args:
        texts: any number of texts.
        most: maximum number of characters of a group; each text counts SUFFIX_CHARACTERS more for its suffix.
        read: maximum number of characters that are counted of one text; None for all.
    """
    groups: list[list[str]] = []
    left = 0
    for text in texts:
        size = (len(text) if read is None else min(len(text), read)) + SUFFIX_CHARACTERS
        if size > left:
            groups.append([])
            left = max(most, size)
        groups[-1].append(text)
        left -= size
    return groups


class _Reader:
    """A long text that is encoded in slices, from its beginning.

    Attributes:
        ids: ids of the part that has been read; they are final.
        offsets: (start, end) of the characters of each id, if `keep_offsets` is set.
        whole: whether nothing is left to read.
    """

    def __init__(self, tokenizer: ModelTokenizer, text: str, *, keep_offsets: bool = False) -> None:
        self._tokenizer = tokenizer
        self._keep_offsets = keep_offsets
        self.offsets: list[tuple[int, int]] = []
        self._text = as_utf8(text)
        self._position = 0
        self._end = 0
        self.ids: list[int] = []
        self.whole = False

    def next_slice(self, length: int) -> str:
        """The text to be encoded next."""
        self._end = min(len(self._text), self._position + length)
        if self._end < len(self._text):
            ends = range(self._end, max(self._position, self._end - _LONGEST_SEQUENCE), -1)
            self._end = next(filter(self._starts_afresh, ends), self._end)
        return self._text[self._position : self._end]

    def take(self, encoding: Encoding) -> None:
        """Keep the final ids of the slice; the next slice begins where they end."""
        kept, length = len(encoding.ids), self._end - self._position
        if self._end < len(self._text):
            offsets, words = encoding.offsets, encoding.word_ids
            found = self._end_of_piece(offsets, words) or self._end_within_piece(offsets, words, encoding.tokens)
            if found:
                kept, length = found, offsets[found][0]
            elif encoding.ids and encoding.ids[-1] in self._tokenizer.takes_blanks_after and offsets[-1][1] == length:
                blanks = _BLANKS.match(self._text, self._end)
                length += 0 if blanks is None else len(blanks[0])
        self.ids += encoding.ids[:kept]
        if self._keep_offsets:
            position = self._position
            self.offsets += [(position + start, position + end) for start, end in encoding.offsets[:kept]]
        self._position += length
        self.whole = self._position == len(self._text)

    def _end_of_piece(self, offsets: list[tuple[int, int]], words: list[int | None]) -> int:
        """Number of ids before the last position where a piece ends regardless of what follows; 0 if there is none."""
        for kept in range(len(words) - 1, 0, -1):
            place = self._position + offsets[kept][0]
            if (
                words[kept] != words[kept - 1]
                and offsets[kept - 1][1] <= offsets[kept][0]
                and not self._may_be_within_blanks(place)
                and self._can_be_cut(place)
            ):
                return kept
        return 0

    def _end_within_piece(self, offsets: list[tuple[int, int]], words: list[int | None], tokens: list[str]) -> int:
        """Number of final ids if a long piece, or white space, reaches to the end of the slice; 0 if none does."""
        split, longest = self._tokenizer.split_piece, self._tokenizer.longest_token
        first, last = words.index(words[-1]), len(words)
        piece = self._text[self._position + offsets[first][0] : self._end]
        blank = _is_blank(piece)
        if blank:  # line breaks that follow would join it into one piece, up to the last of them
            first, last = 0, next((place for place, word in enumerate(words) if word != words[0]), last)
            piece = self._text[self._position : self._position + offsets[last - 1][1]]
        # The rest of a cut piece has to be a piece as well. The line breaks after punctuation are not one.
        if split is None or (not _is_blank(piece) if blank else "\n" in piece[1:] or "\r" in piece[1:]):
            return 0
        symbols = "".join(tokens[first:last])
        # A word that follows may absorb the last blank.
        size = len(symbols) - (len(piece[-1].encode()) if blank and last == len(words) else 0)
        starts = list(accumulate(map(len, tokens[first : last - 1]), initial=0))
        for distance in (2 * longest, 8 * longest, 32 * longest):
            kept = bisect_right(starts, size - longest - distance) - 1
            while kept > 0 and not (
                offsets[first + kept - 1][1] <= offsets[first + kept][0]
                and self._can_be_cut(self._position + offsets[first + kept][0])
            ):
                kept -= 1
            if kept <= 0:
                break
            before = tokens[first + kept - 1]
            afterwards = {split(symbols[starts[kept] : end])[0] for end in range(size - longest + 1, size + 1)}
            if all(split(before + after) == [before, after] for after in afterwards):
                return first + kept
        return 0

    def _may_be_within_blanks(self, place: int) -> bool:
        """Whether a place is in a run of white space whose end the slice does not show."""
        if not (_is_blank(self._text[place - 1]) and _is_blank(self._text[place])):
            return False
        run = _BLANKS.match(self._text, place, self._end)
        return run is None or run.end() == self._end

    def _can_be_cut(self, place: int) -> bool:
        """Whether neither normalization nor an added token spans a place."""
        if not self._starts_afresh(place):
            return False
        reach = self._tokenizer.longest_added
        if not reach:
            return True
        before, after = self._text[max(0, place - reach) : place], self._text[place : place + reach]
        normalized = self._tokenizer.normalize(before), self._tokenizer.normalize(after)
        return not any(
            self._tokenizer.splits_vocabulary(left + right, len(left)) for left, right in {(before, after), normalized}
        )

    def _starts_afresh(self, place: int) -> bool:
        """Whether the text before a place is normalized independently of the text after it."""
        text = self._text
        if text[place].isascii():
            return True
        before = _step_over_marks(text, place - 1, -1)
        after = _step_over_marks(text, place, 1)
        # Python may know fewer characters than the tokenizer's version of Unicode.
        if (
            before is None
            or after is None
            or any(unicodedata.category(each) == "Cn" for each in text[place : after + 1])
        ):
            return False
        left, right = text[max(0, before - _COMPOSING) : place], text[place : after + 1]
        normalize = self._tokenizer.normalize
        return normalize(left + right) == normalize(left) + normalize(right)


def _step_over_marks(text: str, place: int, step: int) -> int | None:
    """The next place, in steps of 1 or -1, of a character that normalization does not move; None if too far."""
    for _ in range(_LONGEST_SEQUENCE):
        if not 0 <= place < len(text) or not unicodedata.combining(text[place]):
            return min(max(place, 0), len(text))
        place += step
    return None


def _is_blank(text: str) -> bool:
    r"""Whether `\s` of tokenizers' patterns matches all characters; it does not match four separators of ASCII."""
    return text.isspace() and not any("\x1c" <= each <= "\x1f" for each in text)
