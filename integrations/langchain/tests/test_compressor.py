"""Qwen3Rerank beyond the conformance suite: scores, limits, settings, retrievers, lifetimes."""

import asyncio
import copy
import enum
import gc
import json
import pickle
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, MergerRetriever
from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from pydantic import ValidationError

from langchain_qwen3_ranker import Qwen3Rerank
from qwen3_ranker_plugins import (
    EngineClosedError,
    InvalidInputError,
    ModelNotFoundError,
    PromptTooLongError,
    RemoteError,
    Reranker,
)

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


def test_of_documents_with_equal_id_and_text_the_first_is_kept(model: str) -> None:
    documents = [
        Document("same", id="a", metadata={"place": 0}),
        Document("other", id="b"),
        Document("same", id="a", metadata={"place": 1}),
        Document("same", id="c"),
    ]
    ranked = Qwen3Rerank(model=model).compress_documents(documents, QUERY)
    assert {document.id: document.metadata.get("place") for document in ranked} == {"a": 0, "b": None, "c": None}


@pytest.mark.parametrize("number", [str, lambda _: ""], ids=["two stores that number from 0", "empty ids"])
def test_nothing_is_lost_of_merged_retrievers(model: str, number: Any) -> None:
    stores = [[Document(f"{name} text {i}", id=number(i)) for i in range(4)] for name in ("the first", "the second")]
    merged = MergerRetriever(retrievers=[Fixed(documents=documents) for documents in stores])
    retriever = ContextualCompressionRetriever(
        base_compressor=Qwen3Rerank(model=model, top_n=None), base_retriever=merged
    )
    given = sorted(document.page_content for documents in stores for document in documents)
    assert sorted(texts(retriever.invoke(QUERY))) == given
    assert sorted(texts(asyncio.run(retriever.ainvoke(QUERY)))) == given


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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"metadata_fields_to_embed": ["title"]}, "Files\nThe text."),
        ({"metadata_fields_to_embed": ["title", "tags"], "document_template": "lines"},
         "title: Files\ntags: io, 2\npage_content: The text."),
        ({"metadata_fields_to_embed": ["ok"], "document_template": "yaml"}, "ok: true\npage_content: The text.\n"),
        ({"document_template": "{title} ({missing}): {page_content}"}, "Files (): The text."),
    ],
)  # fmt: skip
async def test_what_is_judged_can_be_seen(model: str, core: Reranker, options: dict[str, Any], expected: str) -> None:
    document = Document("The text.", metadata={"title": "Files", "ok": True, "tags": ["io", 2]})
    compressor = Qwen3Rerank(model=model, return_judged_text=True, **options)
    for [ranked] in (
        compressor.compress_documents([document], QUERY), await compressor.acompress_documents([document], QUERY)
    ):  # fmt: skip
        assert ranked.page_content == "The text."
        assert ranked.metadata["qwen3_judged_text"] == expected
        assert ranked.metadata["qwen3_margin"] == pytest.approx(core.rerank(QUERY, [expected])[0].margin, abs=1e-4)
    [again] = Qwen3Rerank(model=model).compress_documents([ranked], QUERY)
    assert "qwen3_judged_text" not in again.metadata


def test_a_document_with_nothing_of_the_template_is_named(model: str) -> None:
    compressor = Qwen3Rerank(model=model, document_template="{title}")
    with pytest.raises(InvalidInputError, match=r"documents\[1\]=.*none of the keys.*page_content"):
        compressor.compress_documents([Document("a", metadata={"title": "A"}), Document("b")], QUERY)


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
        ({"device": "tpu"}, "device='tpu'"),
        ({"template": "{query} {nonsense} {document}"}, "unknown field {nonsense}"),
        ({"instruction": " "}, "instruction=' '"),
        ({"max_length": 0}, "max_length=0"),
        ({"token_budget": -5}, "token_budget=-5"),
        ({"engine_options": {"depth": {1}}}, "engine_options="),
        ({"metadata_fields_to_embed": "title"}, "metadata_fields_to_embed"),
        ({"document_template": "yml"}, "document_template='yml': use yaml, lines, values"),
        ({"document_template": "{a!r}"}, "document_template=.*no format"),
        (
            {"document_template": "{a}", "metadata_fields_to_embed": ["a"]},
            "metadata_fields_to_embed=.*give one of them",
        ),
        ({"return_judged_text": 1}, "return_judged_text"),
        ({"explain": "words"}, "explain"),
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


