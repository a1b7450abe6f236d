"""The bodies of requests, and what is believed of an answer.

A route is how the request and the answer are written:

    rerank     Cohere's and Jina's: {query, documents, top_n} -> {results: [{index, relevance_score}]}
    score      vLLM's: {text_1, text_2} -> {data: [{index, score}]}
    classify   vLLM's: {input: [token ids]} -> {data: [{index, probs: [logit]}]}
    tei        text-embeddings-inference's: {query, texts} -> [{index, score}]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RemoteError
from ...prompt import EncodedRequest
from ..base import Margins
from .options import RemoteOptions
from .texts import TextRequest

Json = dict[str, Any]


def request_body(options: RemoteOptions, request: EncodedRequest) -> Json:
    """What is sent for one query and its documents."""
    body: Json = {"model": options.served_model} if options.served_model and options.route != "tei" else {}
    if options.kind == "vllm":
        # The sigmoid of a score that is decided would round to 0 or 1 and lose the order.
        body["use_activation"] = options.scores == "probability"
    if not isinstance(request, TextRequest):
        return body | {"input": [request.prompt(i) for i in range(len(request.segments))]}
    if request.instruction is not None:
        body["instruction"] = request.instruction
    if options.route == "score":
        return body | {"text_1": request.query, "text_2": request.documents}
    if options.route == "tei":
        raw, truncate = options.scores == "logit", options.truncate
        return body | {"query": request.query, "texts": request.documents, "raw_scores": raw, "truncate": truncate}
    body |= {"query": request.query, "documents": request.documents, "top_n": len(request.documents)}
    if options.kind == "server":
        body["return_margins"] = True
    # Cohere's second version has no such field and returns none.
    return body if options.kind == "cohere" else body | {"return_documents": False}


def margins(options: RemoteOptions, request: EncodedRequest, answer: object) -> Margins:
    """The answer, checked: every document once, every score a number that it can be.

    A document without a usable score becomes a failure of its own; nothing is put in its place.

    Raises:
        RemoteError: the answer is not one to this request, so that none of it can be believed.
    """
    items = _items(options, answer)
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
    prompt_tokens = _prompt_tokens(answer)
    _check_prompts(options, request, prompt_tokens)
    return Margins(
        _values(options, usable, count),
        computed_tokens=prompt_tokens or 0,
        failures=failures,
        prompt_tokens=prompt_tokens or 0,
        truncated={index: item.truncated for index, item in usable.items() if item.truncated},
    )


@dataclass(frozen=True)
class _Item:
    """One document's entry, in the order of the answer.

    Attributes:
        value: as the service wrote it; NaN if that is not a number.
        margin: where the service gives it besides the score.
        truncated: tokens that the service says it cut off.
        problem: why it cannot be used, or None.
    """

    value: float
    margin: float | None
    truncated: int
    problem: str | None


def _items(options: RemoteOptions, answer: object) -> list[Any]:
    name = {"rerank": "results", "score": "data", "classify": "data"}.get(str(options.route))
    items = answer if name is None else answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(items, list):
        raise RemoteError(
            f"{options.endpoint} answered without a list of {name or 'scores'}: {_short(answer)}; "
            f"is it a service of kind {options.kind!r}?"
        )
    return items


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
    margin = _number(item.get("margin"))
    truncated = item.get("truncated_tokens")
    value = _number(score)
    problem = None
    if value is None:
        problem = f"its score is {_short(score)}, which is no number"
    elif not math.isfinite(value):
        problem = f"its score is {value}"
    elif options.scores == "probability" and not 0 <= value <= 1:
        problem = f"its score is {value}, which is no probability: set engine_options['scores'] to 'logit'"
    elif margin is not None and not math.isfinite(margin):
        problem = f"its margin is {margin}"
    return _Item(
        math.nan if value is None else value,
        margin,
        truncated if isinstance(truncated, int) and not isinstance(truncated, bool) and truncated > 0 else 0,
        problem,
    )


def _values(options: RemoteOptions, items: Mapping[int, _Item], count: int) -> NDArray[np.float32]:
    """Margins, float32 [count]; NaN where there is no usable item."""
    values = np.full(count, np.nan, dtype=np.float32)
    for index, item in items.items():
        if item.margin is not None:
            values[index] = item.margin
        else:
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
        tied = [index for index, item in items.items() if item.value == limit and item.margin is None]
        for above, below in pairwise(tied):
            values[below] = np.nextafter(values[above], np.float32(-np.inf))


def _prompt_tokens(answer: object) -> int | None:
    """What the service counted, if it says so."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    for name in ("prompt_tokens", "total_tokens"):
        tokens = usage.get(name)
        if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0:
            return tokens
    return None


def _check_prompts(options: RemoteOptions, request: EncodedRequest, counted: int | None) -> None:
    """A service that counts other tokens than we sent has put a template of its own around ours."""
    if counted is None or not options.prompts_are_ours:
        return
    sent = request.head_length * len(request.segments) + sum(request.lengths)
    if counted != sent:
        raise RemoteError(
            f"{options.endpoint} read {counted} tokens where our prompts have {sent}: either it applies a template of "
            "its own (start vllm serve without --chat-template, or set engine_options['prompts_are_ours'] to false), "
            "or its tokenizer is not that of the `model` given here"
        )


def _number(value: object) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
