"""The LangChain document compressor: Documents -> texts -> `Reranker` -> Documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, StrictBool, model_validator
from typing_extensions import override

from qwen3_ranker_plugins import EngineError, InvalidInputError, ScoredDocument
from qwen3_ranker_plugins.adapter_settings import Qwen3Settings
from qwen3_ranker_plugins.adapters import (
    RankingCall,
    judged_text,
    own_copies,
    ranked_metadata,
    unranked_metadata,
)
from qwen3_ranker_plugins.checks import check_positive
from qwen3_ranker_plugins.config import RankingOptions
from qwen3_ranker_plugins.documents import DocumentFormat


class Qwen3Rerank(Qwen3Settings, BaseDocumentCompressor):
    r"""Orders documents by P(yes), the probability that a Qwen3 reranker answers "yes, this document fits the query".

    Returned documents are deep copies. Their `metadata` gains:

    - `relevance_score`: P(yes), in [0, 1].
    - `retriever_score`: the `score`, or else the `relevance_score`, that the document came with, if it had one. An
      existing value is kept, so that a second reranker does not replace it with the score of the first.
    - `qwen3_margin`: logit(yes) - logit(no), which still orders documents whose scores all round to 1.0.
    - `qwen3_confidence`: |P(yes) - P(no)|, in [0, 1]: how certain the model is of its answer, whether yes or no.
    - `qwen3_truncated_tokens`: number of tokens cut off the end of the text to make it fit; 0 if it was read whole.
    - `qwen3_piece_start`, `qwen3_piece_end`: with `long_documents="pieces"`, the piece with the highest margin, as
      offsets in `page_content` in characters.
    - `qwen3_judged_text`, if `return_judged_text` is set: the text that the model read.
    - `qwen3_explanation`, if `explain` is set: why the document has its rank.

    ```python
    from langchain_core.documents import Document
    from langchain_qwen3_ranker import Qwen3Rerank

    compressor = Qwen3Rerank(model="bundled:tiny", top_n=1)
    documents = [Document("A list holds items."), Document("The with statement closes a file.")]
    print(compressor.compress_documents(documents, "how is a file closed?"))
    ```
    """

    top_n: int | None = 3
    """Maximum number of documents to return; None returns all, or as many as `reranker` is configured for."""
    score_threshold: float | None = None
    """Minimum score, in [0, 1], of a returned document; None for no minimum."""
    min_confidence: float | None = None
    """Minimum confidence, in [0, 1], of a returned document; None for no minimum."""
    metadata_fields_to_embed: list[str] = Field(default_factory=list)
    """Keys of the metadata whose values are put in front of the text, in this order. Missing values and None are left
    out."""
    embedding_separator: str = "\n"
    """Text between those values and the document's text."""
    document_template: str = "values"
    """How those values and the text are joined. "values": as above. "lines": a line `key: value` for each, the last one
    for `page_content`. "yaml": the same as YAML. Or a text with keys of the metadata and `page_content` in braces, such
    as "{title} ({year}): {page_content}", without `metadata_fields_to_embed`; a missing value is empty."""
    return_judged_text: StrictBool = False
    """Put the text that the model read into `metadata["qwen3_judged_text"]`."""
    explain: StrictBool | Literal["sentences"] = False
    """True puts an explanation into `metadata["qwen3_explanation"]`: the prompt and its number of tokens, the part of
    the text that was judged, and the ranks before and after. "sentences" adds what each sentence of that part
    contributes to the margin, which takes a second request. For debugging."""
    fail_open: StrictBool = False
    """If scoring fails, or the query is None or blank, return the documents in the order in which they came, at most
    `top_n` of them, without new scores and with `qwen3_failed` in their metadata: the name of the error's class.
    Thresholds are not applied, because there is no P(yes) to compare with. Other invalid input, a model that cannot be
    loaded and a closed reranker raise an error nevertheless."""

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        check_positive("top_n", self.top_n)
        RankingOptions(None, self.score_threshold, self.min_confidence)
        self._format()
        return self

    @override
    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Orders documents by their relevance to a query, best first.

        Args:
            documents: the documents to rank, in any order; they are not changed. Of several with the same id and the
                same text, the first is ranked. An empty list gives an empty list.
            query: the question or search text. None and blank texts are errors, unless `fail_open` is set.
            callbacks: not used, because reranking starts no run of its own.

        Raises:
            InvalidInputError: a ValueError that names the argument, its value and the remedy.
            PromptTooLongError: query and instruction leave no room for a document.
            ScoringError: a document has no usable score; not with `fail_open`.
            EngineError: the forward pass failed; not with `fail_open`.
            EngineClosedError: the reranker was closed during the call, or `reranker` belongs to the parent process.
            ModelNotFoundError, UnsupportedModelError, MissingDependencyError: the model cannot be loaded.
        """
        call = self._start(documents, query)
        if call.waiting:
            reranker = self._ready()
            try:
                call.finish(reranker.rerank(**call.arguments))
            except EngineError as error:
                call.fail(error)
        return call.output

    @override
    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents` without blocking the event loop; a cancelled call leaves the queue."""
        call = self._start(documents, query)
        if call.waiting:
            reranker = await self._ready_async()
            try:
                call.finish(await reranker.arerank(**call.arguments))
            except EngineError as error:
                call.fail(error)
        return call.output

    def _start(self, documents: Sequence[Document], query: str) -> _Call:
        """Everything that both methods do before scoring."""
        check_positive("top_n", self.top_n)  # it may have been changed since it was validated
        distinct = _without_duplicates(documents)
        call = _Call(
            distinct,
            {
                "query": query,
                "documents": self._texts(distinct),
                "top_k": self.top_n,
                "score_threshold": self.score_threshold,
                "min_confidence": self.min_confidence,
                "instruction": self.instruction,
                "explain": self.explain,
            },
            self.top_n,
            self.fail_open,
            self._lazy,
            self.return_judged_text,
            waiting=bool(distinct),
        )
        if not isinstance(query, str) or not query.strip():
            call.refuse_query()
        return call

    def _texts(self, documents: list[Document]) -> list[str]:
        """The text to judge of each document."""
        form = self._format()
        return [
            judged_text(form, document.metadata, document.page_content, f"documents[{index}]")
            for index, document in enumerate(documents)
        ]

    def _format(self) -> DocumentFormat:
        """How the text to judge is made from a document."""
        return DocumentFormat(
            self.metadata_fields_to_embed,
            self.document_template,
            own="page_content",
            separator=self.embedding_separator,
            argument="metadata_fields_to_embed",
        )


