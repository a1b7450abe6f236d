"""What the adapters of frameworks share: a reranker that loads when it is needed, and the metadata of documents."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .checks import check_text
from .config import RankingOptions
from .documents import DocumentFormat
from .errors import EngineClosedError, EngineError, InvalidInputError
from .reranker import Reranker
from .types import Explanation, RerankResult, ScoredDocument

#: Key of a document that was not scored; its value is the name of the error's class.
FAILED = "qwen3_failed"
#: Keys of the piece with the highest margin, if long documents are judged in pieces.
PIECE = ("qwen3_piece_start", "qwen3_piece_end")
#: Key of the text that the model read, if it is requested.
JUDGED_TEXT = "qwen3_judged_text"
#: Key of the explanation, if it is requested.
EXPLANATION = "qwen3_explanation"

_logger = logging.getLogger(__name__)


class LazyReranker:
    """The reranker of one adapter: made at first use, and made again after `close` and in a forked child process.

    Thread-safe. Copies and pickles hold no reranker, because they may get other settings. Any two instances are equal,
    so that adapters with equal settings are equal too.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a thread that forks while it loads takes the lock a second time
        self._reranker: Reranker | None = None
        _all[id(self)] = self

    def get(self, make: Callable[[], Reranker]) -> Reranker:
        """The reranker, made now if there is none.

        Raises: what `make` raises.
        """
        reranker = self._reranker  # read once: another thread may close it
        return self._made(make) if reranker is None else reranker

    async def get_async(self, make: Callable[[], Reranker]) -> Reranker:
        """`get` without blocking the event loop."""
        reranker = self._reranker
        return await asyncio.to_thread(self._made, make) if reranker is None else reranker

    def close(self) -> None:
        """Close the reranker, if there is one."""
        with self._lock:
            reranker, self._reranker = self._reranker, None
        if reranker is not None:
            reranker.close()

    def set_options(self, options: RankingOptions) -> None:
        """Set the default options of the next calls, if there is a reranker."""
        with self._lock:
            if self._reranker is not None:
                self._reranker.options = options

    def drop_ended(self) -> None:
        """Forget the reranker if its engine has ended, so that the next call makes another."""
        with self._lock:
            if self._reranker is not None and not self._reranker.running:
                self._reranker = None

    def _made(self, make: Callable[[], Reranker]) -> Reranker:
        with self._lock:
            reranker = self._reranker
            if reranker is None:
                reranker = self._reranker = make()
            return reranker

    def _start_again_in_child(self) -> None:
        # Another thread of the parent may have held the lock; that thread does not exist here. The parent's reranker
        # is kept, because freeing it would free what the parent process still uses.
        _of_parent.append(self._reranker)
        self._reranker = None
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LazyReranker)

    __hash__ = None  # type: ignore[assignment]


_all: weakref.WeakValueDictionary[int, LazyReranker] = weakref.WeakValueDictionary()
_of_parent: list[Reranker | None] = []
_forking = threading.local()

# Maximum number of seconds that a fork waits for loads. A child that is forked while another thread loads a model
# inherits a half-initialized transformers, and its own load fails or hangs. The wait is limited, because a load may
# wait for a fork in another thread.
_LONGEST_LOAD = 60


def _wait_for_loads() -> None:
    locks = [each._lock for each in list(_all.values())]  # noqa: SLF001 - of this module
    deadline = time.monotonic() + _LONGEST_LOAD  # one for all locks: threads that load and fork wait for each other
    _forking.held = [lock for lock in locks if lock.acquire(timeout=max(0.0, deadline - time.monotonic()))]


def _go_on_in_parent() -> None:
    for lock in _forking.held:
        lock.release()


def _start_again_in_child() -> None:
    for each in list(_all.values()):
        each._start_again_in_child()  # noqa: SLF001 - of this module


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_wait_for_loads, after_in_parent=_go_on_in_parent, after_in_child=_start_again_in_child)


Item = TypeVar("Item")


