"""In real pipelines: retrieval in front, serialisation, event loops, threads, and who frees the model."""

import asyncio
import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import haystack
import pytest
from haystack import Document, Pipeline, SuperComponent, component
from haystack.components.joiners import DocumentJoiner
from haystack.components.rankers import LostInTheMiddleRanker
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.core.errors import PipelineRuntimeError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice

from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker
from qwen3_ranker_plugins import EngineClosedError, Reranker

QUERY = "which statement closes a file?"
# Haystack 2 has a class of its own for pipelines that run in an event loop.
AsyncPipeline: type[Pipeline] = getattr(haystack, "AsyncPipeline", Pipeline)


def bm25_then_qwen3(ranker: Qwen3Ranker, documents: list[Document], kind: type[Pipeline] = Pipeline) -> Pipeline:
    store = InMemoryDocumentStore()
    store.write_documents(documents)
    pipeline = kind()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=4))
    pipeline.add_component("ranker", ranker)
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


def both(query: str, **ranker: Any) -> dict[str, dict[str, Any]]:
    return {"retriever": {"query": query}, "ranker": {"query": query, **ranker}}


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("qwen3-ranker")}


def texts(documents: list[Document]) -> list[str]:
    return [document.content or "" for document in documents]


def scores(documents: list[Document]) -> dict[str, float | None]:
    """By id. The last digits depend on what else was in the forward pass: compare with a tolerance."""
    return {document.id: document.score for document in documents}


def test_reranks_what_bm25_retrieved(ranker: Qwen3Ranker, core: Reranker, documents: list[Document]) -> None:
    output = bm25_then_qwen3(ranker, documents).run(both(QUERY), include_outputs_from={"retriever"})
    retrieved, ranked = output["retriever"]["documents"], output["ranker"]["documents"]
    expected = core.rerank(QUERY, texts(retrieved))
    assert [document.id for document in ranked] == [retrieved[hit.index].id for hit in expected]
    assert [document.meta["retriever_score"] for document in ranked] == [retrieved[hit.index].score for hit in expected]


def test_options_of_a_run_are_pipeline_inputs(ranker: Qwen3Ranker, documents: list[Document]) -> None:
    pipeline = bm25_then_qwen3(ranker, documents)
    assert set(pipeline.inputs()["ranker"]) == {"query", "top_k", "score_threshold", "min_confidence", "instruction"}
    assert len(pipeline.run(both(QUERY, top_k=2))["ranker"]["documents"]) == 2
    default, jokes = (
        pipeline.run(both(QUERY, instruction=instruction))["ranker"]["documents"]
        for instruction in (None, "Find jokes")
    )
    assert {document.score for document in default} != {document.score for document in jokes}


def test_a_second_ranker_can_follow(model: str, ranker: Qwen3Ranker, documents: list[Document]) -> None:
    pipeline = bm25_then_qwen3(ranker, documents)
    pipeline.add_component("second", Qwen3Ranker(model=model, instruction="Find jokes", top_k=1))
    pipeline.connect("ranker.documents", "second.documents")
    output = pipeline.run(both(QUERY) | {"second": {"query": QUERY}}, include_outputs_from={"retriever"})
    [best] = output["second"]["documents"]
    retrieved = {document.id: document.score for document in output["retriever"]["documents"]}
    assert best.meta["retriever_score"] == retrieved[best.id]


def test_dumps_and_loads(model: str, core: Reranker, documents: list[Document]) -> None:
    pipeline = bm25_then_qwen3(Qwen3Ranker(model=model, top_k=2, meta_fields_to_embed=["tags"]), documents)
    expected = pipeline.run(both(QUERY))
    text = pipeline.dumps()
    loaded = Pipeline.loads(text)
    assert loaded.dumps() == text
    assert loaded.to_dict()["components"]["ranker"] == {
        "type": "haystack_integrations.components.rankers.qwen3.ranker.Qwen3Ranker",
        "init_parameters": {
            "model": model,
            "engine": "auto",
            "device": None,
            "dtype": "auto",
            "template": "standard",
            "instruction": None,
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
            "top_k": 2,
            "score_threshold": None,
            "min_confidence": None,
            "meta_fields_to_embed": ["tags"],
            "embedding_separator": "\n",
            "document_template": "values",
            "return_judged_text": False,
            "explain": False,
            "fail_open": False,
        },
    }
    # An in-memory store writes down its name, under which this process still has the documents.
    assert loaded.run(both(QUERY)) == expected


