"""The bodies of requests, and what is believed of an answer.

A route is how the request and the answer are written:

    rerank     Cohere's and Jina's: {query, documents, top_n} -> {results: [{index, relevance_score}]}
    score      vLLM's: {text_1, text_2} -> {data: [{index, score}]}
    classify   vLLM's: {input: [token ids]} -> {data: [{index, probs: [logit]}]}
    packed     vLLM's /pooling with our plugin: {input: [rows of documents]} -> {data: [{index, data: [logits]}]}
    tei        text-embeddings-inference's: {query, texts} -> [{index, score}]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ...errors import RemoteError
from ...prompt import EncodedRequest
from ..base import Margins
from ..token_rows import TokenRow, write_rows
from .options import RemoteOptions
from .texts import TextRequest

Json = dict[str, Any]

_LARGEST = float(np.finfo(np.float32).max)


def request_body(options: RemoteOptions, request: EncodedRequest) -> Json:
    """What is sent for one query and its documents."""
    body: Json = {"model": options.served_model} if options.served_model and options.route != "tei" else {}
    if options.kind in ("server", "vllm"):
        # The sigmoid of a score that is decided would round to 0 or 1 and lose the order.
        body["use_activation"] = options.scores == "probability"
    if options.route == "packed":
        return body | {"task": "token_classify", "input": [row.token_ids for row in _rows(options, request)]}
    if not isinstance(request, TextRequest):
        return body | {"input": [request.prompt(i) for i in range(len(request.segments))]}
    if request.instruction is not None:
        body["instruction"] = request.instruction
    if request.max_document_tokens is not None:
        body["max_tokens_per_doc"] = request.max_document_tokens
    if options.route == "score":
        return body | {"text_1": request.query, "text_2": request.documents}
    if options.route == "tei":
        raw, truncate = options.scores == "logit", options.truncate
        return body | {"query": request.query, "texts": request.documents, "raw_scores": raw, "truncate": truncate}
    body |= {"query": request.query, "documents": request.documents, "top_n": len(request.documents)}
    # Cohere's second version has no such field and returns none.
    return body if options.kind == "cohere" else body | {"return_documents": False}


def _rows(options: RemoteOptions, request: EncodedRequest) -> list[TokenRow]:
    """A request's documents as rows; they are few enough for one, and only different last ids make it several."""
    if options.marker_id is None:
        raise RemoteError("route 'packed' needs the option marker_id, which `configure` takes from the tokenizer")
    return list(write_rows(request, options.marker_id, room=sys.maxsize))


def margins(options: RemoteOptions, request: EncodedRequest, answer: object) -> Margins:
    """The answer, checked: every document once, every score a number that it can be.

    A document without a usable score becomes a failure of its own; nothing is put in its place.

    Raises:
        RemoteError: the answer is not one to this request, so that none of it can be believed.
    """
    items = _items(options, answer)
    sent = request.prefix_length * len(request.segments) + sum(request.lengths)
    if options.route == "packed":
        rows = _rows(options, request)
        sent = sum(len(row.token_ids) for row in rows)
        items = _documents_of_rows(options, rows, items)
    count = len(request.segments)
    found: dict[int, _Item] = {}
    failures: dict[int, str] = {}
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise RemoteError(
                f"{options.endpoint} scored a document with index {_short(index)}, and was sent {count}: "
                f"is it a service of kind {options.kind!r}?"
            )
        if index in found:
            failures[index] = "the service scored it twice"
        found[index] = _item(options, item)
    for index in range(count):
        reason = "the service's answer has no score for it" if index not in found else found[index].problem
        if reason is not None:
            failures.setdefault(index, reason)
    usable = {index: item for index, item in found.items() if index not in failures}
    prompt_tokens = _tokens(answer, "prompt_tokens", "total_tokens")
    _check_prompts(options, sent, prompt_tokens)
    return Margins(
        _values(options, usable, count),
        computed_tokens=_tokens(answer, "computed_tokens", "prompt_tokens", "total_tokens") or 0,
        failures=failures,
        prompt_tokens=prompt_tokens or 0,
        truncated=_truncated(answer, count),
    )


@dataclass(frozen=True)
class _Item:
    """One document's entry, in the order of the answer.

    Attributes:
        value: as the service wrote it; NaN if that is not a number.
        problem: why it cannot be used, or None.
    """

    value: float
    problem: str | None


def _items(options: RemoteOptions, answer: object) -> list[Any]:
    name = {"rerank": "results", "score": "data", "classify": "data", "packed": "data"}.get(str(options.route))
    items = answer if name is None else answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(items, list):
        raise RemoteError(
            f"{options.endpoint} answered without a list of {name or 'scores'}, with {_shape(answer)}; "
            f"is it a service of kind {options.kind!r}?"
        )
    return items


