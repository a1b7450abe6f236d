"""The demo corpus searched in Haystack and in LangChain: BM25 alone, and BM25 followed by the reranker."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Protocol

from ..data.demo import DemoCorpus, lower_case_words
from ..errors import MissingDependencyError
from ..pip_command import pip_install


@dataclass(frozen=True)
class SearchSettings:
    """Settings of both frameworks. Because they are equal, the rerankers share one engine.

    Attributes:
        model, device: as in `Reranker`.
        candidates: how many passages BM25 hands to the reranker.
        top_k: how many passages the reranker returns.
    """

    model: str
    device: str
    candidates: int
    top_k: int


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that was found, with P(yes) if it was reranked."""

    document_id: str
    score: float | None = None


class Search(Protocol):
    """A framework with the corpus in it.

    Attributes:
        framework: its name.
        steps: its components, in words.
    """

    framework: str
    steps: str

    def retrieve(self, query: str) -> list[Found]:
        """The candidates in BM25's order."""

    def rerank(self, query: str) -> list[Found]:
        """The best `top_k` passages of the whole pipeline, BM25 and then the reranker, in their new order."""


class HaystackSearch:
    """A Haystack Pipeline with InMemoryBM25Retriever -> Qwen3Ranker.

    Raises:
        MissingDependencyError: haystack or the adapter is not installed.
    """

    framework = "Haystack"
    steps = "Pipeline with InMemoryBM25Retriever -> Qwen3Ranker"

    def __init__(self, corpus: DemoCorpus, settings: SearchSettings) -> None:
        # Haystack's telemetry writes a file into the home folder and opens connections; a demonstration should not.
        os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
        try:
            from haystack import Document, Pipeline
            from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
            from haystack.document_stores.in_memory import InMemoryDocumentStore
            from haystack.utils import ComponentDevice

            from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker
        except ImportError as error:
            raise _missing("Haystack", error) from error

        store = InMemoryDocumentStore()
        store.write_documents(
            [Document(id=each.document_id, content=each.content) for each in corpus.documents.values()]
        )
        self._retriever = InMemoryBM25Retriever(store, top_k=settings.candidates)
        device = None if settings.device == "auto" else ComponentDevice.from_str(settings.device)
        self._pipeline = Pipeline()
        self._pipeline.add_component("retriever", self._retriever)
        self._pipeline.add_component("ranker", Qwen3Ranker(model=settings.model, device=device, top_k=settings.top_k))
        self._pipeline.connect("retriever.documents", "ranker.documents")
        self._pipeline.warm_up()

    def retrieve(self, query: str) -> list[Found]:
        """See `Search`."""
        return [Found(each.id) for each in self._retriever.run(query=query)["documents"]]

    def rerank(self, query: str) -> list[Found]:
        """See `Search`."""
        output = self._pipeline.run({"retriever": {"query": query}, "ranker": {"query": query}})
        return [Found(each.id, each.score) for each in output["ranker"]["documents"]]


class LangChainSearch:
    """A LangChain ContextualCompressionRetriever with BM25Retriever -> Qwen3Rerank.

    Raises:
        MissingDependencyError: langchain or the adapter is not installed.
    """

    framework = "LangChain"
    steps = "ContextualCompressionRetriever with BM25Retriever -> Qwen3Rerank"

    def __init__(self, corpus: DemoCorpus, settings: SearchSettings) -> None:
        try:
            with warnings.catch_warnings():
                # The only BM25 retriever that LangChain has lives in a package that is no longer developed.
                warnings.filterwarnings("ignore", "`langchain-community` is being sunset", DeprecationWarning)
                from langchain_community.retrievers import BM25Retriever
            from langchain_classic.retrievers import ContextualCompressionRetriever
            from langchain_core.documents import Document

            from langchain_qwen3_ranker import Qwen3Rerank

            documents = [Document(each.content, id=each.document_id) for each in corpus.documents.values()]
            # Its own tokenization only splits at blanks, so that "Closed?" would not match "closed".
            self._retriever = BM25Retriever.from_documents(
                documents, k=settings.candidates, preprocess_func=lower_case_words
            )
        except ImportError as error:
            raise _missing("LangChain", error) from error
        compressor = Qwen3Rerank(model=settings.model, device=settings.device, top_n=settings.top_k)
        self._compression = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=self._retriever)

    def retrieve(self, query: str) -> list[Found]:
        """See `Search`."""
        return [Found(str(each.id)) for each in self._retriever.invoke(query)]

    def rerank(self, query: str) -> list[Found]:
        """See `Search`."""
        return [Found(str(each.id), each.metadata["relevance_score"]) for each in self._compression.invoke(query)]


def _missing(half: str, error: ImportError) -> MissingDependencyError:
    remedy = pip_install("demo", also=("qwen3-ranker-tiny", "qwen3-ranker-haystack", "langchain-qwen3-ranker"))
    return MissingDependencyError(f"the {half} half of the demo lacks {error.name}: {remedy}")