COPIES = [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]  # noqa: S301


def join_then_qwen3(ranker: Qwen3Ranker) -> Pipeline:
    """Of components that can be copied: an in-memory store has a pool of threads, and cannot."""
    pipeline = AsyncPipeline()
    pipeline.add_component("joiner", DocumentJoiner())
    pipeline.add_component("ranker", ranker)
    pipeline.add_component("middle", LostInTheMiddleRanker())
    pipeline.connect("joiner.documents", "ranker.documents")
    pipeline.connect("ranker.documents", "middle.documents")
    return pipeline


@pytest.mark.parametrize("duplicate", COPIES, ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_a_copied_pipeline_runs(
    model: str, core: Reranker, documents: list[Document], duplicate: Any, used: bool
) -> None:
    """A copy of the ranker alone would know no senders, and the copied pipeline would miss its documents."""
    ranker = Qwen3Ranker(model=model, device=ComponentDevice.from_str("cpu"), meta_fields_to_embed=["tags"])
    pipeline = join_then_qwen3(ranker)
    data = {"joiner": {"documents": documents}, "ranker": {"query": QUERY}}
    expected = join_then_qwen3(copy.copy(ranker)).run(data)
    assert len(expected["middle"]["documents"]) == 5
    if used:
        assert pipeline.run(data) == expected
    copied = duplicate(pipeline)
    assert copied.get_component("ranker") is not ranker
    assert copied.run(data) == expected
    assert asyncio.run(copied.run_async(data)) == expected
    assert copied.dumps() == pipeline.dumps()
    # The two share no settings and no model: either can be changed and closed.
    copied.get_component("ranker").top_k = 1
    copied.get_component("ranker").close()
    assert pipeline.run(data) == expected
    assert len(copied.run(data)["middle"]["documents"]) == 1


@pytest.mark.parametrize("duplicate", [*COPIES, copy.copy], ids=["deepcopy", "pickle", "copy"])
def test_a_copied_super_component_runs(ranker: Qwen3Ranker, documents: list[Document], duplicate: Any) -> None:
    search = SuperComponent(
        join_then_qwen3(ranker),
        input_mapping={"query": ["ranker.query"], "documents": ["joiner.documents"]},
        output_mapping={"middle.documents": "documents"},
    )
    expected = search.run(query=QUERY, documents=documents)
    assert len(expected["documents"]) == 5
    assert duplicate(search).run(query=QUERY, documents=documents) == expected
    pipeline = Pipeline()
    pipeline.add_component("search", search)
    pipeline.add_component("second", Qwen3Ranker(model=ranker.model, instruction="Find jokes", top_k=1))
    pipeline.connect("search.documents", "second.documents")
    data = {"search": {"query": QUERY, "documents": documents}, "second": {"query": QUERY}}
    assert duplicate(pipeline).run(data) == pipeline.run(data)


def test_a_shallow_copy_of_a_connected_ranker_can_join_another_pipeline(
    ranker: Qwen3Ranker, documents: list[Document]
) -> None:
    pipeline = bm25_then_qwen3(ranker, documents)
    expected = pipeline.run(both(QUERY))
    assert bm25_then_qwen3(copy.copy(ranker), documents).run(both(QUERY)) == expected
    assert pipeline.run(both(QUERY)) == expected


class Rewriter:
    """A query rewriter that found nothing to ask."""

    @component.output_types(query=str)
    def run(self, text: str) -> dict[str, Any]:
        return {"query": text or None}


async def test_an_upstream_component_may_find_no_query(documents: list[Document]) -> None:
    def rewrite_then_rank(*, fail_open: bool) -> Pipeline:
        pipeline = AsyncPipeline()
        pipeline.add_component("rewriter", component(Rewriter)())
        pipeline.add_component("ranker", Qwen3Ranker(model="bundled:tiny", fail_open=fail_open, top_k=2))
        pipeline.connect("rewriter.query", "ranker.query")
        return pipeline

    for text, named in (("", "query=None"), ("  ", "query='  '")):
        data = {"rewriter": {"text": text}, "ranker": {"documents": documents}}
        strict, open_ = rewrite_then_rank(fail_open=False), rewrite_then_rank(fail_open=True)
        with pytest.raises(PipelineRuntimeError, match=named):
            await asyncio.to_thread(strict.run, data)  # Haystack 2 refuses run() where an event loop runs
        with pytest.raises(PipelineRuntimeError, match=named):
            await strict.run_async(data)
        for output in (await asyncio.to_thread(open_.run, data), await open_.run_async(data)):
            assert [document.id for document in output["ranker"]["documents"]] == ["doc-0", "doc-1"]
            assert {document.meta["qwen3_failed"] for document in output["ranker"]["documents"]} == {
                "InvalidInputError"
            }


async def test_async_pipeline_gives_what_the_pipeline_gives(
    model: str, ranker: Qwen3Ranker, documents: list[Document]
) -> None:
    pipeline = bm25_then_qwen3(ranker, documents, AsyncPipeline)
    expected = bm25_then_qwen3(Qwen3Ranker(model=model, top_k=None), documents).run(both(QUERY))
    outputs = await asyncio.gather(*(pipeline.run_async(both(QUERY)) for _ in range(8)))
    for output in outputs:
        assert scores(output["ranker"]["documents"]) == pytest.approx(scores(expected["ranker"]["documents"]), abs=1e-4)


def test_two_event_loops_one_after_the_other(model: str, core: Reranker, documents: list[Document]) -> None:
    pipeline = bm25_then_qwen3(Qwen3Ranker(model=model), documents, AsyncPipeline)
    first = asyncio.run(pipeline.run_async(both(QUERY)))
    assert asyncio.run(pipeline.run_async(both(QUERY))) == first


def test_two_event_loops_in_two_threads(ranker: Qwen3Ranker, documents: list[Document]) -> None:
    expected = pytest.approx(scores(ranker.run(QUERY, documents)["documents"]), abs=1e-4)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(asyncio.run, ranker.run_async(QUERY, documents)) for _ in range(2)]
        assert [scores(future.result()["documents"]) for future in futures] == [expected] * 2


