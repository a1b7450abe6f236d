"""Qwen3Rerank: what goes in, what comes out, what is refused, and LlamaIndex around it."""

import asyncio
import copy
import json
import pickle
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import Field, ValidationError
from rank_bm25 import BM25Okapi

from llama_index.postprocessor.qwen3_ranker import Qwen3Rerank
from qwen3_ranker_plugins import (
    EngineClosedError,
    InvalidInputError,
    ModelNotFoundError,
    PromptTooLongError,
    RemoteError,
    Reranker,
)

QUERY = "which statement closes a file?"


def texts(nodes: list[NodeWithScore]) -> list[str]:
    return [each.text for each in nodes]


def both_ways(reranker: Qwen3Rerank, nodes: list[NodeWithScore], query: Any) -> list[list[NodeWithScore]]:
    return [
        reranker.postprocess_nodes(nodes, query_str=query),
        asyncio.run(reranker.apostprocess_nodes(nodes, query_str=query)),
    ]


def test_scores_are_those_of_the_core(model: str, core: Reranker, nodes: list[NodeWithScore]) -> None:
    expected = core.rerank(QUERY, texts(nodes))
    # The metadata is not part of the text here.
    for ranked in both_ways(Qwen3Rerank(model=model, top_n=None, metadata_mode="none"), nodes, QUERY):
        assert [each.node_id for each in ranked] == [f"node-{hit.index}" for hit in expected]
        assert [each.score for each in ranked] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        for each, hit in zip(ranked, expected, strict=True):
            assert each.metadata == {
                "topic": {"number": hit.index},
                "retrieval_score": 9.5 - hit.index,
                "qwen3_margin": pytest.approx(hit.margin, abs=1e-4),
                "qwen3_confidence": pytest.approx(hit.confidence, abs=1e-4),
                "qwen3_truncated_tokens": 0,
            }


@pytest.mark.parametrize("mode", list(MetadataMode))
def test_metadata_modes(model: str, core: Reranker, mode: MetadataMode) -> None:
    node = TextNode(
        text="The text.",
        metadata={"title": "Files", "for_llm": "a", "for_embedding": "b"},
        excluded_embed_metadata_keys=["for_llm"],
        excluded_llm_metadata_keys=["for_embedding"],
    )
    [ranked] = Qwen3Rerank(model=model, metadata_mode=mode).postprocess_nodes([NodeWithScore(node=node)], query_str="q")
    [expected] = core.rerank("q", [node.get_content(metadata_mode=mode)])
    assert ranked.metadata["qwen3_margin"] == pytest.approx(expected.margin, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "title: Files\nfor_embedding: b\n\nThe text."),
        ({"metadata_fields_to_embed": ["for_llm", "title"]}, "[1, 2]\nFiles\nThe text."),
        ({"metadata_fields_to_embed": []}, "The text."),
        ({"metadata_fields_to_embed": ["title", "for_llm"], "document_template": "lines"},
         "title: Files\nfor_llm: 1, 2\ncontent: The text."),
        # Without keys of one's own, what the mode shows is joined.
        ({"document_template": "yaml"}, "title: Files\nfor_embedding: b\ncontent: The text.\n"),
        ({"document_template": "lines", "metadata_mode": "llm"}, "title: Files\nfor_llm: 1, 2\ncontent: The text."),
        ({"document_template": "lines", "metadata_mode": "none"}, "content: The text."),
        ({"document_template": "{title} ({missing}): {content}"}, "Files (): The text."),
    ],
)  # fmt: skip
def test_what_is_judged_can_be_seen(model: str, core: Reranker, options: dict[str, Any], expected: str) -> None:
    node = TextNode(
        text="The text.",
        metadata={"title": "Files", "for_llm": [1, 2], "for_embedding": "b"},
        excluded_embed_metadata_keys=["for_llm"],
        excluded_llm_metadata_keys=["for_embedding"],
    )
    for [ranked] in both_ways(
        Qwen3Rerank(model=model, return_judged_text=True, **options), [NodeWithScore(node=node)], QUERY
    ):
        assert ranked.text == "The text."
        assert ranked.metadata["qwen3_judged_text"] == expected
        assert ranked.metadata["qwen3_margin"] == pytest.approx(core.rerank(QUERY, [expected])[0].margin, abs=1e-4)
        # Neither the language model nor a second reranker reads it.
        assert "judged" not in ranked.node.get_content(metadata_mode=MetadataMode.LLM)
        [again] = Qwen3Rerank(model=model).postprocess_nodes([ranked], query_str=QUERY)
        assert "qwen3_judged_text" not in again.metadata


