"""Haystack's documents: their copies with a score, and several documents with one id."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from haystack import Document

from qwen3_ranker_plugins import InvalidInputError, ScoredDocument
from qwen3_ranker_plugins.adapters import RankingCall, own_copies, ranked_metadata, unranked_metadata

_logger = logging.getLogger(__name__)


class RankerCall(RankingCall[Document]):
    """One call of `run` or `run_async`."""

    def ranked(self, item: Document, hit: ScoredDocument) -> Document:
        """See `RankingCall`."""
        meta = ranked_metadata(item.meta, hit, item.score, content=item.content, judged_text=self.judged_text)
        return _copy(item, hit.score, meta)

    def unranked(self, item: Document, error: Exception) -> Document:
        """See `RankingCall`."""
        return _copy(item, item.score, unranked_metadata(item.meta, error))


def _copy(document: Document, score: float | None, meta: dict[str, Any]) -> Document:
    """A copy of the same class that shares nothing with the document."""
    others = {"blob": document.blob, "sparse_embedding": document.sparse_embedding}
    embedding = None if document.embedding is None else list(document.embedding)  # deepcopy takes 50 times as long
    return replace(document, score=score, meta=meta, embedding=embedding, **own_copies(others))


def without_duplicates(documents: Sequence[Document]) -> list[Document]:
    """One document per id, the one with the highest score, at the place of the first: the rule of Haystack's rankers.

    An id identifies a document in Haystack (by default it is a hash of the content), so different texts with one id are
    a mistake, which is logged.
    """
    if type(documents) is not list and not isinstance(documents, Sequence):
        raise InvalidInputError("documents", documents, "needs a list of haystack Documents")
    kept: dict[str, Document] = {}
    conflicts = set()
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InvalidInputError(f"documents[{index}]", document, "needs a haystack Document")
        rival = kept.setdefault(document.id, document)
        if rival is not document:
            if rival.content != document.content:
                conflicts.add(document.id)
            if document.score is not None and (rival.score is None or document.score > rival.score):
                kept[document.id] = document
    if conflicts:
        _logger.warning(
            "%d ids, such as %r, belong to documents with different texts: only the one with the highest score is "
            "ranked; give documents of different stores different ids",
            len(conflicts),
            min(conflicts),
        )
    return list(kept.values())
