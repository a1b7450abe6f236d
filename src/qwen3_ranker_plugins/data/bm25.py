"""BM25 as a first stage, computed by bm25s. Only the splitting into words is ours: bm25s does not split Chinese."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..errors import InvalidInputError, MissingDependencyError

# Lucene's defaults.
_K1, _B = 1.2, 0.75
DESCRIPTION = f"bm25s, Lucene's formula, k1 {_K1}, b {_B}, lower-cased words and pairs of CJK characters"

_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿가-힣]+|[^\W_぀-ヿ㐀-鿿豈-﫿가-힣]+")
_CJK = re.compile(r"[぀-ヿ㐀-鿿豈-﫿가-힣]")


def words(text: str) -> list[str]:
    """Lower-cased words; a run of CJK characters becomes its pairs of neighbours, as Lucene's CJK analysis does."""
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        if len(word) > 1 and _CJK.match(word):
            found += [word[start : start + 2] for start in range(len(word) - 1)]
        else:
            found.append(word)
    return found


class BM25:
    """An index in memory.

    Args:
        documents: (id, text).

    Raises:
        MissingDependencyError: bm25s is not installed.
        InvalidInputError: no document contains a word.
    """

    def __init__(self, documents: Iterable[tuple[str, str]]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise MissingDependencyError('BM25 needs bm25s: pip install "bm25s>=0.2.12,<1"') from error
        self._ids: list[str] = []
        tokens: list[list[str]] = []
        for doc_id, text in documents:
            self._ids.append(doc_id)
            tokens.append(words(text))
        if not any(tokens):
            raise InvalidInputError("SOURCE", f"{len(self._ids)} documents", "there is no word in them to search for")
        self._index = bm25s.BM25(method="lucene", k1=_K1, b=_B)
        self._index.index(tokens, show_progress=False)

    def search(self, query: str, count: int) -> list[str]:
        """Ids of the best documents that share a word with the query; equal scores keep the corpus's order."""
        known = [word for word in words(query) if word in self._index.vocab_dict]
        if not known:
            return []
        scores = np.asarray(self._index.get_scores(known))
        order = np.argsort(-scores, kind="stable")[:count]
        return [self._ids[place] for place in order if scores[place] > 0]


def rank_listed(
    queries: Mapping[str, str], listed: Mapping[str, Sequence[str]], documents: Iterable[tuple[str, str]]
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Order candidates without scores as `BM25` would, in one pass over the collection and without an index.

    Args:
        queries: id -> text.
        listed: query id -> document ids, in any order.
        documents: (id, text) of the whole collection; read once.

    Returns:
        The lists, best first and equal scores by id, and the texts of all candidates that the collection has.
    """
    asked = {query_id: words(queries[query_id]) for query_id in listed}
    terms = {word for found in asked.values() for word in found}
    wanted = {doc_id for doc_ids in listed.values() for doc_id in doc_ids}
    texts: dict[str, str] = {}
    counted: dict[str, tuple[int, Counter[str]]] = {}
    having: Counter[str] = Counter()
    size = length = 0
    for doc_id, text in documents:
        found = words(text)
        size, length = size + 1, length + len(found)
        having.update(terms.intersection(found))
        if doc_id in wanted:
            texts[doc_id] = text
            counted[doc_id] = len(found), Counter(word for word in found if word in terms)

    def score(query_id: str, doc_id: str) -> float:
        if doc_id not in counted:
            return 0.0
        own, times = counted[doc_id]
        norm = _K1 * (1 - _B + _B * own * size / length)
        return sum(
            math.log(1 + (size - having[word] + 0.5) / (having[word] + 0.5)) * times[word] / (times[word] + norm)
            for word in asked[query_id]
        )

    ranked = {
        query_id: sorted(doc_ids, key=lambda doc_id: (-score(query_id, doc_id), doc_id))
        for query_id, doc_ids in listed.items()
    }
    return ranked, texts