class _Call(RankingCall[Document]):
    """One call of either method."""

    def ranked(self, item: Document, hit: ScoredDocument) -> Document:
        given = item.metadata.get("score")
        if given is None:
            given = item.metadata.get("relevance_score")
        metadata = ranked_metadata(item.metadata, hit, given, content=item.page_content, judged_text=self.judged_text)
        return _copy(item, {**metadata, "relevance_score": hit.score})

    def unranked(self, item: Document, error: Exception) -> Document:
        return _copy(item, unranked_metadata(item.metadata, error))


def _copy(document: Document, metadata: dict[str, Any]) -> Document:
    """A copy of the same class that shares nothing with the document."""
    others = {name: value for name, value in vars(document).items() if name not in ("page_content", "metadata")}
    return document.model_copy(update={**own_copies(others), "metadata": metadata})


def _without_duplicates(documents: Sequence[Document]) -> list[Document]:
    """The first of the documents with the same id and the same text. Documents without an id are all different.

    An id alone does not make two documents the same: each store numbers its own, and many begin with "0".
    """
    if not isinstance(documents, Sequence):
        raise InvalidInputError("documents", documents, "needs a list of LangChain Documents")
    kept: dict[object, Document] = {}
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InvalidInputError(f"documents[{index}]", document, "needs a LangChain Document")
        kept.setdefault((document.id, document.page_content) if document.id else index, document)
    return list(kept.values())