@dataclass
class RankingCall(ABC, Generic[Item]):
    """One call of an adapter. Subclasses define how documents of their framework are copied.

    Attributes:
        items: documents of the framework, without duplicates.
        arguments: the arguments of `Reranker.rerank`; its documents are the texts of `items`, in the same order.
        top_k: maximum number of items to return if they cannot be scored; None for all.
        fail_open: whether items that cannot be scored are returned in their input order, rather than raising an error.
        lazy: holder of the reranker of the adapter.
        judged_text: whether the metadata of copies gains the text that the model read.
        waiting: whether the items have to be scored.
        output: copies of the items that are returned; empty until then.
    """

    items: list[Item]
    arguments: dict[str, Any]
    top_k: int | None
    fail_open: bool
    lazy: LazyReranker
    judged_text: bool = False
    waiting: bool = False
    output: list[Item] = field(default_factory=list)

    @abstractmethod
    def ranked(self, item: Item, hit: ScoredDocument) -> Item:
        """A copy with a score."""

    @abstractmethod
    def unranked(self, item: Item, error: Exception) -> Item:
        """A copy without a new score, with the name of the error in its metadata."""

    def finish(self, result: RerankResult) -> None:
        """Output the items in `result`, best first."""
        self.output = [self.ranked(self.items[hit.index], hit) for hit in result]

    def refuse_query(self) -> None:
        """Handle a query that is None or blank, as it is if an upstream component found nothing to ask.

        Raises:
            InvalidInputError: `fail_open` is not set, or the query is neither None nor a text, which is a mistake in
                the program.
        """
        query = self.arguments["query"]
        try:
            check_text("query", query)
        except InvalidInputError as error:
            if query is not None and not isinstance(query, str):
                raise
            self.fail(error)

    def fail(self, error: EngineError | InvalidInputError) -> None:
        """Output the first `top_k` items in their input order, if `fail_open` is set.

        Raises:
            EngineError, InvalidInputError: `error`, if `fail_open` is not set. An EngineClosedError is raised in any
                case, because every later answer would be unranked too.
        """
        if isinstance(error, EngineClosedError):
            self.lazy.drop_ended()
            raise error
        if not self.fail_open:
            raise error
        _logger.warning("not reranked, documents are returned as they came: %s: %s", type(error).__name__, error)
        self.waiting = False
        self.output = [self.unranked(item, error) for item in self.items[: self.top_k]]


def ranked_metadata(
    metadata: Mapping[str, Any],
    hit: ScoredDocument,
    retriever_score: float | None,
    key: str = "retriever_score",
    *,
    content: str | None = None,
    judged_text: bool = False,
) -> dict[str, Any]:
    """A deep copy of a document's metadata, with the results of the model added.

    Args:
        metadata: metadata of the document before ranking.
        hit: its place in the ranking.
        retriever_score: score of the document before ranking; stored under `key` unless the metadata has a value there
            already.
        key: the framework's name of that score.
        content: the document's own text, which may be a part of the judged text; offsets of the piece refer to it. None
            for a document without a text, which gets no offsets.
        judged_text: whether to add the text that the model read. Text and explanation of an earlier reranker are
            removed in any case.
    """
    copied = own_copies(metadata)
    copied.pop(FAILED, None)
    copied.pop(JUDGED_TEXT, None)
    copied.pop(EXPLANATION, None)
    if retriever_score is not None and copied.get(key) is None:
        copied[key] = retriever_score
    copied["qwen3_margin"] = hit.margin
    copied["qwen3_confidence"] = hit.confidence
    copied["qwen3_truncated_tokens"] = hit.truncated_tokens
    for name in PIECE:
        copied.pop(name, None)
    if hit.piece is not None and content is not None:
        # Frameworks strip the white space at both ends of a text before they put metadata in front of it.
        found = hit.document.rfind(content.strip())
        before = found - (len(content) - len(content.lstrip()))
        for name, offset in zip(PIECE, hit.piece, strict=True) if found >= 0 else ():  # YAML may have quoted the text
            copied[name] = min(max(offset - before, 0), len(content))
    if judged_text:
        copied[JUDGED_TEXT] = hit.document
    if hit.explanation is not None:
        copied[EXPLANATION] = _explanation(hit.document, hit.explanation)
    return copied


def _explanation(judged: str, explanation: Explanation) -> dict[str, Any]:
    """An explanation as builtin values that JSON can hold. Texts stand in place of offsets into the judged text."""
    start, end = explanation.judged
    described: dict[str, Any] = {
        "prompt": explanation.prompt,
        "prompt_tokens": explanation.prompt_tokens,
        "judged": judged[start:end],
        "rank": explanation.rank,
        "rank_before": explanation.rank_before,
    }
    if explanation.sentences is not None:
        described["sentences"] = [
            {"text": judged[each.start : each.end], "contribution": each.contribution} for each in explanation.sentences
        ]
    return described


def unranked_metadata(metadata: Mapping[str, Any], error: Exception) -> dict[str, Any]:
    """A deep copy of the metadata of a document that was not scored, with the name of the error's class."""
    return {**own_copies(metadata), FAILED: type(error).__name__}


def judged_text(form: DocumentFormat, metadata: Mapping[str, Any], text: str, place: str) -> str:
    """The judged text of a document with metadata and a text.

    Raises:
        InvalidInputError: it has none of the keys that `document_template` names, or a value has no form as text.
    """
    judged = form.text(metadata, text, place=f"{place}.metadata")
    if judged is None:
        remedy = (
            f"has none of the keys that document_template names: leave it out, or put {{{form.own}}} into the template"
        )
        raise InvalidInputError(place, form.template, remedy)
    return judged


def own_copies(values: Mapping[str, Any]) -> dict[str, Any]:
    """Deep copies of values. A value that cannot be copied, such as a lock or a connection, is shared."""
    try:
        return copy.deepcopy(dict(values))
    except Exception:  # noqa: BLE001 - a value's own __deepcopy__ may raise anything
        return {key: _own_copy(key, value) for key, value in values.items()}


def _own_copy(key: str, value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception as error:  # noqa: BLE001 - as above
        _logger.debug("%r cannot be copied and is shared with the ranked document: %s", key, error)
        return value
