"""The Haystack component: Documents -> texts -> `Reranker` -> Documents."""

# No `from __future__ import annotations` here: Haystack 2 reads the annotations of `run` as they stand.

import asyncio
import copy
import logging
import os
from operator import attrgetter
from typing import Any, Literal, Self

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import ComponentDevice

from qwen3_ranker_plugins import EngineError, InvalidInputError, Reranker
from qwen3_ranker_plugins.adapters import LazyReranker
from qwen3_ranker_plugins.checks import canonical_devices, canonical_size, check_text, plain
from qwen3_ranker_plugins.config import DEFAULT_MODEL, RankingOptions, RerankerSettings
from qwen3_ranker_plugins.documents import DocumentFormat
from qwen3_ranker_plugins.explanation import Explain, check_explain
from qwen3_ranker_plugins.prompt import DEFAULT_MAX_LENGTH
from qwen3_ranker_plugins.types import DEFAULT_PIECES

from .documents import RankerCall, without_duplicates

_logger = logging.getLogger(__name__)

_PARAMETERS = (
    "model",
    "engine",
    "device",
    "dtype",
    "template",
    "instruction",
    "max_length",
    "token_budget",
    "engine_options",
    "adapter",
    "scoring",
    "devices",
    "calibration",
    "cache",
    "cache_path",
    "long_documents",
    "piece_tokens",
    "piece_overlap",
    "max_pieces",
    "top_k",
    "score_threshold",
    "min_confidence",
    "meta_fields_to_embed",
    "embedding_separator",
    "document_template",
    "return_judged_text",
    "explain",
    "fail_open",
)
_values_of = attrgetter(*_PARAMETERS)