class Fixed(BaseRetriever):
    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return self.documents


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
    with pytest.raises(ValidationError, match="model='other': leave it out if `reranker` is given"):
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
        with pytest.raises(InvalidInputError, match="query=7"):
            Qwen3Rerank(**down, fail_open=True).compress_documents(documents, 7)  # type: ignore[arg-type]
        with pytest.raises(PromptTooLongError):
            Qwen3Rerank(model=model, max_length=150, fail_open=True).compress_documents(documents, "why " * 200)
        with pytest.raises(ModelNotFoundError):
            Qwen3Rerank(model="/no/such/folder", fail_open=True).compress_documents(documents, QUERY)

    @pytest.mark.parametrize("query", [None, "", " \t\n"])
    async def test_without_a_query_the_documents_as_they_came(
        self, documents: list[Document], query: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        compressor = Qwen3Rerank(model="/no/such/folder", fail_open=True, top_n=2, score_threshold=0.99)
        for kept in (
            compressor.compress_documents(documents, query),
            await compressor.acompress_documents(documents, query),
        ):
            assert [document.id for document in kept] == ["doc-0", "doc-1"]
            assert [document.metadata["qwen3_failed"] for document in kept] == ["InvalidInputError"] * 2
        assert caplog.text.count("query=") == 2
        assert compressor.compress_documents([], query) == []

    def test_a_closed_reranker_is_never_hidden(self, model: str, documents: list[Document]) -> None:
        """Every later answer would be unranked as well, and nobody would notice."""
        compressor = Qwen3Rerank(model=model, fail_open=True)
        expected = compressor.compress_documents(documents, QUERY)
        held = compressor._lazy._reranker
        assert held is not None
        held.close()  # as if its engine had ended
        with pytest.raises(EngineClosedError):
            compressor.compress_documents(documents, QUERY)
        assert compressor.compress_documents(documents, QUERY) == expected  # loaded again
        with pytest.raises(EngineClosedError):
            Qwen3Rerank(reranker=held, fail_open=True).compress_documents(documents, QUERY)

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
        "adapter": None,
        "scoring": None,
        "devices": None,
        "calibration": None,
        "cache": None,
        "cache_path": None,
        "long_documents": "truncate",
        "piece_tokens": 512,
        "piece_overlap": 64,
        "max_pieces": 64,
        "instruction": None,
        "top_n": 2,
        "score_threshold": None,
        "min_confidence": None,
        "metadata_fields_to_embed": ["topic"],
        "embedding_separator": "\n",
        "document_template": "values",
        "return_judged_text": False,
        "explain": False,
        "fail_open": False,
    }
    again = Qwen3Rerank(**dump)
    assert again == compressor != Qwen3Rerank(model=model)
    assert again.compress_documents(documents, QUERY) == ranked


class Precision(enum.StrEnum):
    FULL = "float32"