def test_a_node_with_nothing_of_the_template_is_named(model: str) -> None:
    reranker = Qwen3Rerank(model=model, document_template="{title}")
    nodes = [NodeWithScore(node=TextNode(text="a", metadata={"title": "A"})), NodeWithScore(node=TextNode(text="b"))]
    with pytest.raises(InvalidInputError, match=r"nodes\[1\]=.*none of the keys.*\{content\}"):
        reranker.postprocess_nodes(nodes, query_str=QUERY)


@pytest.mark.parametrize("mode", list(MetadataMode))
def test_what_models_read_stays_as_it_was(model: str, nodes: list[NodeWithScore], mode: MetadataMode) -> None:
    before = {each.node_id: each.node.get_content(metadata_mode=mode) for each in nodes}
    for ranked in both_ways(Qwen3Rerank(model=model, top_n=None), nodes, QUERY):
        after = {each.node_id: each.node.get_content(metadata_mode=mode) for each in ranked}
        assert (after == before) is (mode is not MetadataMode.ALL)


def test_nothing_is_shared_between_input_and_result(model: str, nodes: list[NodeWithScore]) -> None:
    nodes[0].node.embedding = [0.5]
    before = copy.deepcopy(nodes)
    for reranker, query in ((Qwen3Rerank(model=model, top_n=None), QUERY), (Qwen3Rerank(fail_open=True), " ")):
        for ranked in both_ways(reranker, nodes, query):
            for each in ranked:
                each.metadata["topic"]["number"] = -1
                each.node.excluded_llm_metadata_keys.append("topic")
                if each.node.embedding:
                    each.node.embedding.append(1.0)
    assert nodes == before


def test_a_second_reranker_keeps_the_retrieval_score(model: str, nodes: list[NodeWithScore]) -> None:
    once = Qwen3Rerank(model=model, top_n=None).postprocess_nodes(nodes, query_str=QUERY)
    twice = Qwen3Rerank(model=model, top_n=None, instruction="Find jokes").postprocess_nodes(once, query_str=QUERY)
    assert {each.node_id: each.metadata["retrieval_score"] for each in twice} == {
        each.node_id: each.score for each in nodes
    }
    assert all(each.node.excluded_llm_metadata_keys.count("qwen3_margin") == 1 for each in twice)


def test_only_equal_nodes_are_dropped(model: str) -> None:
    given = [("0", "a text"), ("0", "another text"), ("0", "a text"), ("1", "a text")]
    nodes = [NodeWithScore(node=TextNode(id_=name, text=text)) for name, text in given]
    ranked = Qwen3Rerank(model=model, top_n=None).postprocess_nodes(nodes, query_str=QUERY)
    assert sorted((each.node_id, each.text) for each in ranked) == sorted(set(given))


@pytest.mark.parametrize("top_n", [1, 2, 99])
def test_top_n(model: str, nodes: list[NodeWithScore], top_n: int) -> None:
    whole = Qwen3Rerank(model=model, top_n=None).postprocess_nodes(nodes, query_str=QUERY)
    ranked = Qwen3Rerank(model=model, top_n=top_n).postprocess_nodes(nodes, query_str=QUERY)
    assert texts(ranked) == texts(whole)[:top_n]
    assert len(Qwen3Rerank(model=model).postprocess_nodes(nodes, query_str=QUERY)) == 2  # as by other postprocessors


