"""The LangChain document compressor: Documents -> texts -> `Reranker` -> Documents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, StrictBool, model_validator
from typing_extensions import override

from qwen3_ranker_plugins import EngineError, InvalidInputError, RerankResult
from qwen3_ranker_plugins.config import RankingOptions, check_positive, check_text

from ._settings import Qwen3Settings

_logger = logging.getLogger(__name__)


class Qwen3Rerank(Qwen3Settings, BaseDocumentCompressor):
    r"""Orders documents by P(yes), the probability that a Qwen3 reranker answers "yes, this document fits the query".

    Returned documents are copies. Their `metadata` gains:

    - `relevance_score`: P(yes), in [0, 1].
    - `retriever_score`: the `score`, or else the `relevance_score`, that the document came with, if it had one. One
      that is already there stays, so that the second of two rerankers does not replace it with the score of the first.
    - `qwen3_margin`: logit(yes) - logit(no), which still orders documents whose scores all round to 1.0.
    - `qwen3_confidence`: |P(yes) - P(no)|, in [0, 1]: how decided the model is, either way.
    - `qwen3_truncated_tokens`: tokens cut off the end of the text so that it fits; 0 if it was read whole.

    ```python
    from langchain_core.documents import Document
    from langchain_qwen3_ranker import Qwen3Rerank

    compressor = Qwen3Rerank(model="bundled:tiny", top_n=1)
    documents = [Document("A list holds items."), Document("The with statement closes a file.")]
    print(compressor.compress_documents(documents, "how is a file closed?"))
    ```
    """

    top_n: int | None = 3
    """At most this many documents are returned; None for all of them, or as many as `reranker` is configured for."""
    score_threshold: float | None = None
    """Only documents with a score of at least this, in [0, 1], are returned."""
    min_confidence: float | None = None
    """Only documents with a confidence of at least this, in [0, 1], are returned."""
    metadata_fields_to_embed: list[str] = Field(default_factory=list)
    """Keys of the metadata whose values go in front of the text, in this order. Only a value of None is left out."""
    embedding_separator: str = "\n"
    """Stands between those values and the text."""
    fail_open: StrictBool = False
    """If scoring fails, return the documents in the retriever's own order, at most `top_n` of them, without scores of
    ours and with `qwen3_failed` in their metadata: the name of the error's class. Thresholds are not applied, as there
    is no P(yes) to apply them to. Bad input raises nevertheless."""

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        check_positive("top_n", self.top_n)
        RankingOptions(None, self.score_threshold, self.min_confidence)
        return self

    @override
    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The documents in order of relevance, best first.

        Args:
            documents: in any order, not changed; of several with one id (other than None), the first is used. An
                empty list gives an empty list.
            query: what was asked; not empty.
            callbacks: not used, as no part of this is a run of its own.

        Raises:
            InvalidInputError: a ValueError; names the argument, its value and the remedy.
            PromptTooLongError: query and instruction leave no room for a document.
            ScoringError: a document has no usable score; not with `fail_open`.
            EngineError: the forward pass failed, or the reranker was closed meanwhile; not with `fail_open`.
            ModelNotFoundError, UnsupportedModelError, MissingDependencyError: the model cannot be loaded.
        """
        call = self._prepare(documents, query)
        if not call.documents:
            return []
        reranker = self._ready()
        try:
            result = reranker.rerank(**call.arguments)
        except EngineError as error:
            return call.in_their_own_order(error, fail_open=self.fail_open)
        return call.finish(result)

    @override
    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` without blocking the event loop; cancelling it frees its place in the queue."""
        call = self._prepare(documents, query)
        if not call.documents:
            return []
        reranker = await self._ready_async()
        try:
            result = await reranker.arerank(**call.arguments)
        except EngineError as error:
            return call.in_their_own_order(error, fail_open=self.fail_open)
        return call.finish(result)

    def _prepare(self, documents: Sequence[Document], query: str) -> _Call:
        check_text("query", query)
        check_positive("top_n", self.top_n)
        distinct = _without_duplicates(documents)
        arguments = {
            "query": query,
            "documents": [self._text(document) for document in distinct],
            "top_k": self.top_n,
            "score_threshold": self.score_threshold,
            "min_confidence": self.min_confidence,
            "instruction": self.instruction,
        }
        return _Call(distinct, arguments)

    def _text(self, document: Document) -> str:
        values = [document.metadata.get(key) for key in self.metadata_fields_to_embed]
        embedded = [str(value) for value in values if value is not None]
        return self.embedding_separator.join([*embedded, document.page_content])


@dataclass(frozen=True)
class _Call:
    """What the sync and the async method share.

    Attributes:
        documents: to be ranked, no id twice.
        arguments: of `Reranker.rerank`; the texts stand in the order of `documents`.
    """

    documents: list[Document]
    arguments: dict[str, Any]

    def finish(self, result: RerankResult) -> list[Document]:
        """Copies of the documents that are left, best first."""
        ranked = []
        for hit in result:
            document = self.documents[hit.index]
            metadata = {key: value for key, value in document.metadata.items() if key != "qwen3_failed"}
            for key in ("score", "relevance_score"):
                if metadata.get(key) is not None and metadata.get("retriever_score") is None:
                    metadata["retriever_score"] = metadata[key]
            metadata |= {
                "relevance_score": hit.score,
                "qwen3_margin": hit.margin,
                "qwen3_confidence": hit.confidence,
                "qwen3_truncated_tokens": hit.truncated_tokens,
            }
            ranked.append(document.model_copy(update={"metadata": metadata}))
        return ranked

    def in_their_own_order(self, error: EngineError, *, fail_open: bool) -> list[Document]:
        """Copies of the first documents, as they came, marked with what failed.

        Raises:
            EngineError: the one given, unless `fail_open`.
        """
        if not fail_open:
            raise error
        reason = type(error).__name__
        _logger.warning("not reranked, the retriever's own order is returned: %s: %s", reason, error)
        kept = self.documents[: self.arguments["top_k"]]
        return [each.model_copy(update={"metadata": {**each.metadata, "qwen3_failed": reason}}) for each in kept]


def _without_duplicates(documents: Sequence[Document]) -> list[Document]:
    """The first document of each id; documents without one are all different."""
    if not isinstance(documents, Sequence):
        raise InvalidInputError("documents", documents, "needs a list of LangChain Documents")
    seen: set[str | None] = set()
    kept = []
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InvalidInputError(f"documents[{index}]", document, "needs a LangChain Document")
        if document.id is None or document.id not in seen:
            kept.append(document)
        seen.add(document.id)
    return kept
