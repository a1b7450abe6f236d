"""The LangChain document compressor: Documents -> texts -> `Reranker` -> Documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, model_validator
from typing_extensions import override

from qwen3_ranker_plugins import InvalidInputError, RerankResult
from qwen3_ranker_plugins.config import RankingOptions, check_positive, check_text

from ._settings import Qwen3Settings


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
            ScoringError: a document has no usable score.
            EngineError: the forward pass failed, or the reranker was closed meanwhile.
            ModelNotFoundError, UnsupportedModelError, MissingDependencyError: the model cannot be loaded.
        """
        call = self._prepare(documents, query)
        return call.finish(self._ready().rerank(**call.arguments)) if call.documents else []

    @override
    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` without blocking the event loop; cancelling it frees its place in the queue."""
        call = self._prepare(documents, query)
        if not call.documents:
            return []
        reranker = await self._ready_async()
        return call.finish(await reranker.arerank(**call.arguments))

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
            metadata = dict(document.metadata)
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