def test_fifty_threads_at_once_on_a_cold_component(model: str, core: Reranker, documents: list[Document]) -> None:
    before = copy.deepcopy(documents)
    queries = [f"{QUERY} number {i}" for i in range(50)]
    # An engine of its own, so that the threads race for loading it.
    ranker = Qwen3Ranker(model=model, top_k=None, token_budget=1001)
    running = engine_threads()
    start = threading.Barrier(50)

    def run(query: str) -> list[Document]:
        start.wait()
        return ranker.run(query, documents)["documents"]

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(run, queries))
    assert len(engine_threads() - running) == 1
    for query, ranked in zip(queries, results, strict=True):
        expected = {f"doc-{hit.index}": hit.score for hit in core.rerank(query, texts(documents))}
        assert scores(ranked) == pytest.approx(expected, abs=1e-4)
    assert documents == before
    ranker.close()
    assert not engine_threads() - running


async def test_a_cancelled_run_leaves_the_component_usable(ranker: Qwen3Ranker, documents: list[Document]) -> None:
    expected = await ranker.run_async(QUERY, documents)
    many = [Document(content=f"{i} {'word ' * 100}") for i in range(300)]
    task = asyncio.create_task(ranker.run_async(QUERY, many))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ranker.run_async(QUERY, documents) == expected


async def test_the_event_loop_is_free_while_a_model_loads(model: str, documents: list[Document]) -> None:
    ranker = Qwen3Ranker(model=model, token_budget=1002)
    task = asyncio.create_task(ranker.run_async(QUERY, documents))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 5
    assert len((await task)["documents"]) == 5
    await ranker.close_async()


