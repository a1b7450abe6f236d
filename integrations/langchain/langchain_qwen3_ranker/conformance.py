"""Conformance tests for LangChain document compressors that rerank, to be inherited.

langchain-tests has suites for chat models, embeddings, vector stores and retrievers, and none for rerankers. This one
works in the same way: a test class names the compressor under test, pytest runs the inherited tests, and one of them
fails if another one was overridden without a reason.

```python
from langchain_qwen3_ranker import Qwen3Rerank
from langchain_qwen3_ranker.conformance import DocumentCompressorTests


class TestQwen3Rerank(DocumentCompressorTests):
    @property
    def compressor_class(self):
        return Qwen3Rerank

    @property
    def compressor_params(self):
        return {"model": "bundled:tiny"}
```

Needs `pip install "langchain-qwen3-ranker[conformance]"`. For assertion messages with values, put
`pytest.register_assert_rewrite("langchain_qwen3_ranker.conformance")` into conftest.py.
"""

# ruff: noqa: S101, D102 - assertions are what this module is for, and the names of the tests are their descriptions

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForRetrieverRun
from langchain_core.documents import BaseDocumentCompressor, BaseDocumentTransformer, Document
from langchain_core.retrievers import BaseRetriever


class DocumentCompressorTests:
    """Tests of a document compressor that reranks. Inherit from it, and give at least `compressor_class`."""

    @property
    def compressor_class(self) -> type[BaseDocumentCompressor]:
        """The class under test."""
        raise NotImplementedError

    @property
    def compressor_params(self) -> dict[str, Any]:
        """Arguments of its constructor, except the number of documents to return."""
        return {}

    @property
    def top_n_param(self) -> str:
        """Name of the argument for the maximum number of documents to return."""
        return "top_n"

    @property
    def score_key(self) -> str | None:
        """Key of the score in the metadata; None if the compressor returns no scores."""
        return "relevance_score"

    @property
    def score_tolerance(self) -> float:
        """Maximum difference between the scores of two equal calls."""
        return 1e-4

    @property
    def removes_duplicates(self) -> bool:
        """Whether only one of several documents with the same id and the same text is returned."""
        return True

    @property
    def returns_copies(self) -> bool:
        """Whether changing a returned document, nested metadata included, leaves the given one as it is."""
        return True

    @property
    def query(self) -> str:
        """The query of most tests."""
        return "which statement closes a file?"

    @property
    def documents(self) -> list[Document]:
        """Fresh documents: different texts, each with an id and nested metadata, in no particular order."""
        texts = [
            "A list is a mutable sequence, written in square brackets.",
            "The with statement closes the file when its block ends.",
            "A generator yields its values one at a time.",
            "The finally clause runs whether or not an exception was raised.",
            "Bananas are rich in potassium.",
        ]
        return [
            Document(text, id=f"doc-{i}", metadata={"source": {"page": i}, "none": None, "zero": 0})
            for i, text in enumerate(texts)
        ]

    def make_compressor(self, top_n: int | None = None) -> BaseDocumentCompressor:
        """A compressor that returns at most `top_n` documents, by default all of `documents`."""
        limit = len(self.documents) if top_n is None else top_n
        return self.compressor_class(**self.compressor_params, **{self.top_n_param: limit})

    def assert_same_ranking(self, one: Sequence[Document], other: Sequence[Document]) -> None:
        """Assert the same documents in the same order, with scores equal up to `score_tolerance`."""
        assert [document.id for document in one] == [document.id for document in other]
        for score, expected in zip(self._scores(one), self._scores(other), strict=True):
            assert math.isclose(score, expected, abs_tol=self.score_tolerance)

    def _scores(self, documents: Sequence[Document]) -> list[float]:
        if self.score_key is None:
            return []
        return [document.metadata[self.score_key] for document in documents]

    # Which documents come back, and in which order.

    def test_scores_are_finite_and_in_descending_order(self) -> None:
        ranked = self.make_compressor().compress_documents(self.documents, self.query)
        scores = self._scores(ranked)
        assert all(isinstance(score, float) and math.isfinite(score) for score in scores)
        assert scores == sorted(scores, reverse=True)

    def test_every_document_comes_back_once_and_whole(self) -> None:
        ranked = self.make_compressor().compress_documents(self.documents, self.query)
        given = {document.id: document for document in self.documents}
        assert sorted(str(document.id) for document in ranked) == sorted(str(key) for key in given)
        for document in ranked:
            assert document.page_content == given[document.id].page_content

    def test_order_does_not_depend_on_the_order_given(self) -> None:
        compressor = self.make_compressor()
        ranked = compressor.compress_documents(self.documents, self.query)
        again = compressor.compress_documents(self.documents[::-1], self.query)
        self.assert_same_ranking(again, ranked)

    def test_top_n_is_the_beginning_of_the_whole_ranking(self) -> None:
        ranked = self.make_compressor().compress_documents(self.documents, self.query)
        for top_n in (1, 2):
            self.assert_same_ranking(
                self.make_compressor(top_n).compress_documents(self.documents, self.query), ranked[:top_n]
            )

    def test_top_n_may_exceed_the_number_of_documents(self) -> None:
        ranked = self.make_compressor(100).compress_documents(self.documents, self.query)
        assert len(ranked) == len(self.documents)

    def test_one_document(self) -> None:
        ranked = self.make_compressor().compress_documents(self.documents[:1], self.query)
        assert [document.id for document in ranked] == [self.documents[0].id]

    def test_nothing_in_nothing_out(self) -> None:
        compressor = self.make_compressor()
        assert list(compressor.compress_documents([], self.query)) == []
        assert list(asyncio.run(compressor.acompress_documents([], self.query))) == []

    def test_equal_ids_with_equal_texts_come_back_once(self) -> None:
        twice = [*self.documents, *self.documents]
        ranked = self.make_compressor(len(twice)).compress_documents(twice, self.query)
        assert len(ranked) == len(self.documents) * (1 if self.removes_duplicates else 2)

    def test_equal_ids_with_different_texts_all_come_back(self) -> None:
        """Retrievers over two stores are merged, and each store numbers its documents from "0"."""
        for number in (str, lambda _: ""):
            documents = [
                document.model_copy(update={"id": number(index // 2)}) for index, document in enumerate(self.documents)
            ]
            ranked = self.make_compressor().compress_documents(documents, self.query)
            assert sorted(document.page_content for document in ranked) == sorted(
                document.page_content for document in documents
            )

    def test_equal_texts_without_ids_all_come_back(self) -> None:
        documents = [Document("The same text.", metadata={"place": place}) for place in range(3)]
        ranked = self.make_compressor().compress_documents(documents, self.query)
        assert [document.metadata["place"] for document in ranked] == [0, 1, 2]
        assert [document.id for document in ranked] == [None] * 3

    # What happens to documents.

    def test_inputs_are_not_changed(self) -> None:
        documents = self.documents
        before, same = copy.deepcopy(documents), list(documents)
        compressor = self.make_compressor()
        ranked = [*compressor.compress_documents(documents, self.query)]
        ranked += asyncio.run(compressor.acompress_documents(documents, self.query))
        if self.returns_copies:
            for document in ranked:
                document.metadata["source"]["page"] = -1
        assert documents == before
        assert all(now is then for now, then in zip(documents, same, strict=True))

    def test_metadata_is_added_to_and_none_is_lost(self) -> None:
        given = {document.id: document.metadata for document in self.documents}
        for document in self.make_compressor().compress_documents(self.documents, self.query):
            assert document.metadata.items() >= given[document.id].items()
            if self.score_key is not None:
                assert self.score_key in document.metadata

    def test_subclasses_of_document_stay_what_they_are(self) -> None:
        class Passage(Document):
            page: int = 0

        [ranked] = self.make_compressor().compress_documents([Passage(page_content="text", page=7)], self.query)
        assert isinstance(ranked, Passage)
        assert ranked.page == 7

    # Async, event loops, threads.

    def test_async_gives_what_sync_gives(self) -> None:
        compressor = self.make_compressor()
        ranked = compressor.compress_documents(self.documents, self.query)
        self.assert_same_ranking(asyncio.run(compressor.acompress_documents(self.documents, self.query)), ranked)

    def test_concurrent_async_calls_do_not_mix(self) -> None:
        compressor = self.make_compressor()
        queries = [self.query, "what is a list?", "which fruit is healthy?"] * 3
        expected = [compressor.compress_documents(self.documents, query) for query in queries]

        async def run() -> list[Sequence[Document]]:
            return await asyncio.gather(*(compressor.acompress_documents(self.documents, query) for query in queries))

        for one, other in zip(asyncio.run(run()), expected, strict=True):
            self.assert_same_ranking(one, other)

    def test_two_event_loops_one_after_the_other(self) -> None:
        compressor = self.make_compressor()
        first = asyncio.run(compressor.acompress_documents(self.documents, self.query))
        self.assert_same_ranking(asyncio.run(compressor.acompress_documents(self.documents, self.query)), first)

    def test_threads_share_a_compressor(self) -> None:
        compressor = self.make_compressor()
        expected = compressor.compress_documents(self.documents, self.query)
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(compressor.compress_documents, self.documents, self.query) for _ in range(16)]
            for future in futures:
                self.assert_same_ranking(future.result(), expected)

    # In LangChain.

    def test_callbacks_are_accepted(self) -> None:
        compressor, handler = self.make_compressor(), _Recorder()
        expected = compressor.compress_documents(self.documents, self.query)
        variants: list[list[BaseCallbackHandler] | None] = [None, [], [handler]]
        for callbacks in variants:
            self.assert_same_ranking(
                compressor.compress_documents(self.documents, self.query, callbacks=callbacks), expected
            )
            self.assert_same_ranking(
                asyncio.run(compressor.acompress_documents(self.documents, self.query, callbacks=callbacks)), expected
            )
        assert handler.errors == []

    def test_contextual_compression_retriever(self) -> None:
        from langchain_classic.retrievers import ContextualCompressionRetriever

        compressor = self.make_compressor()
        expected = compressor.compress_documents(self.documents, self.query)
        retriever = ContextualCompressionRetriever(
            base_compressor=compressor, base_retriever=_EveryDocument(documents=self.documents)
        )
        for invoke in (retriever.invoke, lambda *given, **kept: asyncio.run(retriever.ainvoke(*given, **kept))):
            handler = _Recorder()
            self.assert_same_ranking(invoke(self.query, config={"callbacks": [handler]}), expected)
            # The retriever and the one inside it, both with their documents, and neither with an error.
            assert handler.retrieved == [len(self.documents), len(expected)]
            assert handler.errors == []

    def test_document_compressor_pipeline(self) -> None:
        from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline

        compressor = self.make_compressor()
        expected = compressor.compress_documents(self.documents, self.query)
        pipeline = DocumentCompressorPipeline(transformers=[_Reversed(), compressor, _Reversed()])
        self.assert_same_ranking(pipeline.compress_documents(self.documents, self.query)[::-1], expected)
        self.assert_same_ranking(asyncio.run(pipeline.acompress_documents(self.documents, self.query))[::-1], expected)

    def test_no_overrides_DO_NOT_OVERRIDE(self) -> None:  # noqa: N802 - the name that langchain-tests gives it
        """A test may be overridden only to mark it `@pytest.mark.xfail(reason=...)`."""
        tests = {name: test for name, test in vars(DocumentCompressorTests).items() if name.startswith("test_")}
        overridden = {name for name, test in tests.items() if getattr(type(self), name, None) is not test}
        explained = {
            name
            for name in overridden
            for mark in getattr(getattr(type(self), name), "pytestmark", [])
            if mark.name == "xfail" and mark.kwargs.get("reason")
        }
        assert overridden <= explained, f"overridden without an xfail reason: {sorted(overridden - explained)}"


class _EveryDocument(BaseRetriever):
    """Retrieves all its documents for any query."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:  # noqa: ARG002
        return self.documents


class _Reversed(BaseDocumentTransformer):
    """Reverses the order."""

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> Sequence[Document]:  # noqa: ARG002
        return documents[::-1]


class _Recorder(BaseCallbackHandler):
    """Records what retrievers returned and which errors they raised."""

    def __init__(self) -> None:
        self.retrieved: list[int] = []
        self.errors: list[BaseException] = []

    def on_retriever_end(self, documents: Sequence[Document], **kwargs: Any) -> None:  # noqa: ARG002
        self.retrieved.append(len(documents))

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:  # noqa: ARG002
        self.errors.append(error)