@component
class Qwen3Ranker:
    """Orders documents by P(yes), the probability that a Qwen3 reranker answers "yes, this document fits the query".

    The model is loaded by `warm_up`, which `run` calls if it was not called before. Thread-safe. Components with equal
    engine settings in one process share one model, and concurrent callers share forward passes. An attribute that is
    changed after construction takes effect, and is checked, at the next `run`.

    Returned documents are deep copies. Their `score` is P(yes), in [0, 1], and their `meta` gains:

    - `retriever_score`: the `score` that the document came with, if it had one. An existing value is kept, so that a
      second ranker does not replace it with the score of the first.
    - `qwen3_margin`: logit(yes) - logit(no), which still orders documents whose scores all round to 1.0.
    - `qwen3_confidence`: |P(yes) - P(no)|, in [0, 1]: how certain the model is of its answer, whether yes or no.
    - `qwen3_truncated_tokens`: number of tokens cut off the end of the text to make it fit; 0 if it was read whole.
    - `qwen3_piece_start`, `qwen3_piece_end`: with `long_documents="pieces"`, the piece with the highest margin, as
      offsets in `content` in characters.
    - `qwen3_judged_text`, if `return_judged_text` is set: the text that the model read.
    - `qwen3_explanation`, if `explain` is set: why the document has its rank.

    ```python
    from haystack import Document
    from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker

    ranker = Qwen3Ranker(model="bundled:tiny", top_k=1)
    documents = [Document(content="A list holds items."), Document(content="The with statement closes a file.")]
    print(ranker.run(query="how is a file closed?", documents=documents)["documents"])
    ```

    Args:
        model: name of a model on the Hugging Face hub, path of a folder, or "bundled:tiny".
        engine: "auto" or the name of an engine.
        device: one device; None chooses the best one available.
        dtype: "auto", "float32", "bfloat16" or "float16".
        template: "standard", "standard-hf", "compact", or the text of a template with {query} and {document}.
        instruction: the task for which documents are judged; None for the model's default.
        max_length: maximum length of a prompt in tokens; longer documents are truncated at their end.
        token_budget: maximum number of tokens in one forward pass, which bounds memory; None chooses by device.
        engine_options: options of the engine by name; None for its defaults.
        adapter: a LoRA adapter for the model: path of a folder or name on the hub. "none" ignores an adapter in the
            model's own folder; None uses that one, if there is one.
        scoring: how the model judges, such as "yes - no"; None for what its checkpoint says.
        devices: run one engine on each of these devices, each in its own process: "all" for every visible GPU, or names
            such as "cuda:0,cuda:1"; a list of names is stored as such a text. None runs one engine, on `device`.
        calibration: calibration file, which maps margins to scores that agree with labels and keeps the order; None for
            P(yes) itself.
        cache: maximum size of a cache of scores, such as "256MB"; None for no cache. Components in one process with
            equal `cache` and `cache_path` share one.
        cache_path: file of the cache, which outlives the process; None keeps it in memory.
        long_documents: "truncate" cuts off the end of a document that does not fit the prompt; "pieces" judges a
            document of more than `piece_tokens` tokens in pieces and ranks it by the best one.
        piece_tokens: maximum number of tokens of a piece.
        piece_overlap: maximum number of tokens that a piece shares with the previous one.
        max_pieces: maximum number of pieces of a document; the text after the last one is not read.
        top_k: maximum number of documents to return; None returns all.
        score_threshold: minimum score, in [0, 1], of a returned document; None for no minimum.
        min_confidence: minimum confidence, in [0, 1], of a returned document; None for no minimum.
        meta_fields_to_embed: keys of `meta` whose values are put in front of the text, in this order. Missing values
            and None are left out.
        embedding_separator: text between those values and the document's text.
        document_template: how those values and the content are joined. "values": as above. "lines": a line `key: value`
            for each, the last one for `content`. "yaml": the same as YAML. Or a text with keys of `meta` and `content`
            in braces, such as "{title} ({year}): {content}", without `meta_fields_to_embed`; a missing value is empty.
        return_judged_text: put the text that the model read into `meta["qwen3_judged_text"]`.
        explain: True puts an explanation into `meta["qwen3_explanation"]`: the prompt and its number of tokens, the
            part of the text that was judged, and the ranks before and after. "sentences" adds what each sentence of
            that part contributes to the margin, which takes a second request. For debugging.
        fail_open: if scoring fails, or the query is None or blank, return the documents in the order in which they
            came, at most `top_k` of them, with unchanged scores and with `qwen3_failed` in their meta: the name of the
            error's class. Thresholds are not applied, because there is no P(yes) to compare with. Other invalid input,
            a model that cannot be loaded and a closed reranker raise an error nevertheless.

    Raises:
        InvalidInputError: a ValueError that names the argument, its value and the remedy.
    """

    def __init__(
        self,
        *,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        engine: str = "auto",
        device: ComponentDevice | None = None,
        dtype: str = "auto",
        template: str = "standard",
        instruction: str | None = None,
        max_length: int = DEFAULT_MAX_LENGTH,
        token_budget: int | None = None,
        engine_options: dict[str, Any] | None = None,
        adapter: str | os.PathLike[str] | None = None,
        scoring: str | None = None,
        devices: str | list[str] | None = None,
        calibration: str | os.PathLike[str] | None = None,
        cache: int | str | None = None,
        cache_path: str | os.PathLike[str] | None = None,
        long_documents: str = "truncate",
        piece_tokens: int = DEFAULT_PIECES.tokens,
        piece_overlap: int = DEFAULT_PIECES.overlap,
        max_pieces: int = DEFAULT_PIECES.limit,
        top_k: int | None = 10,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        document_template: str = "values",
        return_judged_text: bool = False,
        explain: bool | Literal["sentences"] = False,
        fail_open: bool = False,
    ) -> None:
        self.model: str = plain(model)
        self.engine = engine
        self.device = device
        self.dtype = dtype
        self.template = template
        self.instruction = instruction
        self.max_length = max_length
        self.token_budget = token_budget
        self.engine_options = {} if engine_options is None else engine_options
        self.adapter: str | None = plain(adapter)
        self.scoring = scoring
        self.devices = devices
        self.calibration: str | None = plain(calibration)
        self.cache = cache
        self.cache_path: str | None = plain(cache_path)
        self.long_documents = long_documents
        self.piece_tokens = piece_tokens
        self.piece_overlap = piece_overlap
        self.max_pieces = max_pieces
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.min_confidence = min_confidence
        self.meta_fields_to_embed = [] if meta_fields_to_embed is None else meta_fields_to_embed
        self.embedding_separator = embedding_separator
        self.document_template = document_template
        self.return_judged_text = return_judged_text
        self.explain: Explain = explain
        self.fail_open = fail_open
        self._lazy = LazyReranker()
        self._check()

    def to_dict(self) -> dict[str, Any]:
        """The component as a dictionary of builtin values, for `Pipeline.dumps`. Nothing in it is shared."""
        self._check_changes()
        parameters = dict(zip(_PARAMETERS, copy.deepcopy(_values_of(self)), strict=True))
        parameters["device"] = None if self.device is None else self.device.to_dict()
        return default_to_dict(self, **parameters)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component that `to_dict` described.

        Raises:
            DeserializationError: the dictionary describes another component.
        """
        parameters = dict(data.get("init_parameters", {}))
        if isinstance(parameters.get("device"), dict):  # Haystack 3 does this itself, Haystack 2 does not
            parameters["device"] = ComponentDevice.from_dict(parameters["device"])
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def __copy__(self) -> Self:
        """A component of its own with equal settings, connected to nothing.

        A deep copy or a pickle keeps the connections, which a copy of a whole pipeline needs. No copy carries the
        model: it loads the model, or shares an engine of its process, when it is used.
        """
        return type(self).from_dict(self.to_dict())

    def warm_up(self) -> None:
        """Load the model. Repeated calls have no effect; after `close` the model is loaded again.

        Raises:
            ModelNotFoundError, UnsupportedModelError, MissingDependencyError: say what to do.
        """
        self._check_changes()
        self._lazy.get(self._make_reranker)

    async def warm_up_async(self) -> None:
        """`warm_up` without blocking the event loop."""
        self._check_changes()
        await self._lazy.get_async(self._make_reranker)

    def close(self) -> None:
        """Release the model; the last component that uses it frees it. Garbage collection does the same."""
        self._lazy.close()

    async def close_async(self) -> None:
        """`close` without blocking the event loop until the current forward pass ends."""
        await asyncio.to_thread(self._lazy.close)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
        instruction: str | None = None,
    ) -> dict[str, list[Document]]:
        """Orders documents by their relevance to a query, best first.

        Args:
            query: the question or search text by which documents are judged. None and blank texts are errors, unless
                `fail_open` is set.
            documents: the documents to rank, in any order; they are not changed. Of several documents with one id,
                the one with the highest score is ranked. An empty list gives an empty list.
            top_k: maximum number of documents to return; None for the component's own setting.
            score_threshold: minimum score, in [0, 1], of a returned document; None for the component's own setting.
            min_confidence: minimum confidence, in [0, 1], of a returned document; None for the component's own setting.
            instruction: the task for which documents are judged; None for the component's own setting.

        Returns:
            `documents`: copies with `score` and `meta` as the class describes; equal scores keep their input order.

        Raises:
            InvalidInputError: a ValueError that names the argument, its value and the remedy.
            PromptTooLongError: query and instruction leave no room for a document.
            ScoringError: a document has no usable score; not with `fail_open`.
            EngineError: the forward pass failed; not with `fail_open`.
            EngineClosedError: the component was closed during the call.
            ModelNotFoundError, UnsupportedModelError, MissingDependencyError: as `warm_up`.
        """
        call = self._start(query, documents, top_k, score_threshold, min_confidence, instruction)
        if call.waiting:
            reranker = self._lazy.get(self._make_reranker)
            try:
                call.finish(reranker.rerank(**call.arguments))
            except EngineError as error:
                call.fail(error)
        return {"documents": call.output}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
        instruction: str | None = None,
    ) -> dict[str, list[Document]]:
        """`run` without blocking the event loop; a cancelled call leaves the queue.

        Args:
            query: as in `run`.
            documents: as in `run`.
            top_k: as in `run`.
            score_threshold: as in `run`.
            min_confidence: as in `run`.
            instruction: as in `run`.
        """
        call = self._start(query, documents, top_k, score_threshold, min_confidence, instruction)
        if call.waiting:
            reranker = await self._lazy.get_async(self._make_reranker)
            try:
                call.finish(await reranker.arerank(**call.arguments))
            except EngineError as error:
                call.fail(error)
        return {"documents": call.output}

    def _check(self) -> None:
        """Check and normalise all attributes, and keep copies of them, so that later changes are noticed."""
        for name in _PARAMETERS:
            setattr(self, name, plain(getattr(self, name)))
        self.devices = canonical_devices(self.devices)
        if self.device is not None and (
            not isinstance(self.device, ComponentDevice) or self.device.has_multiple_devices
        ):
            raise InvalidInputError(
                "device", self.device, "use one device, such as ComponentDevice.from_str('cuda:0'), or None"
            )
        self._settings = RerankerSettings(
            model=self.model,
            engine=self.engine,
            device="auto" if self.device is None else self.device.to_torch_str(),
            dtype=self.dtype,
            template=self.template,
            instruction=self.instruction,
            max_length=self.max_length,
            token_budget=self.token_budget,
            engine_options=self.engine_options,
            adapter=self.adapter,
            scoring=self.scoring,
            devices=self.devices,
            calibration=self.calibration,
            cache=canonical_size("cache", self.cache),
            cache_path=self.cache_path,
            long_documents=self.long_documents,
            piece_tokens=self.piece_tokens,
            piece_overlap=self.piece_overlap,
            max_pieces=self.max_pieces,
        )
        self.engine_options = dict(self._settings.engine_options)
        self._options = RankingOptions(self.top_k, self.score_threshold, self.min_confidence)
        if not isinstance(self.meta_fields_to_embed, list):
            raise InvalidInputError("meta_fields_to_embed", self.meta_fields_to_embed, "use a list of keys, or None")
        self.meta_fields_to_embed = [plain(key) for key in self.meta_fields_to_embed]
        check_text("embedding_separator", self.embedding_separator, may_be_empty=True)
        self._format = DocumentFormat(
            self.meta_fields_to_embed,
            self.document_template,
            own="content",
            separator=self.embedding_separator,
            argument="meta_fields_to_embed",
        )
        check_explain(self.explain)
        for name in ("return_judged_text", "fail_open"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(name, getattr(self, name), "use True or False")
        self._checked = copy.deepcopy(_values_of(self))

    def _check_changes(self) -> None:
        """Check the attributes again if one was set after construction; comparing them costs a microsecond."""
        if _values_of(self) != self._checked:
            loaded_with = self._settings
            self._check()
            if self._settings != loaded_with:
                self._lazy = LazyReranker()
            else:
                self._lazy.set_options(self._options)

    def _make_reranker(self) -> Reranker:
        return Reranker.from_settings(self._settings, self._options)

    def _start(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None,
        score_threshold: float | None,
        min_confidence: float | None,
        instruction: str | None,
    ) -> RankerCall:
        """Everything that `run` and `run_async` do before scoring."""
        self._check_changes()
        if top_k is not None or score_threshold is not None or min_confidence is not None:
            RankingOptions(top_k, score_threshold, min_confidence)
        distinct = without_duplicates(documents)
        call = RankerCall(
            distinct,
            {
                "query": query,
                "documents": distinct,
                "top_k": top_k,
                "score_threshold": score_threshold,
                "min_confidence": min_confidence,
                "instruction": instruction,
                "explain": self.explain,
            },
            self.top_k if top_k is None else top_k,
            self.fail_open,
            self._lazy,
            self.return_judged_text,
        )
        if not isinstance(query, str) or not query.strip():
            call.refuse_query()
        elif distinct:
            call.arguments["documents"] = self._texts(distinct)
            call.waiting = True
        return call

    def _texts(self, documents: list[Document]) -> list[str]:
        """The text to judge of each document.

        Raises:
            InvalidInputError: a document has no text.
        """
        texts: list[str] = []
        for document in documents:
            text = self._format.text(document.meta, document.content, place=f"documents[{len(texts)}].meta")
            if text is None:
                raise InvalidInputError(
                    "documents",
                    document,
                    f"the document with id {document.id!r} has no text to judge: leave it out, give it a content, "
                    "or name keys of its meta in meta_fields_to_embed",
                )
            texts.append(text)
        return texts
