"""Encode a few long texts on all cores.

The tokenizer spreads the texts of a batch over the cores, one core a text. A text that is cut where a piece of the
pre-tokenizer ends, whatever surrounds it, can be spread too: the ids of its parts are those of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, pairwise

from .tokenizer import ModelTokenizer

#: A batch of at least this many texts keeps all cores busy without cuts.
MANY = 64
# Length of a part in characters (about 1,300 tokens, which take 1 ms), and of the text in which its end is sought.
_PART = 6_000
_SOUGHT = 500
#: A text of at least this many characters is cut.
LONG = 2 * _PART
# In Qwen's pattern, only `\p{L}+` and the English contractions match a letter, and both end where letters end. What
# begins there depends on the text that follows alone. No character of the second set composes with one before it.
_END_OF_WORD = re.compile(r"(?<=[A-Za-z\u4e00-\u9fff])(?=[ \n.,;:!?\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])")


def encode_side_by_side(tokenizer: ModelTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, as `ModelTokenizer.encode_batch` returns them."""
    parts = [cut_after_words(text) if tokenizer.words_end_alone else [text] for text in texts]
    encoded = iter(tokenizer.encode_batch(list(chain.from_iterable(parts))))
    return [list(chain.from_iterable(next(encoded) for _ in of_one)) for of_one in parts]


def cut_after_words(text: str, length: int = _PART) -> list[str]:
    """The text in parts of about `length` characters, each of which ends with a word; a rest without words is whole."""
    cuts = [0]
    while (end := _END_OF_WORD.search(text, cuts[-1] + length, cuts[-1] + length + _SOUGHT)) is not None:
        cuts.append(end.start())
    return [text[start:stop] for start, stop in pairwise([*cuts, len(text)])]
