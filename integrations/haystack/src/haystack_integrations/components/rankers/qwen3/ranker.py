"""The Haystack component: Documents -> texts -> `Reranker` -> Documents."""

# No `from __future__ import annotations` here: Haystack 2 reads the annotations of `run` as they stand.

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import ComponentDevice

from qwen3_ranker_plugins import EngineError, InvalidInputError, Reranker, RerankResult
from qwen3_ranker_plugins.config import DEFAULT_MODEL, RankingOptions, RerankerSettings, check_text
from qwen3_ranker_plugins.prompt import DEFAULT_MAX_LENGTH

_logger = logging.getLogger(__name__)


@component
class Qwen3Ranker:
    """Orders documents by P(yes), the probability that a Qwen3 reranker answers "yes, this document fits the query".

    The model is loaded by `warm_up`, which `run` calls where it was not called before. Thread-safe; components with
    equal engine settings in one process share one model, and callers that run at the same time share forward passes.

    Returned documents are copies. Their `score` is P(yes), in [0, 1], and their `meta` gains:

    - `retriever_score`: the `score` that the document came with, if it had one. One that is already there stays, so
      that the second of two rankers does not replace it with the score of the first.
    - `qwen3_margin`: logit(yes) - logit(no), which still orders documents whose scores all round to 1.0.
    - `qwen3_confidence`: |P(yes) - P(no)|, in [0, 1]: how decided the model is, either way.
    - `qwen3_truncated_tokens`: tokens cut off the end of the text so that it fits; 0 if it was read whole.

    ```python
    from haystack import Document
    from haystack_integrations.components.rankers.qwen3 import Qwen3Ranker

    ranker = Qwen3Ranker(model="bundled:tiny", top_k=1)
    documents = [Document(content="A list holds items."), Document(content="The with statement closes a file.")]
    print(ranker.run(query="how is a file closed?", documents=documents)["documents"])
    ```

    Args:
        model: a name on the Hugging Face hub, a folder, or "bundled:tiny".
        engine: "auto" or the name of an engine.
        device: one device, or None to choose by what there is.
        dtype: "auto", "float32", "bfloat16" or "float16".
        template: "standard", "standard-hf", "compact", or the text of a template with {query} and {document}.
        instruction: the task that documents are judged for; None for the model's default.
        max_length: longest prompt in tokens; longer documents are cut at their end.
        token_budget: tokens of one forward pass, which bounds memory; None chooses by device.
        engine_options: the engine's own options by name; None for its defaults.
        top_k: at most this many documents are returned; None for all of them.
        score_threshold: only documents with a score of at least this, in [0, 1], are returned.
        min_confidence: only documents with a confidence of at least this, in [0, 1], are returned.
        meta_fields_to_embed: keys of `meta` whose values go in front of the text, in this order. Only a value of
            None is left out.
        embedding_separator: stands between those values and the text.
        fail_open: if scoring fails, return the documents in the retriever's own order, at most `top_k` of them, with
            the scores that they came with and `qwen3_failed` in their meta: the name of the error's class. Thresholds
            are not applied, as there is no P(yes) to apply them to. Bad input raises nevertheless.

    Raises:
        InvalidInputError: a ValueError; names the argument, its value and the remedy.
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
        top_k: int | None = 10,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        fail_open: bool = False,
    ) -> None:
        self.model = os.fspath(model) if isinstance(model, os.PathLike) else model
        self.engine = engine
        self.device = device
        self.dtype = dtype
        self.template = template
        self.instruction = instruction
        self.max_length = max_length
        self.token_budget = token_budget
        self.engine_options = engine_options or {}
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.min_confidence = min_confidence
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self.fail_open = fail_open
        self._check()
        self._reranker: Reranker | None = None
        self._loading = threading.Lock()

    def to_dict(self) -> dict[str, Any]:
        """The component as a dictionary, for `Pipeline.dumps`."""
        return default_to_dict(
            self,
            model=self.model,
            engine=self.engine,
            device=None if self.device is None else self.device.to_dict(),
            dtype=self.dtype,
            template=self.template,
            instruction=self.instruction,
            max_length=self.max_length,
            token_budget=self.token_budget,
            engine_options=self.engine_options,
            top_k=self.top_k,
            score_threshold=self.score_threshold,
            min_confidence=self.min_confidence,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
            fail_open=self.fail_open,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The component that `to_dict` described.

        Raises:
            DeserializationError: the dictionary is another component's.
        """
        parameters = dict(data.get("init_parameters", {}))
        if isinstance(parameters.get("device"), dict):  # Haystack 3 would do this itself, Haystack 2 does not
            parameters["device"] = ComponentDevice.from_dict(parameters["device"])
        return default_from_dict(cls, {**data, "init_parameters": parameters})

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles carry the settings; the copy loads, or joins the same engine, when it is used."""
        return type(self).from_dict, (self.to_dict(),)

    def warm_up(self) -> None:
        """Load the model. Repeating it does nothing; after `close` it loads again.

        Raises:
            ModelNotFoundError, UnsupportedModelError, MissingDependencyError: say what to do.
        """
        self._loaded()

    async def warm_up_async(self) -> None:
        """`warm_up` without blocking the event loop."""
        await self._loaded_async()

    def close(self) -> None:
        """Give up the model; the last component that uses it frees it. Also happens when this is garbage."""
        with self._loading:
            reranker, self._reranker = self._reranker, None
        if reranker is not None:
            reranker.close()

    async def close_async(self) -> None:
        """`close` without blocking the event loop while a forward pass ends."""
        await asyncio.to_thread(self.close)

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
        """The documents in order of relevance, best first.

        Args:
            query: what was asked; not empty.
            documents: in any order, not changed. Of several with one id, the one with the highest score is used. An
                empty list gives an empty list.
            top_k, score_threshold, min_confidence, instruction: for this call; None means as the component was made.

        Returns:
            `documents`: copies with `score` and `meta` as the class describes; equal ones keep their input order.

        Raises:
            InvalidInputError: a ValueError; names the argument, its value and the remedy.
            PromptTooLongError: query and instruction leave no room for a document.
            ScoringError: a document has no usable score; not with `fail_open`.
            EngineError: the forward pass failed, or the component was closed meanwhile; not with `fail_open`.
            ModelNotFoundError, UnsupportedModelError, MissingDependencyError: as `warm_up`.
        """
        call = self._prepare(query, documents, top_k, score_threshold, min_confidence, instruction)
        if not call.documents:
            return {"documents": []}
        reranker = self._loaded()
        try:
            result = reranker.rerank(**call.arguments)
        except EngineError as error:
            return call.in_their_own_order(error, fail_open=self.fail_open)
        return call.finish(result)

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
        """`run` without blocking the event loop; cancelling it frees its place in the queue."""
        call = self._prepare(query, documents, top_k, score_threshold, min_confidence, instruction)
        if not call.documents:
            return {"documents": []}
        reranker = await self._loaded_async()
        try:
            result = await reranker.arerank(**call.arguments)
        except EngineError as error:
            return call.in_their_own_order(error, fail_open=self.fail_open)
        return call.finish(result)

    def _check(self) -> None:
        """Refuse at once what could only fail when the model is loaded."""
        if self.device is not None and (
            not isinstance(self.device, ComponentDevice) or self.device.has_multiple_devices
        ):
            raise InvalidInputError(
                "device", self.device, "use one device, such as ComponentDevice.from_str('cuda:0'), or None"
            )
        RerankerSettings(**self._settings())
        self._options()
        if not isinstance(self.meta_fields_to_embed, list):
            raise InvalidInputError("meta_fields_to_embed", self.meta_fields_to_embed, "use a list of keys, or None")
        check_text("embedding_separator", self.embedding_separator, may_be_empty=True)
        if not isinstance(self.fail_open, bool):
            raise InvalidInputError("fail_open", self.fail_open, "use True or False")

    def _settings(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "engine": self.engine,
            "device": "auto" if self.device is None else self.device.to_torch_str(),
            "dtype": self.dtype,
            "template": self.template,
            "instruction": self.instruction,
            "max_length": self.max_length,
            "token_budget": self.token_budget,
            "engine_options": self.engine_options,
        }

    def _options(self) -> RankingOptions:
        return RankingOptions(self.top_k, self.score_threshold, self.min_confidence)

    def _loaded(self) -> Reranker:
        settings = RerankerSettings(**self._settings())
        with self._loading:
            if self._reranker is None or self._reranker.settings != settings:  # an attribute was set after loading
                self._reranker = Reranker(**self._settings())
            return self._reranker

    async def _loaded_async(self) -> Reranker:
        return await asyncio.to_thread(self._loaded)

    def _prepare(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None,
        score_threshold: float | None,
        min_confidence: float | None,
        instruction: str | None,
    ) -> "_Call":
        options = self._options().override(top_k, score_threshold, min_confidence)
        check_text("query", query)
        distinct = _without_duplicates(documents)
        arguments = {
            "query": query,
            "documents": [self._text(document) for document in distinct],
            "top_k": options.top_k,
            "score_threshold": options.score_threshold,
            "min_confidence": options.min_confidence,
            "instruction": self.instruction if instruction is None else instruction,
        }
        return _Call(distinct, arguments)

    def _text(self, document: Document) -> str:
        parts = [str(document.meta[key]) for key in self.meta_fields_to_embed if document.meta.get(key) is not None]
        if document.content is not None:
            parts.append(document.content)
        if not parts:
            raise InvalidInputError(
                "documents",
                document,
                f"the document with id {document.id!r} has no text to judge: leave it out, give it a content, "
                "or name keys of its meta in meta_fields_to_embed",
            )
        return self.embedding_separator.join(parts)


@dataclass(frozen=True)
class _Call:
    """What `run` and `run_async` share.

    Attributes:
        documents: to be ranked, no id twice.
        arguments: of `Reranker.rerank`; the texts stand in the order of `documents`.
    """

    documents: list[Document]
    arguments: dict[str, Any]

    def finish(self, result: RerankResult) -> dict[str, list[Document]]:
        """Copies of the documents that are left, best first."""
        ranked = []
        for hit in result:
            document = self.documents[hit.index]
            meta = {key: value for key, value in document.meta.items() if key != "qwen3_failed"}
            if document.score is not None and meta.get("retriever_score") is None:
                meta["retriever_score"] = document.score
            meta |= {
                "qwen3_margin": hit.margin,
                "qwen3_confidence": hit.confidence,
                "qwen3_truncated_tokens": hit.truncated_tokens,
            }
            ranked.append(replace(document, score=hit.score, meta=meta))
        return {"documents": ranked}

    def in_their_own_order(self, error: EngineError, *, fail_open: bool) -> dict[str, list[Document]]:
        """Copies of the first documents, as they came, marked with what failed.

        Raises:
            EngineError: the one given, unless `fail_open`.
        """
        if not fail_open:
            raise error
        reason = type(error).__name__
        _logger.warning("not reranked, the retriever's own order is returned: %s: %s", reason, error)
        kept = self.documents[: self.arguments["top_k"]]
        return {"documents": [replace(each, meta={**each.meta, "qwen3_failed": reason}) for each in kept]}


def _without_duplicates(documents: Sequence[Document]) -> list[Document]:
    """One document per id, the one with the highest score, in the place of the first: Haystack's own rule."""
    if not isinstance(documents, Sequence):
        raise InvalidInputError("documents", documents, "needs a list of haystack Documents")
    kept: dict[str, Document] = {}
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InvalidInputError(f"documents[{index}]", document, "needs a haystack Document")
        rival = kept.get(document.id)
        if rival is None or (document.score is not None and (rival.score is None or document.score > rival.score)):
            kept[document.id] = document
    return list(kept.values())