def test_settings_of_other_types_are_dumped_as_builtin_values() -> None:
    given: dict[str, Any] = {
        "model": PurePosixPath("models/mine"),
        "engine": np.str_("packed"),
        "dtype": Precision.FULL,
        "max_length": np.int64(512),
        "token_budget": np.int32(4096),
        "engine_options": {"fraction": np.float64(0.5), "several": (1, 2)},
        "instruction": np.str_("Find jokes"),
        "top_n": np.uint8(3),
        "score_threshold": np.float64(0.25),
        "min_confidence": np.float32(0.5),
        "metadata_fields_to_embed": [np.str_("title")],
        "embedding_separator": np.str_(" "),
        "document_template": np.str_("lines"),
        "return_judged_text": np.True_,
        "explain": np.str_("sentences"),
        "fail_open": np.True_,
    }
    expected: dict[str, Any] = {
        "model": "models/mine",
        "engine": "packed",
        "dtype": "float32",
        "max_length": 512,
        "token_budget": 4096,
        "engine_options": {"fraction": 0.5, "several": [1, 2]},
        "instruction": "Find jokes",
        "top_n": 3,
        "score_threshold": 0.25,
        "min_confidence": 0.5,
        "metadata_fields_to_embed": ["title"],
        "embedding_separator": " ",
        "document_template": "lines",
        "return_judged_text": True,
        "explain": "sentences",
        "fail_open": True,
    }
    late = Qwen3Rerank(**{name: given[name] for name in ("model", "engine", "dtype", "max_length", "token_budget")})
    for compressor in (Qwen3Rerank(**given), late):
        for name, value in given.items():
            if not Qwen3Rerank.model_fields[name].frozen:
                setattr(compressor, name, value)
        dump = compressor.model_dump()
        assert json.loads(compressor.model_dump_json()) == dump
        names = set(expected) - (set() if compressor is not late else {"engine_options"})
        assert {name: dump[name] for name in names} == {name: expected[name] for name in names}
        assert [name for name in names if type(dump[name]) is not type(expected[name])] == []
        assert [type(each) for each in dump["metadata_fields_to_embed"]] == [str]


def test_nothing_is_shared_with_what_was_given_or_handed_out() -> None:
    options, fields = {"an_option": [1]}, ["title"]
    compressor = Qwen3Rerank(engine_options=options, metadata_fields_to_embed=fields)
    before = copy.deepcopy(compressor.model_dump())
    options["an_option"].append(2)
    fields.append("author")
    handed_out = compressor.model_dump()
    handed_out["engine_options"]["an_option"].append(3)
    handed_out["metadata_fields_to_embed"].append("year")
    assert compressor.model_dump() == before


def test_nothing_is_shared_between_input_and_result(model: str) -> None:
    class Passage(Document):
        marks: list[int]

    lock = threading.Lock()
    document = Passage(page_content="text", metadata={"deep": {"list": [1]}, "lock": lock}, marks=[1])
    failing = Qwen3Rerank(model="/no/such/folder", fail_open=True)
    for results in (
        Qwen3Rerank(model=model).compress_documents([document], QUERY),
        failing.compress_documents([document], " "),
    ):
        [copied] = results
        assert isinstance(copied, Passage)
        assert copied.metadata["lock"] is lock  # what cannot be copied is shared
        copied.metadata["deep"]["list"].append(2)
        copied.marks.append(2)
        assert document.metadata == {"deep": {"list": [1]}, "lock": lock}
        assert document.marks == [1]


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


def test_devices_are_dumped_as_text() -> None:
    compressor = Qwen3Rerank(model="bundled:tiny", devices=["cpu", "cpu"])  # type: ignore[arg-type]
    assert compressor.model_dump()["devices"] == "cpu,cpu"
    assert Qwen3Rerank(**compressor.model_dump()) == compressor
    with pytest.raises(ValidationError, match="contradicts device='cpu'"):
        Qwen3Rerank(device="cpu", devices="cpu,cpu")


def test_long_documents_are_judged_in_pieces(model: str, core: Reranker) -> None:
    filler = "A tuple is an immutable sequence of values. Dictionaries map keys to values. "
    content = filler * 6 + "The with statement closes a file. " + filler * 6
    base = Fixed(documents=[Document("A list holds items."), Document(content)])
    compressor = Qwen3Rerank(model=model, long_documents="pieces", piece_tokens=48, piece_overlap=8)
    retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=base)
    for ranked in (retriever.invoke(QUERY), asyncio.run(retriever.ainvoke(QUERY))):
        metadata = {document.page_content: document.metadata for document in ranked}
        start, end = (metadata[content][f"qwen3_piece_{name}"] for name in ("start", "end"))
        assert "closes a file" in content[start:end]
        assert metadata[content]["qwen3_margin"] == pytest.approx(
            core.rerank(QUERY, [content[start:end]])[0].margin, abs=2e-5
        )
    whole = Qwen3Rerank(model=model).compress_documents(ranked, QUERY)
    assert all("qwen3_piece_start" not in document.metadata for document in whole)