@pytest.mark.parametrize("option", ["score_threshold", "min_confidence"])
def test_thresholds(model: str, nodes: list[NodeWithScore], option: str) -> None:
    def value(each: NodeWithScore) -> float:
        return float(each.get_score() if option == "score_threshold" else each.metadata["qwen3_confidence"])

    whole = Qwen3Rerank(model=model, top_n=None).postprocess_nodes(nodes, query_str=QUERY)
    limit = sorted(map(value, whole))[2]
    strict = Qwen3Rerank(model=model, top_n=None, **{option: limit})  # type: ignore[arg-type]
    assert texts(strict.postprocess_nodes(nodes, query_str=QUERY)) == [e.text for e in whole if value(e) >= limit]


def test_nothing_in_nothing_out_without_loading_a_model() -> None:
    assert both_ways(Qwen3Rerank(model="/no/such/folder"), [], QUERY) == [[], []]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"top_n": 0}, "top_n=0"),
        ({"score_threshold": 1.5}, "score_threshold=1.5"),
        ({"min_confidence": float("nan")}, "min_confidence=nan"),
        ({"engine": "warp"}, "engine='warp'"),
        ({"metadata_mode": "some"}, "metadata_mode"),
        ({"document_template": "yml"}, "document_template='yml': use yaml, lines, values"),
        ({"document_template": "{a}", "metadata_fields_to_embed": ["a"]}, "to_embed=.*give one of them"),
        ({"document_template": "lines", "metadata_fields_to_embed": ["content"]}, "leave out 'content'"),
        ({"top_k": 3}, "Extra inputs are not permitted"),
    ],
)
def test_bad_settings_are_refused_at_once(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Qwen3Rerank(**arguments)


def test_bad_inputs_are_named(model: str, nodes: list[NodeWithScore]) -> None:
    reranker = Qwen3Rerank(model="/no/such/folder")
    with pytest.raises(InvalidInputError, match=r"nodes\[1\]='text'"):
        reranker.postprocess_nodes([nodes[0], "text"], query_str=QUERY)  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match="needs a list of NodeWithScore"):
        reranker.postprocess_nodes(iter(nodes), query_str=QUERY)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="no text to judge"):
        reranker.postprocess_nodes([NodeWithScore(node=ImageNode(image_url="http://h/a.png"))], query_str=QUERY)
    with pytest.raises(ModelNotFoundError):
        reranker.postprocess_nodes(nodes, query_str=QUERY)
    with pytest.raises(PromptTooLongError):
        Qwen3Rerank(model=model, max_length=150).postprocess_nodes(nodes, query_str="why " * 200)


