"""Qwen3CrossEncoder: pairs in, scores out in the same order."""

from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from langchain_qwen3_ranker import Qwen3CrossEncoder
from qwen3_ranker_plugins import InvalidInputError, Reranker

QUERY = "which statement closes a file?"


def test_scores_stand_in_the_order_of_the_pairs(model: str, core: Reranker, documents: list[Document]) -> None:
    queries = [QUERY, "what is a list?", QUERY, QUERY, "what is a list?"]
    pairs = [(query, document.page_content) for query, document in zip(queries, documents, strict=True)]
    scores = Qwen3CrossEncoder(model=model).score(pairs)
    assert all(type(score) is float for score in scores)
    assert scores == pytest.approx([float(core.score(query, [text])[0]) for query, text in pairs], abs=1e-4)


def test_equal_pairs_have_equal_scores(model: str) -> None:
    first, other, again = Qwen3CrossEncoder(model=model).score([(QUERY, "text"), (QUERY, "other"), (QUERY, "text")])
    assert first == again != other


def test_instruction(model: str, core: Reranker) -> None:
    [score] = Qwen3CrossEncoder(model=model, instruction="Find jokes").score([(QUERY, "text")])
    assert score == pytest.approx(core.rerank(QUERY, ["text"], instruction="Find jokes")[0].score)


def test_nothing_in_nothing_out_without_loading_a_model() -> None:
    assert Qwen3CrossEncoder(model="/no/such/folder").score([]) == []


@pytest.mark.parametrize("pair", ["qa", (QUERY, "a", "b"), 7])
def test_what_is_not_a_pair_is_named(pair: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"text_pairs\[0\]=.*needs a pair"):
        Qwen3CrossEncoder(model="/no/such/folder").score([pair])


@pytest.mark.parametrize(
    ("pair", "named"),
    [(("", "text"), r"text_pairs\[1\]\[0\]=''"), ((QUERY, None), r"text_pairs\[1\]\[1\]=None"), ((7, "text"), "=7")],
)
def test_bad_pairs_are_named(pair: Any, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        Qwen3CrossEncoder(model="/no/such/folder").score([(QUERY, "text"), pair])


def test_bad_settings_are_refused_at_once(model: str) -> None:
    with pytest.raises(ValidationError, match="engine='warp'"):
        Qwen3CrossEncoder(engine="warp")
    with pytest.raises(ValidationError, match="top_n"):
        Qwen3CrossEncoder(top_n=3)  # type: ignore[call-arg]


def test_a_ready_reranker_scores_every_pair_whatever_its_limits(model: str, core: Reranker) -> None:
    expected = core.rerank(QUERY, ["text"])[0].score
    with Reranker(model, top_k=1, score_threshold=1.0) as limited:
        assert Qwen3CrossEncoder(reranker=limited).score([(QUERY, "text")] * 2) == pytest.approx([expected] * 2)


async def test_in_langchains_own_reranker_over_a_vector_store(
    model: str, core: Reranker, documents: list[Document]
) -> None:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=16))
    store.add_documents(documents)
    retriever = ContextualCompressionRetriever(
        base_compressor=CrossEncoderReranker(model=Qwen3CrossEncoder(model=model), top_n=2),
        base_retriever=store.as_retriever(search_kwargs={"k": 5}),
    )
    expected = [hit.document for hit in core.rerank(QUERY, [document.page_content for document in documents], top_k=2)]
    assert [document.page_content for document in retriever.invoke(QUERY)] == expected
    assert [document.page_content for document in await retriever.ainvoke(QUERY)] == expected
