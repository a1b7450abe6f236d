"""Our two classes pass the suite, and the suite catches compressors that break its rules."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document

from langchain_qwen3_ranker import Qwen3CrossEncoder, Qwen3Rerank
from langchain_qwen3_ranker.conformance import DocumentCompressorTests


class TestQwen3Rerank(DocumentCompressorTests):
    @property
    def compressor_class(self) -> type[BaseDocumentCompressor]:
        return Qwen3Rerank

    @property
    def compressor_params(self) -> dict[str, Any]:
        return {"model": "bundled:tiny"}


class TestQwen3CrossEncoder(DocumentCompressorTests):
    """LangChain's own reranker around our cross encoder: it drops scores, keeps duplicates and copies nothing."""

    @property
    def compressor_class(self) -> type[BaseDocumentCompressor]:
        return CrossEncoderReranker

    @property
    def compressor_params(self) -> dict[str, Any]:
        return {"model": Qwen3CrossEncoder(model="bundled:tiny")}

    @property
    def score_key(self) -> str | None:
        return None

    @property
    def removes_duplicates(self) -> bool:
        return False

    @property
    def returns_copies(self) -> bool:
        return False


class ByLength(BaseDocumentCompressor):
    """A compressor that keeps all the rules: the longer a document, the better."""

    top_n: int = 3

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        distinct = list({self.identity(document): document for document in reversed(documents)}.values())[::-1]
        scored = [
            document.model_copy(
                update={"metadata": {**copy.deepcopy(document.metadata), "relevance_score": self.rate(document)}}
            )
            for document in distinct
        ]
        return sorted(scored, key=lambda document: -document.metadata["relevance_score"])[: self.top_n]

    def identity(self, document: Document) -> object:
        return (document.id, document.page_content) if document.id else id(document)

    def rate(self, document: Document) -> float:
        return len(document.page_content) / 1000


class TrustsIds(ByLength):
    def identity(self, document: Document) -> object:
        return document.id


class SharesMetadata(ByLength):
    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> Any:
        ranked = super().compress_documents(documents, query)
        for document in ranked:
            document.metadata.update(next(each for each in documents if each.id == document.id).metadata)
        return ranked


class WorstFirst(ByLength):
    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> Any:
        return super().compress_documents(documents, query)[::-1]


class NotANumber(ByLength):
    def rate(self, document: Document) -> float:
        return float("nan")


class LosesIds(ByLength):
    """As the Cohere and Voyage compressors do."""

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> Any:
        ranked = super().compress_documents(documents, query)
        return [Document(document.page_content, metadata=document.metadata) for document in ranked]


class LosesMetadata(ByLength):
    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> Any:
        ranked = super().compress_documents(documents, query)
        return [
            document.model_copy(update={"metadata": {"relevance_score": self.rate(document)}}) for document in ranked
        ]


class WritesIntoItsInput(ByLength):
    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> Any:
        for document in documents:
            document.metadata["relevance_score"] = self.rate(document)
        return super().compress_documents(documents, query)


class IgnoresTopN(ByLength):
    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> Any:
        return ByLength(top_n=100).compress_documents(documents, query)


class FailsOnNothing(ByLength):
    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> Any:
        assert documents[0]
        return super().compress_documents(documents, query)


class AnswersOtherwiseInAsync(ByLength):
    async def acompress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> Any:
        return self.compress_documents(documents, query)[::-1]


class RefusesCallbacks(ByLength):
    def compress_documents(self, documents: Sequence[Document], query: str) -> Any:  # type: ignore[override]
        return super().compress_documents(documents, query)


def suite_for(compressor: type[BaseDocumentCompressor]) -> DocumentCompressorTests:
    class Suite(DocumentCompressorTests):
        @property
        def compressor_class(self) -> type[BaseDocumentCompressor]:
            return compressor

    return Suite()


def test_the_suite_passes_what_keeps_the_rules() -> None:
    suite = suite_for(ByLength)
    for name in [name for name in dir(suite) if name.startswith("test_")]:
        getattr(suite, name)()


@pytest.mark.parametrize(
    ("compressor", "caught_by"),
    [
        (WorstFirst, "test_scores_are_finite_and_in_descending_order"),
        (NotANumber, "test_scores_are_finite_and_in_descending_order"),
        (LosesIds, "test_every_document_comes_back_once_and_whole"),
        (LosesIds, "test_subclasses_of_document_stay_what_they_are"),
        (LosesMetadata, "test_metadata_is_added_to_and_none_is_lost"),
        (TrustsIds, "test_equal_ids_with_different_texts_all_come_back"),
        (TrustsIds, "test_equal_texts_without_ids_all_come_back"),
        (SharesMetadata, "test_inputs_are_not_changed"),
        (WritesIntoItsInput, "test_inputs_are_not_changed"),
        (IgnoresTopN, "test_top_n_is_the_beginning_of_the_whole_ranking"),
        (FailsOnNothing, "test_nothing_in_nothing_out"),
        (AnswersOtherwiseInAsync, "test_async_gives_what_sync_gives"),
        (AnswersOtherwiseInAsync, "test_document_compressor_pipeline"),
        (AnswersOtherwiseInAsync, "test_contextual_compression_retriever"),
        (RefusesCallbacks, "test_callbacks_are_accepted"),
    ],
)
def test_the_suite_catches(compressor: type[BaseDocumentCompressor], caught_by: str) -> None:
    with pytest.raises((AssertionError, IndexError, TypeError)):
        getattr(suite_for(compressor), caught_by)()


def test_the_suite_cannot_be_overridden_in_silence() -> None:
    class Silent(DocumentCompressorTests):
        def test_inputs_are_not_changed(self) -> None:
            pass

    class Deleted(DocumentCompressorTests):
        test_one_document = None  # type: ignore[assignment]

    class Explained(DocumentCompressorTests):
        @pytest.mark.xfail(reason="writes into its input, issue 7")
        def test_inputs_are_not_changed(self) -> None:
            super().test_inputs_are_not_changed()

    for suite, name in ((Silent(), "test_inputs_are_not_changed"), (Deleted(), "test_one_document")):
        with pytest.raises(AssertionError, match=name):
            suite.test_no_overrides_DO_NOT_OVERRIDE()
    Explained().test_no_overrides_DO_NOT_OVERRIDE()


def test_the_suite_asks_for_the_class_under_test() -> None:
    with pytest.raises(NotImplementedError):
        DocumentCompressorTests().test_one_document()