class TestFailOpen:
    """With an engine whose service nobody runs: the port was free a moment ago."""

    @pytest.fixture
    def down(self) -> dict[str, Any]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        options = {"url": f"http://127.0.0.1:{port}", "max_attempts": 1}
        return {"model": "any", "engine": "remote", "engine_options": options}

    async def test_off_by_default(self, down: dict[str, Any], nodes: list[NodeWithScore]) -> None:
        with pytest.raises(RemoteError):
            Qwen3Rerank(**down).postprocess_nodes(nodes, query_str=QUERY)
        with pytest.raises(RemoteError):
            await Qwen3Rerank(**down).apostprocess_nodes(nodes, query_str=QUERY)

    def test_as_they_came_and_marked(
        self, down: dict[str, Any], nodes: list[NodeWithScore], caplog: pytest.LogCaptureFixture
    ) -> None:
        for kept in both_ways(Qwen3Rerank(**down, fail_open=True, top_n=3, score_threshold=0.99), nodes, QUERY):
            assert [(each.node_id, each.score) for each in kept] == [("node-0", 9.5), ("node-1", 8.5), ("node-2", 7.5)]
            assert [each.metadata["qwen3_failed"] for each in kept] == ["RemoteError"] * 3
            assert "qwen3_failed" not in kept[0].node.get_content(metadata_mode=MetadataMode.LLM)
        assert caplog.text.count("not reranked") == 2

    @pytest.mark.parametrize("query", [None, "", " \t\n"])
    def test_without_a_query(self, nodes: list[NodeWithScore], query: Any) -> None:
        with pytest.raises(InvalidInputError, match="query="):
            Qwen3Rerank(model="/no/such/folder").postprocess_nodes(nodes, query_str=query)
        for kept in both_ways(Qwen3Rerank(model="/no/such/folder", fail_open=True), nodes, query):
            assert [(each.score, each.metadata["qwen3_failed"]) for each in kept] == [
                (9.5, "InvalidInputError"),
                (8.5, "InvalidInputError"),
            ]

    def test_a_closed_reranker_is_never_hidden(self, model: str, nodes: list[NodeWithScore]) -> None:
        with Reranker(model) as ready:
            reranker = Qwen3Rerank(reranker=ready, fail_open=True)
            assert len(reranker.postprocess_nodes(nodes, query_str=QUERY)) == 2
        with pytest.raises(EngineClosedError):
            reranker.postprocess_nodes(nodes, query_str=QUERY)


def test_to_dict_and_back(model: str, nodes: list[NodeWithScore]) -> None:
    reranker = Qwen3Rerank(
        model=model, top_n=np.int64(2), score_threshold=np.float64(0.25), metadata_mode=MetadataMode.LLM
    )
    data = reranker.to_dict()
    assert data == {
        "class_name": "Qwen3Rerank",
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
        "score_threshold": 0.25,
        "min_confidence": None,
        "metadata_mode": "llm",
        "metadata_fields_to_embed": None,
        "document_template": "values",
        "return_judged_text": False,
        "explain": False,
        "fail_open": False,
    }
    assert {type(value) for value in data.values()} == {str, int, float, bool, dict, type(None)}
    assert json.loads(reranker.to_json()) == data
    expected = reranker.postprocess_nodes(nodes, query_str=QUERY)
    for other in (
        Qwen3Rerank.from_dict(data),
        copy.copy(reranker),
        copy.deepcopy(reranker),
        pickle.loads(pickle.dumps(reranker)),  # noqa: S301
    ):
        assert other.to_dict() == data
        assert other.postprocess_nodes(nodes, query_str=QUERY) == expected


class Bm25Retriever(BaseRetriever):
    def __init__(self, nodes: list[TextNode]) -> None:
        super().__init__()
        self.nodes = nodes
        self.bm25 = BM25Okapi([node.text.lower().split() for node in nodes])

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        scores = self.bm25.get_scores(query_bundle.query_str.lower().split())
        found = [NodeWithScore(node=node, score=float(score)) for node, score in zip(self.nodes, scores, strict=True)]
        return sorted(found, key=lambda each: -each.get_score())[:4]


def test_in_a_query_engine_over_bm25(model: str, core: Reranker, nodes: list[NodeWithScore]) -> None:
    retriever = Bm25Retriever([TextNode(id_=each.node_id, text=each.text) for each in nodes])
    engine = RetrieverQueryEngine.from_args(
        retriever, llm=MockLLM(), node_postprocessors=[Qwen3Rerank(model=model, top_n=2)]
    )
    retrieved = retriever.retrieve(QUERY)
    expected = core.rerank(QUERY, texts(retrieved), top_k=2)
    for answer in (engine.query(QUERY), asyncio.run(engine.aquery(QUERY))):
        assert texts(answer.source_nodes) == [hit.document for hit in expected]
        assert [each.metadata["retrieval_score"] for each in answer.source_nodes] == [
            retrieved[hit.index].score for hit in expected
        ]
        assert "qwen3_margin" not in str(answer)  # the mock answers with its prompt
        assert expected[0].document in str(answer)