def test_equal_components_share_one_engine(model: str, documents: list[Document]) -> None:
    before = engine_threads()
    # What shapes the prompt or the result does not need an engine of its own; what shapes the passes does.
    first = Qwen3Ranker(model=model, token_budget=1003)
    second = Qwen3Ranker(model=model, token_budget=1003, top_k=1, template="compact", instruction="Find jokes")
    pipeline = bm25_then_qwen3(first, documents)
    pipeline.add_component("second", second)
    pipeline.connect("ranker.documents", "second.documents")
    pipeline.run(both(QUERY) | {"second": {"query": QUERY}})
    assert len(engine_threads() - before) == 1
    first.close()
    assert len(second.run(QUERY, documents)["documents"]) == 1
    second.close()
    assert not engine_threads() - before


def test_warm_up_may_be_repeated_and_close_undone(model: str, documents: list[Document]) -> None:
    before = engine_threads()
    ranker = Qwen3Ranker(model=model, token_budget=1004)
    assert not engine_threads() - before  # making a component loads nothing
    ranker.close()
    ranker.warm_up()
    ranker.warm_up()
    assert len(engine_threads() - before) == 1
    first = ranker.run(QUERY, documents)
    ranker.close()
    ranker.close()
    assert not engine_threads() - before
    ranker.warm_up()
    assert ranker.run(QUERY, documents) == first
    ranker.close()


def test_a_forgotten_pipeline_frees_its_engine(model: str, documents: list[Document]) -> None:
    before = engine_threads()
    pipeline = bm25_then_qwen3(Qwen3Ranker(model=model, token_budget=1005), documents)
    pipeline.run(both(QUERY))
    assert len(engine_threads() - before) == 1
    del pipeline
    gc.collect()
    for thread in engine_threads() - before:  # the collector does not wait for it
        thread.join(20)
    assert not engine_threads() - before


async def test_closing_during_a_run_ends_it_one_way_or_the_other(model: str, documents: list[Document]) -> None:
    ranker = Qwen3Ranker(model=model, token_budget=1006)
    await ranker.warm_up_async()
    many = [Document(content=f"{i} {'word ' * 200}") for i in range(100)]
    task = asyncio.create_task(ranker.run_async(QUERY, many))
    await asyncio.sleep(0.3)
    await ranker.close_async()
    outcome: Any = (await asyncio.gather(task, return_exceptions=True))[0]
    assert isinstance(outcome, EngineClosedError) or len(outcome["documents"]) == 10
    assert len((await ranker.run_async(QUERY, documents))["documents"]) == 5
    await ranker.close_async()


def test_long_documents_are_judged_in_pieces(model: str, core: Reranker) -> None:
    """The meta names the piece that decided, as offsets into the content, whatever is embedded in front of it."""
    filler = "A tuple is an immutable sequence of values. Dictionaries map keys to values. "
    content = filler * 6 + "The with statement closes a file. " + filler * 6
    documents = [Document(content=content, meta={"title": "Files"}), Document(content="A list holds a file of items.")]
    ranker = Qwen3Ranker(
        model=model, long_documents="pieces", piece_tokens=48, piece_overlap=8, meta_fields_to_embed=["title"]
    )
    ranked = bm25_then_qwen3(ranker, documents).run(both(QUERY))["ranker"]["documents"]
    by_content = {document.content: document.meta for document in ranked}
    start, end = (by_content[content][f"qwen3_piece_{name}"] for name in ("start", "end"))
    assert "closes a file" in content[start:end]
    short = by_content["A list holds a file of items."]
    assert (short["qwen3_piece_start"], short["qwen3_piece_end"]) == (0, 29)
    [title] = ranker.run(QUERY, [Document(content=None, meta={"title": "A file without a content"})])["documents"]
    assert not {"qwen3_piece_start", "qwen3_piece_end"} & title.meta.keys()
    alone = core.rerank(QUERY, [content[start:end]])[0].margin
    assert by_content[content]["qwen3_margin"] == pytest.approx(alone, abs=2e-5)
