"""Qwen3Rerank beyond the conformance suite: scores, limits, settings, retrievers, lifetimes."""

import asyncio
import copy
import gc
import pickle
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from pydantic import ValidationError

from langchain_qwen3_ranker import Qwen3Rerank
from qwen3_ranker_plugins import InvalidInputError, ModelNotFoundError, PromptTooLongError, RemoteError, Reranker

QUERY = "which statement closes a file?"


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("qwen3-ranker")}


def texts(documents: list[Document]) -> list[str]:
    return [document.page_content for document in documents]


def test_scores_are_those_of_the_core(model: str, core: Reranker, documents: list[Document]) -> None:
    ranked = Qwen3Rerank(model=model, top_n=None).compress_documents(documents, QUERY)
    expected = core.rerank(QUERY, texts(documents))
    assert [document.id for document in ranked] == [f"doc-{hit.index}" for hit in expected]
    assert [document.metadata for document in ranked] == [
        {
            "topic": {"number": hit.index},
            "relevance_score": hit.score,
            "qwen3_margin": hit.margin,
            "qwen3_confidence": hit.confidence,
            "qwen3_truncated_tokens": 0,
        }
        for hit in expected
    ]


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        ({}, None),
        ({"score": None}, None),
        ({"score": 0.0}, 0.0),
        ({"relevance_score": 0.5}, 0.5),
        ({"score": 7.5, "relevance_score": 0.5}, 7.5),
        ({"retriever_score": 3.5, "relevance_score": 0.5}, 3.5),
    ],
)
def test_the_retrievers_score_is_kept(model: str, metadata: dict[str, Any], kept: float | None) -> None:
    [ranked] = Qwen3Rerank(model=model).compress_documents([Document("text", metadata=metadata)], QUERY)
    assert ranked.metadata.get("retriever_score") == kept
    assert ranked.metadata["relevance_score"] != metadata.get("relevance_score")
    assert ranked.metadata.get("score") == metadata.get("score")


def test_of_equal_ids_the_first_is_kept(model: str) -> None:
    documents = [Document("first", id="a"), Document("other", id="b"), Document("second", id="a")]
    ranked = Qwen3Rerank(model=model).compress_documents(documents, QUERY)
    assert {document.id: document.page_content for document in ranked} == {"a": "first", "b": "other"}


def test_three_are_returned_by_default_as_by_other_compressors(model: str, documents: list[Document]) -> None:
    assert len(Qwen3Rerank(model=model).compress_documents(documents, QUERY)) == 3


@pytest.mark.parametrize(
    ("option", "key"), [("score_threshold", "relevance_score"), ("min_confidence", "qwen3_confidence")]
)
def test_thresholds(model: str, documents: list[Document], option: str, key: str) -> None:
    ranked = Qwen3Rerank(model=model, top_n=None).compress_documents(documents, QUERY)
    limit = sorted(document.metadata[key] for document in ranked)[2]
    strict = Qwen3Rerank(model=model, top_n=None, **{option: limit})
    assert strict.compress_documents(documents, QUERY) == [d for d in ranked if d.metadata[key] >= limit]


def test_instruction(model: str, core: Reranker, documents: list[Document]) -> None:
    ranked = Qwen3Rerank(model=model, instruction="Find jokes", top_n=None).compress_documents(documents, QUERY)
    expected = core.rerank(QUERY, texts(documents), instruction="Find jokes")
    assert [document.metadata["qwen3_margin"] for document in ranked] == [hit.margin for hit in expected]


def test_metadata_fields_are_embedded_in_their_order_and_only_none_is_left_out(model: str, core: Reranker) -> None:
    metadata = {"zero": 0, "none": None, "empty": "", "no": False, "title": "Files"}
    fields = ["title", "missing", "none", "zero", "empty", "no"]
    compressor = Qwen3Rerank(model=model, metadata_fields_to_embed=fields, embedding_separator=" | ")
    [ranked] = compressor.compress_documents([Document("The text.", metadata=metadata)], QUERY)
    assert ranked.page_content == "The text."
    assert ranked.metadata["qwen3_margin"] == core.rerank(QUERY, ["Files | 0 |  | False | The text."])[0].margin


def test_truncation_is_reported(model: str) -> None:
    compressor = Qwen3Rerank(model=model, max_length=150)
    ranked = compressor.compress_documents([Document("one two three " * 200, id="long"), Document("one")], QUERY)
    cut = {document.id: document.metadata["qwen3_truncated_tokens"] for document in ranked}
    assert cut["long"] > 100
    assert cut[None] == 0