def test_in_a_query_engine_over_a_vector_store(model: str, nodes: list[NodeWithScore]) -> None:
    index = VectorStoreIndex([TextNode(text=text) for text in texts(nodes)], embed_model=MockEmbedding(embed_dim=8))
    engine = index.as_query_engine(
        llm=MockLLM(), similarity_top_k=5, node_postprocessors=[Qwen3Rerank(model=model, top_n=1)]
    )
    for _ in range(2):  # the index is not changed by the first answer
        [best] = engine.query(QUERY).source_nodes
        assert best.text == "The with statement closes the file when its block ends."
        assert set(best.metadata) == {
            "retrieval_score", "qwen3_margin", "qwen3_confidence", "qwen3_truncated_tokens"
        }  # fmt: skip


class Recorder(BaseEventHandler):
    events: list[Any] = Field(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self.events.append(event)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    dispatcher, handler = get_dispatcher(), Recorder(events=[])
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)


def test_instrumentation_and_callbacks(model: str, nodes: list[NodeWithScore], recorder: Recorder) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker = Qwen3Rerank(model=model, top_n=2, callback_manager=CallbackManager([debug]))
    for ranked in both_ways(reranker, nodes, QUERY):
        start, end = recorder.events[-2:]
        assert (start.query, start.model_name, start.top_n, len(start.nodes)) == (QUERY, model, 2, 5)
        assert end.nodes == ranked
    assert len(recorder.events) == 4
    pairs = debug.get_event_pairs(CBEventType.RERANKING)
    assert len(pairs) == 2
    for before, after in pairs:
        assert before.payload is not None
        assert after.payload is not None
        assert before.payload[EventPayload.QUERY_STR] == QUERY
        assert len(after.payload[EventPayload.NODES]) == 2


def test_threads_and_loops_share_a_postprocessor(model: str, nodes: list[NodeWithScore]) -> None:
    reranker = Qwen3Rerank(model=model)
    expected = texts(reranker.postprocess_nodes(nodes, query_str=QUERY))
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(both_ways, reranker, nodes, QUERY) for _ in range(8)]
        assert all(texts(ranked) == expected for future in futures for ranked in future.result())


async def test_a_cancelled_call_leaves_the_postprocessor_usable(model: str, nodes: list[NodeWithScore]) -> None:
    reranker = Qwen3Rerank(model=model)
    expected = texts(await reranker.apostprocess_nodes(nodes, query_str=QUERY))
    many = [NodeWithScore(node=TextNode(text=f"{i} {'word ' * 100}")) for i in range(300)]
    task = asyncio.create_task(reranker.apostprocess_nodes(many, query_str=QUERY))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert texts(await reranker.apostprocess_nodes(nodes, query_str=QUERY)) == expected


def test_readme_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The example that people copy runs, and puts the right node first."""
    [example] = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102
    first, _second = capsys.readouterr().out.splitlines()
    assert first.endswith("The with statement closes the file when its block ends.")


def test_long_nodes_are_judged_in_pieces(model: str, core: Reranker) -> None:
    """Offsets are into the node's own text, in front of which its metadata were judged."""
    filler = "A tuple is an immutable sequence of values. Dictionaries map keys to values. "
    text = filler * 6 + "The with statement closes a file. " + filler * 6
    nodes = [NodeWithScore(node=TextNode(text=text, metadata={"title": "Files"}))]
    reranker = Qwen3Rerank(model=model, long_documents="pieces", piece_tokens=48, piece_overlap=8)
    for [ranked] in both_ways(reranker, nodes, QUERY):
        start, end = (ranked.metadata[f"qwen3_piece_{name}"] for name in ("start", "end"))
        assert "closes a file" in text[start:end]
        assert "qwen3_piece_start" in ranked.node.excluded_llm_metadata_keys
        assert ranked.metadata["qwen3_margin"] == pytest.approx(
            core.rerank(QUERY, [text[start:end]])[0].margin, abs=2e-5
        )
