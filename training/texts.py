"""Text helpers that preparation, mining and evaluation share: terms, windows, query variants, BM25."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache

HAN = r"\u3400-\u4dbf\u4e00-\u9fff"
HAN_CHARACTER = re.compile(f"[{HAN}]")
# Scripts without blanks between words: Han, kana.
UNSPACED = rf"{HAN}\u3041-\u30ff"
UNSPACED_CHARACTER = re.compile(f"[{UNSPACED}]")
TERM = re.compile(rf"[{UNSPACED}]+|[^\W_{UNSPACED}]+")
STEM_LENGTH = 6  # letters kept of a word in another alphabet, whose endings no stemmer here knows
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+")  # noqa: RUF001
STOP_WORDS = frozenset(
    "a about after all also an and any are as at be because been but by can could did do does for from get had has "
    "have how i if in into is it its many may me more most much my no not of on one or other our out should so some "
    "such than that the their them then there these they this those to under up use used was we were what when where "
    "which while who whom whose why will with would you your".split()
)
Passage = tuple[str, str]


@lru_cache(maxsize=1_000_000)
def stem(word: str) -> str:
    """A light English stemmer: plural, -ing, -ed and -ly; enough for term matching. Others keep their first letters."""
    if not word.isascii():
        return word[:STEM_LENGTH]
    if len(word) < 4:
        return word
    for suffix, replacement in (
        ("ies", "y"),
        ("sses", "ss"),
        ("ing", ""),
        ("ed", ""),
        ("ly", ""),
        ("es", ""),
        ("s", ""),
    ):
        if word.endswith(suffix) and not word.endswith("ss") and len(word) - len(suffix) > 2:
            word = word[: len(word) - len(suffix)] + replacement
            break
    if len(word) > 4 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 4 else word


def terms(text: str) -> list[str]:
    """Stemmed words without stop words; Han and kana as single characters and pairs of characters."""
    found: list[str] = []
    for match in TERM.finditer(text.lower()):
        word = match[0]
        if UNSPACED_CHARACTER.match(word):
            found += word
            found += (word[i : i + 2] for i in range(len(word) - 1))
        elif word not in STOP_WORDS:
            found.append(stem(word))
    return found


def characters(text: str) -> list[str]:
    """Han text as single characters, other text as words: the plainest way to search Chinese."""
    found: list[str] = []
    for match in TERM.finditer(text.lower()):
        found += match[0] if UNSPACED_CHARACTER.match(match[0]) else [match[0]]
    return found


def text_length(text: str) -> int:
    """Length in words; six Han characters or kana count as five words, as they take about as many tokens."""
    han = len(UNSPACED_CHARACTER.findall(text))
    return len(text.split()) + han * 5 // 6


def sentences(text: str) -> list[str]:
    return [part.strip() for part in SENTENCE_END.split(text) if part and part.strip()]


def windows(text: str, size: int) -> list[str]:
    """Consecutive windows of whole sentences with about `size` words; a long sentence stands alone."""
    found: list[str] = []
    current: list[str] = []
    length = 0
    for sentence in sentences(text):
        words = text_length(sentence)
        if current and length + words > size:
            found.append(" ".join(current))
            current, length = [], 0
        current.append(sentence)
        length += words
    if current:
        found.append(" ".join(current))
    return found


def query_variants(query: str) -> tuple[str, str, str]:
    """The query, without case and final punctuation, and as key words alone."""
    plain = query.lower().strip(" ?？.。!！")  # noqa: RUF001
    keywords = " ".join(word for word in plain.split() if word.strip("?,.") not in STOP_WORDS)
    return query, plain or query, keywords or plain or query


class BM25:
    """Okapi BM25 with Anserini's k1 = 0.9 and b = 0.4 over `terms`; for held-out candidate lists."""

    def __init__(self, documents: Iterable[str], split: Callable[[str], list[str]] = terms) -> None:
        self.split = split
        counts = [Counter(split(document)) for document in documents]
        lengths = [sum(count.values()) for count in counts]
        mean_length = sum(lengths) / max(len(lengths), 1) or 1.0
        frequency = Counter(term for count in counts for term in count)
        self.postings: dict[str, list[tuple[int, float]]] = {}
        for number, count in enumerate(counts):
            norm = 0.9 * (0.6 + 0.4 * lengths[number] / mean_length)
            for term, hits in count.items():
                idf = math.log(1 + (len(counts) - frequency[term] + 0.5) / (frequency[term] + 0.5))
                self.postings.setdefault(term, []).append((number, idf * hits * 1.9 / (hits + norm)))

    def scores(self, query: str) -> dict[int, float]:
        """Score of every document that shares a term with the query."""
        scores: dict[int, float] = {}
        for term in self.split(query):
            for number, weight in self.postings.get(term, ()):
                scores[number] = scores.get(number, 0.0) + weight
        return scores

    def top(self, query: str, count: int) -> list[int]:
        """Numbers of the best `count` documents, best first; ties by number."""
        scores = self.scores(query)
        return sorted(scores, key=lambda number: (-scores[number], number))[:count]