async def test_nothing_in_nothing_out_without_loading_a_model() -> None:
    compressor = Qwen3Rerank(model="/no/such/folder")
    assert compressor.compress_documents([], QUERY) == []
    assert await compressor.acompress_documents([], QUERY) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"top_n": 0}, "top_n=0: use a positive integer"),
        ({"top_n": -1}, "top_n=-1"),
        ({"score_threshold": -0.1}, "score_threshold=-0.1"),
        ({"score_threshold": float("nan")}, "score_threshold=nan"),
        ({"min_confidence": 1.5}, "min_confidence=1.5"),
        ({"model": ""}, "model=''"),
        ({"engine": "warp"}, "engine='warp': use one of"),
        ({"dtype": "int3"}, "dtype='int3'"),
        ({"device": "mps"}, "device='mps'"),
        ({"template": "{query} {nonsense} {document}"}, "unknown field {nonsense}"),
        ({"instruction": " "}, "instruction=' '"),
        ({"max_length": 0}, "max_length=0"),
        ({"token_budget": -5}, "token_budget=-5"),
        ({"engine_options": {"depth": {1}}}, "engine_options="),
        ({"metadata_fields_to_embed": "title"}, "metadata_fields_to_embed"),
        ({"top_k": 3}, "top_k\n.*Extra inputs are not permitted"),
    ],
)
def test_bad_settings_are_refused_at_once(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Qwen3Rerank(**arguments)


@pytest.mark.parametrize(
    ("query", "documents", "named"),
    [
        ("", [], "query=''"),
        (None, [Document("text")], "query=None"),
        (QUERY, None, "documents=None"),
        (QUERY, Document("text"), "documents=Document"),
        (QUERY, [Document("text"), "text"], r"documents\[1\]='text'"),
        (QUERY, [Document("text"), None], r"documents\[1\]=None"),
    ],
)
async def test_bad_inputs_are_named(query: Any, documents: Any, named: str) -> None:
    compressor = Qwen3Rerank(model="/no/such/folder")
    with pytest.raises(InvalidInputError, match=named):
        compressor.compress_documents(documents, query)
    with pytest.raises(InvalidInputError, match=named):
        await compressor.acompress_documents(documents, query)


def test_a_limit_that_was_spoilt_later_is_named(model: str) -> None:
    compressor = Qwen3Rerank(model=model)
    compressor.top_n = 0
    with pytest.raises(InvalidInputError, match="top_n=0"):
        compressor.compress_documents([Document("text")], QUERY)


def test_errors_of_the_core_pass_unchanged(model: str) -> None:
    with pytest.raises(ModelNotFoundError, match="/no/such/folder"):
        Qwen3Rerank(model="/no/such/folder").compress_documents([Document("text")], QUERY)
    with pytest.raises(PromptTooLongError, match="max_length=150"):
        Qwen3Rerank(model=model, max_length=150).compress_documents([Document("text")], "why " * 200)


class RetrieverRuns(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[str] = []

    def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
        self.events.append(f"start {kwargs['name']}")

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        self.events.append(f"end {len(documents)}")


# langchain-community still has the only BM25 retriever of LangChain 1, and says on import that it is not maintained.
@pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning")
async def test_over_bm25_in_a_chain_with_callbacks(model: str, core: Reranker, documents: list[Document]) -> None:
    from langchain_community.retrievers import BM25Retriever

    bm25 = BM25Retriever.from_documents(documents, k=4)
    retriever = ContextualCompressionRetriever(base_compressor=Qwen3Rerank(model=model, top_n=2), base_retriever=bm25)
    prompt = ChatPromptTemplate.from_template("{context}\n\n{question}")
    chain = {"context": retriever | RunnableLambda(texts), "question": RunnablePassthrough()} | prompt
    retrieved = texts(bm25.invoke(QUERY))
    best = [hit.document for hit in core.rerank(QUERY, retrieved, top_k=2)]
    expected = [
        "start ContextualCompressionRetriever", "start BM25Retriever", "end 4", "end 2"
    ]  # fmt: skip
    sync, asynchronous = RetrieverRuns(), RetrieverRuns()
    assert chain.invoke(QUERY, config={"callbacks": [sync]}).to_string() == f"Human: {best}\n\n{QUERY}"
    answer = await chain.ainvoke(QUERY, config={"callbacks": [asynchronous]})
    assert answer.to_string() == f"Human: {best}\n\n{QUERY}"
    assert sync.events == asynchronous.events == expected
    assert [texts(batch) for batch in retriever.batch([QUERY] * 3)] == [best] * 3


def test_a_ready_reranker_can_be_shared(core: Reranker, documents: list[Document]) -> None:
    first, second = Qwen3Rerank(reranker=core), Qwen3Rerank(reranker=core, top_n=1, instruction="Find jokes")
    expected = core.rerank(QUERY, texts(documents), top_k=3)
    assert texts(first.compress_documents(documents, QUERY)) == [hit.document for hit in expected]
    assert len(second.compress_documents(documents, QUERY)) == 1
    first.close()
    assert len(core.rerank(QUERY, ["text"])) == 1  # its maker closes it
    assert "reranker" not in first.model_dump()


def test_a_ready_reranker_and_settings_for_another_are_refused(core: Reranker) -> None:
    with pytest.raises(ValidationError, match="model='other': leave it out where `reranker` is given"):
        Qwen3Rerank(model="other", reranker=core)
    with pytest.raises(ValidationError, match="reranker"):
        Qwen3Rerank(reranker="bundled:tiny")  # type: ignore[arg-type]


def test_what_is_dumped_is_what_scores(core: Reranker) -> None:
    shared = Qwen3Rerank(reranker=core)
    assert shared.model_dump()["model"] == core.settings.model
    assert "reranker" not in Qwen3Rerank.model_json_schema()["properties"]


class TestFailOpen:
    """With an engine whose service nobody runs: the port was free a moment ago."""

    @pytest.fixture
    def down(self) -> dict[str, Any]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        options = {"url": f"http://127.0.0.1:{port}", "max_attempts": 1}
        return {"model": "any", "engine": "remote", "engine_options": options}

    async def test_off_by_default(self, down: dict[str, Any], documents: list[Document]) -> None:
        compressor = Qwen3Rerank(**down)
        with pytest.raises(RemoteError, match="cannot be reached"):
            compressor.compress_documents(documents, QUERY)
        with pytest.raises(RemoteError, match="cannot be reached"):
            await compressor.acompress_documents(documents, QUERY)

    async def test_the_retrievers_order_marked_and_without_invented_scores(
        self, down: dict[str, Any], documents: list[Document], caplog: pytest.LogCaptureFixture
    ) -> None:
        compressor = Qwen3Rerank(**down, fail_open=True, top_n=3, score_threshold=0.99)
        assert Qwen3Rerank(**compressor.model_dump()).fail_open
        before = copy.deepcopy(documents)
        for kept in (
            compressor.compress_documents(documents, QUERY),
            await compressor.acompress_documents(documents, QUERY),
        ):
            assert [document.id for document in kept] == ["doc-0", "doc-1", "doc-2"]
            for document, given in zip(kept, documents, strict=False):
                assert document.metadata == given.metadata | {"qwen3_failed": "RemoteError"}
        assert documents == before
        warnings = [record for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 2
        assert "cannot be reached" in warnings[0].getMessage()
        assert "with statement" not in caplog.text

    def test_bad_input_raises_nevertheless(self, down: dict[str, Any], documents: list[Document], model: str) -> None:
        with pytest.raises(InvalidInputError, match="query"):
            Qwen3Rerank(**down, fail_open=True).compress_documents(documents, " ")
        with pytest.raises(PromptTooLongError):
            Qwen3Rerank(model=model, max_length=150, fail_open=True).compress_documents(documents, "why " * 200)
        with pytest.raises(ModelNotFoundError):
            Qwen3Rerank(model="/no/such/folder", fail_open=True).compress_documents(documents, QUERY)

    def test_a_reranker_that_works_removes_the_mark(
        self, down: dict[str, Any], documents: list[Document], model: str
    ) -> None:
        failed = Qwen3Rerank(**down, fail_open=True, top_n=None).compress_documents(documents, QUERY)
        assert all("qwen3_failed" in document.metadata for document in failed)
        compressor = Qwen3Rerank(model=model, top_n=None)
        assert compressor.compress_documents(failed, QUERY) == compressor.compress_documents(documents, QUERY)

    def test_a_key_is_refused_and_not_shown(self) -> None:
        with pytest.raises(ValidationError, match="environment variable") as refused:
            Qwen3Rerank(engine="remote", engine_options={"url": "http://h", "api_key": "correct-horse"})
        assert "correct-horse" not in str(refused.value)


def test_model_dump_and_back(model: str, documents: list[Document]) -> None:
    compressor = Qwen3Rerank(model=model, top_n=2, metadata_fields_to_embed=["topic"])
    ranked = compressor.compress_documents(documents, QUERY)
    dump = compressor.model_dump()
    assert dump == {
        "model": model,
        "engine": "auto",
        "device": "auto",
        "dtype": "auto",
        "template": "standard",
        "max_length": 8192,
        "token_budget": None,
        "engine_options": {},
        "instruction": None,
        "top_n": 2,
        "score_threshold": None,
        "min_confidence": None,
        "metadata_fields_to_embed": ["topic"],
        "embedding_separator": "\n",
        "fail_open": False,
    }
    again = Qwen3Rerank(**dump)
    assert again == compressor != Qwen3Rerank(model=model)
    assert again.compress_documents(documents, QUERY) == ranked


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        Qwen3Rerank.model_copy,
        lambda compressor: pickle.loads(pickle.dumps(compressor)),  # noqa: S301
    ],
)
def test_a_used_compressor_can_be_copied_and_pickled(model: str, documents: list[Document], duplicate: Any) -> None:
    compressor = Qwen3Rerank(model=model, top_n=2)
    expected = compressor.compress_documents(documents, QUERY)
    other = duplicate(compressor)
    assert other.model_dump() == compressor.model_dump()
    assert other.compress_documents(documents, QUERY) == expected


def test_a_copy_with_other_settings_uses_them(model: str, core: Reranker, documents: list[Document]) -> None:
    compressor = Qwen3Rerank(model=model, top_n=None)
    compressor.compress_documents(documents, QUERY)
    compact = compressor.model_copy(update={"template": "compact"})
    with Reranker(model, template="compact") as reranker:
        expected = [hit.margin for hit in reranker.rerank(QUERY, texts(documents))]
    assert [d.metadata["qwen3_margin"] for d in compact.compress_documents(documents, QUERY)] == expected
    with pytest.raises(ValidationError, match="frozen"):
        compressor.template = "compact"  # it would have no effect on a loaded reranker


def test_fifty_threads_at_once_on_a_cold_compressor(model: str, core: Reranker, documents: list[Document]) -> None:
    before = engine_threads()
    compressor = Qwen3Rerank(model=model, top_n=None, token_budget=1101)
    queries = [f"{QUERY} number {i}" for i in range(50)]
    start = threading.Barrier(50)

    def run(query: str) -> list[Document]:
        start.wait()
        return compressor.compress_documents(documents, query)

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(run, queries))
    assert len(engine_threads() - before) == 1
    for query, ranked in zip(queries, results, strict=True):
        expected = {hit.document: hit.score for hit in core.rerank(query, texts(documents))}
        assert {d.page_content: d.metadata["relevance_score"] for d in ranked} == pytest.approx(expected, abs=1e-4)
    compressor.close()
    assert not engine_threads() - before


def test_engines_are_shared_and_freed(model: str, documents: list[Document]) -> None:
    before = engine_threads()
    first = Qwen3Rerank(model=model, token_budget=1102)
    second = Qwen3Rerank(model=model, token_budget=1102, top_n=1, template="compact")
    assert not engine_threads() - before  # making a compressor loads nothing
    ranked = first.compress_documents(documents, QUERY)
    second.compress_documents(documents, QUERY)
    assert len(engine_threads() - before) == 1
    first.close()
    first.close()
    assert len(second.compress_documents(documents, QUERY)) == 1
    del second
    gc.collect()
    for thread in engine_threads() - before:  # the collector does not wait for it
        thread.join(20)
    assert not engine_threads() - before
    assert first.compress_documents(documents, QUERY) == ranked  # loads again
    first.close()


async def test_a_cancelled_call_leaves_the_compressor_usable(model: str, documents: list[Document]) -> None:
    compressor = Qwen3Rerank(model=model)
    expected = await compressor.acompress_documents(documents, QUERY)
    many = [Document(f"{i} {'word ' * 100}") for i in range(300)]
    task = asyncio.create_task(compressor.acompress_documents(many, QUERY))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await compressor.acompress_documents(documents, QUERY) == expected