def _documents_of_rows(options: RemoteOptions, rows: list[TokenRow], items: list[Any]) -> list[Any]:
    """The entries of rows as entries of documents, {index, score}."""
    documents: list[Any] = []
    for item in items:
        number = item.get("index") if isinstance(item, dict) else None
        scores = item.get("data") if isinstance(item, dict) else None
        if not _is_count(number) or number >= len(rows) or not isinstance(scores, list):
            raise RemoteError(f"{options.endpoint} answered {_shape(item)} where the scores of a row were asked for")
        if len(scores) != len(rows[number].documents):
            raise RemoteError(
                f"{options.endpoint} gave {len(scores)} scores for a row of {len(rows[number].documents)} documents: "
                "does it serve our architecture, with the same marker_id? docs/engines.md has the command"
            )
        documents += [{"index": i, "score": score} for i, score in zip(rows[number].documents, scores, strict=True)]
    return documents


def _item(options: RemoteOptions, item: Json) -> _Item:
    if options.route == "classify":
        given = item.get("probs")
        if isinstance(given, list) and len(given) != 1:
            raise RemoteError(
                f"{options.endpoint} has {len(given)} classes and not one: start vllm serve with the --hf-overrides of "
                "docs/remote.md"
            )
        score = given[0] if isinstance(given, list) else None
    else:
        score = item.get("relevance_score" if options.route == "rerank" else "score")
    value = _number(score)
    problem = None
    if value is None:
        problem = f"its score is {_short(score)}, which is no number"
    elif not abs(value) < _LARGEST:  # also if it is not a number
        problem = f"its score is {value}"
    elif options.scores == "probability" and not 0 <= value <= 1:
        problem = f"its score is {value}, which is no probability: set engine_options['scores'] to 'logit'"
    return _Item(math.nan if value is None else value, problem)


def _values(options: RemoteOptions, items: Mapping[int, _Item], count: int) -> NDArray[np.float32]:
    """Margins, float32 [count]; NaN where there is no usable item."""
    values = np.full(count, np.nan, dtype=np.float32)
    for index, item in items.items():
        values[index] = item.value if options.scores == "logit" else _logit(item.value)
    scores = [item.value for item in items.values()]
    ranked = scores == sorted(scores, reverse=True)
    if ranked and options.route in ("rerank", "tei") and options.scores == "probability":
        _keep_order(values, items)
    return values


def _logit(score: float) -> float:
    """log(p / (1 - p)). A score of exactly 0 or 1 is taken as the nearest number that is neither: -744 or 37."""
    p = min(max(score, math.ulp(0.0)), math.nextafter(1.0, 0.0))
    return math.log(p) - math.log1p(-p)


def _keep_order(values: NDArray[np.float32], items: Mapping[int, _Item]) -> None:
    """Scores that were rounded to 0 or 1 are equal, but a service that ranks knows their order: one bit each."""
    for limit in (1.0, 0.0):
        tied = [index for index, item in items.items() if item.value == limit]
        for above, below in pairwise(tied):
            values[below] = np.nextafter(values[above], np.float32(-np.inf))


def _tokens(answer: object, *names: str) -> int | None:
    """What the service counted, under the first of these names that it uses."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    counts = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    return next((count for count in counts if _is_count(count)), None)


def _truncated(answer: object, count: int) -> dict[int, int]:
    """Index -> tokens cut off, as our server reports it: meta.truncated [{index, truncated_tokens}]."""
    meta = answer.get("meta") if isinstance(answer, dict) else None
    entries = meta.get("truncated") if isinstance(meta, dict) else None
    cut: dict[int, int] = {}
    for entry in entries if isinstance(entries, list) else ():
        index, tokens = (entry.get("index"), entry.get("truncated_tokens")) if isinstance(entry, dict) else (None, None)
        if _is_count(index) and index < count and _is_count(tokens):
            cut[index] = tokens
    return cut


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_prompts(options: RemoteOptions, sent: int, counted: int | None) -> None:
    """A service that counts other tokens than we sent has put a template of its own around ours."""
    if options.prompts_are_ours and counted not in (None, sent):
        raise RemoteError(
            f"{options.endpoint} read {counted} tokens where our prompts have {sent}: either it applies a template of "
            "its own (start vllm serve without --chat-template, or set engine_options['prompts_are_ours'] to false), "
            "or its tokenizer is not that of the `model` given here"
        )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _shape(answer: object) -> str:
    """What an answer is, without its texts."""
    if isinstance(answer, dict):
        names = ", ".join(sorted(map(str, answer)))
        return f"an object of {names if len(names) <= 80 else f'{names[:77]}...'}" if names else "an empty object"
    return "a list" if isinstance(answer, list) else f"a {type(answer).__name__}"


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
