"""The LlamaIndex node postprocessor: nodes -> texts -> `Reranker` -> nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, ImageNode, MetadataMode, NodeWithScore, QueryBundle
from pydantic import PlainSerializer, StrictBool, model_validator

from qwen3_ranker_plugins import EngineError, InvalidInputError, ScoredDocument
from qwen3_ranker_plugins.adapter_settings import Qwen3Settings
from qwen3_ranker_plugins.adapters import (
    EXPLANATION,
    FAILED,
    JUDGED_TEXT,
    PIECE,
    RankingCall,
    judged_text,
    own_copies,
    ranked_metadata,
    unranked_metadata,
)
from qwen3_ranker_plugins.checks import check_positive, plain
from qwen3_ranker_plugins.config import RankingOptions
from qwen3_ranker_plugins.documents import DocumentFormat

_dispatcher = get_dispatcher(__name__)

_RETRIEVAL_SCORE = "retrieval_score"
#: Keys that are added to a node's metadata, and kept out of the texts that language and embedding models read.
_OUR_KEYS = (
    _RETRIEVAL_SCORE, "qwen3_margin", "qwen3_confidence", "qwen3_truncated_tokens", *PIECE, JUDGED_TEXT, EXPLANATION,
    FAILED,
)  # fmt: skip


class Qwen3Rerank(Qwen3Settings, BaseNodePostprocessor):
    """Orders nodes by P(yes), the probability that a Qwen3 reranker answers "yes, this document fits the query".

    Returned nodes are deep copies. Their `score` is P(yes), in [0, 1], and their `metadata` gains the following keys,
    which are excluded from the texts that language and embedding models read:

    - `retrieval_score`: the score that the node came with, if it had one. An existing value is kept, so that a second
      reranker does not replace it with the score of the first.
    - `qwen3_margin`: logit(yes) - logit(no), which still orders nodes whose scores all round to 1.0.
    - `qwen3_confidence`: |P(yes) - P(no)|, in [0, 1]: how certain the model is of its answer, whether yes or no.
    - `qwen3_truncated_tokens`: number of tokens cut off the end of the text to make it fit; 0 if it was read whole.
    - `qwen3_piece_start`, `qwen3_piece_end`: with `long_documents="pieces"`, the piece with the highest margin, as
      offsets in characters in the node's text without its metadata.
    - `qwen3_judged_text`, if `return_judged_text` is set: the text that the model read.
    - `qwen3_explanation`, if `explain` is set: why the node has its rank.

    ```python
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.qwen3_ranker import Qwen3Rerank

    reranker = Qwen3Rerank(model="bundled:tiny", top_n=1)
    texts = ["A list holds items.", "The with statement closes a file."]
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    print(reranker.postprocess_nodes(nodes, query_str="how is a file closed?"))
    ```

    A call raises the errors of `Reranker.rerank`; with `fail_open`, an `EngineError` is logged instead.
    """

    top_n: int | None = 2
    """Maximum number of nodes to return; None returns all, or as many as `reranker` is configured for."""
    score_threshold: float | None = None
    """Minimum score, in [0, 1], of a returned node; None for no minimum."""
    min_confidence: float | None = None
    """Minimum confidence, in [0, 1], of a returned node; None for no minimum."""
    metadata_mode: Annotated[MetadataMode, PlainSerializer(plain)] = MetadataMode.EMBED
    """Which metadata is put in front of the text: "embed" (what the embedding model reads), "llm", "all" or "none"."""
    metadata_fields_to_embed: list[str] | None = None
    """Keys of the metadata whose values are put in front of the text, in this order, in place of those that
    `metadata_mode` chooses. Missing values and None are left out."""
    document_template: str = "values"
    """How metadata and text are joined. "values": as the node's own templates do it, or the values of
    `metadata_fields_to_embed` and the text, each on a line of its own. "lines": a line `key: value` for each, the last
    one for `content`. "yaml": the same as YAML. Or a text with keys of the metadata and `content` in braces, such as
    "{title} ({year}): {content}", without `metadata_fields_to_embed`; a missing value is empty."""
    return_judged_text: StrictBool = False
    """Put the text that the model read into `metadata["qwen3_judged_text"]`."""
    explain: StrictBool | Literal["sentences"] = False
    """True puts an explanation into `metadata["qwen3_explanation"]`: the prompt and its number of tokens, the part of
    the text that was judged, and the ranks before and after. "sentences" adds what each sentence of that part
    contributes to the margin, which takes a second request. For debugging."""
    fail_open: StrictBool = False
    """If scoring fails, or the query is missing or blank, return the nodes in the order in which they came, at most
    `top_n` of them, with unchanged scores and with `qwen3_failed` in their metadata: the name of the error's class.
    Thresholds are not applied, because there is no P(yes) to compare with. Other invalid input, a model that cannot be
    loaded and a closed reranker raise an error nevertheless."""

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's serialised form."""
        return "Qwen3Rerank"

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        check_positive("top_n", self.top_n)
        RankingOptions(None, self.score_threshold, self.min_confidence)
        self._format()
        return self

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        call = self._start(nodes, query_bundle)
        if call.waiting:
            reranker = self._ready()
            with self._reported(call):
                try:
                    call.finish(reranker.rerank(**call.arguments))
                except EngineError as error:
                    call.fail(error)
        return call.output

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        call = self._start(nodes, query_bundle)
        if call.waiting:
            reranker = await self._ready_async()
            with self._reported(call):
                try:
                    call.finish(await reranker.arerank(**call.arguments))
                except EngineError as error:
                    call.fail(error)
        return call.output

    def _start(self, nodes: Sequence[NodeWithScore], query_bundle: QueryBundle | None) -> _Call:
        """Everything that both methods do before scoring."""
        check_positive("top_n", self.top_n)  # it may have been changed since it was validated
        distinct = _without_duplicates(nodes)
        form = self._format()
        query = None if query_bundle is None else query_bundle.query_str
        call = _Call(
            distinct,
            {
                "query": query,
                "documents": [self._text(form, each.node, index) for index, each in enumerate(distinct)],
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

    def _format(self) -> DocumentFormat:
        """How the text to judge is made, unless the node's own templates make it."""
        return DocumentFormat(
            self.metadata_fields_to_embed,
            self.document_template,
            own="content",
            argument="metadata_fields_to_embed",
        )

    def _text(self, form: DocumentFormat, node: BaseNode, index: int) -> str:
        """The text to judge of a node.

        Raises:
            InvalidInputError: the node is an image without a text, or has none of the keys of the template.
        """
        own = node.get_content(metadata_mode=MetadataMode.NONE)
        if form.fields is not None:
            text = judged_text(form, node.metadata, own, f"nodes[{index}]")
        elif form.template == "values":
            text = node.get_content(metadata_mode=self.metadata_mode)
        else:
            text = judged_text(form, _visible(node, self.metadata_mode), own, f"nodes[{index}]")
        if isinstance(node, ImageNode) and not text.strip():
            raise InvalidInputError(
                "nodes", node.node_id, "this image has no text to judge: leave it out, or give it a text"
            )
        return text

    @contextmanager
    def _reported(self, call: _Call) -> Iterator[None]:
        """Report the start and the end to LlamaIndex's instrumentation and callbacks."""
        query, limit = call.arguments["query"], len(call.items) if self.top_n is None else self.top_n
        _dispatcher.event(ReRankStartEvent(query=query, nodes=call.items, top_n=limit, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: call.items,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: limit,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield
            event.on_end(payload={EventPayload.NODES: call.output})
        _dispatcher.event(ReRankEndEvent(nodes=call.output))


class _Call(RankingCall[NodeWithScore]):
    """One call of either method."""

    def ranked(self, item: NodeWithScore, hit: ScoredDocument) -> NodeWithScore:
        metadata = ranked_metadata(
            item.node.metadata,
            hit,
            item.score,
            _RETRIEVAL_SCORE,
            content=item.node.get_content(metadata_mode=MetadataMode.NONE),
            judged_text=self.judged_text,
        )
        return _copy(item, hit.score, metadata)

    def unranked(self, item: NodeWithScore, error: Exception) -> NodeWithScore:
        return _copy(item, item.score, unranked_metadata(item.node.metadata, error))


def _visible(node: BaseNode, mode: MetadataMode) -> dict[str, Any]:
    """The metadata that a mode shows, with the rules of `BaseNode.get_metadata_str`."""
    hidden = {
        MetadataMode.EMBED: node.excluded_embed_metadata_keys,
        MetadataMode.LLM: node.excluded_llm_metadata_keys,
        MetadataMode.NONE: list(node.metadata),
    }.get(mode, [])
    return {key: value for key, value in node.metadata.items() if key not in hidden}


def _copy(given: NodeWithScore, score: float | None, metadata: dict[str, Any]) -> NodeWithScore:
    """A copy of the same classes that shares nothing but the object that an IndexNode refers to."""
    fields = vars(given.node)
    copied = own_copies({name: value for name, value in fields.items() if name not in ("metadata", "embedding", "obj")})
    if fields.get("embedding") is not None:
        copied["embedding"] = list(fields["embedding"])  # deepcopy takes 50 times as long
    copied["metadata"] = metadata
    for keys in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys"):
        copied[keys] += [key for key in _OUR_KEYS if key in metadata and key not in copied[keys]]
    return given.model_copy(update={"node": given.node.model_copy(update=copied), "score": score})


def _without_duplicates(nodes: Sequence[NodeWithScore]) -> list[NodeWithScore]:
    """The first of the nodes with the same id and the same text, as two retrievers over one index return them."""
    if not isinstance(nodes, Sequence):
        raise InvalidInputError("nodes", nodes, "needs a list of NodeWithScore")
    kept: dict[object, NodeWithScore] = {}
    for index, each in enumerate(nodes):
        if not isinstance(each, NodeWithScore):
            raise InvalidInputError(f"nodes[{index}]", each, "needs a NodeWithScore")
        kept.setdefault((each.node_id, each.node.get_content(metadata_mode=MetadataMode.NONE)), each)
    return list(kept.values())
