"""The margins in a service's answer, after it was checked. `request_body` says how each route writes its answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ...errors import RemoteError
from ...prompt import EncodedRequest
from ..base import Margins
from ..token_rows import TokenRow
from .options import RemoteOptions
from .request_body import document_rows

_LARGEST = float(np.finfo(np.float32).max)


def read_margins(options: RemoteOptions, request: EncodedRequest, answer: object) -> Margins:
    """The margins of a request's documents.

    A document without a usable score becomes a failure; no value is substituted.

    Args:
        options: kind of service, route, and scores that were asked for.
        request: what was sent.
        answer: the JSON that came back.

    Raises:
        RemoteError: the answer does not belong to this request, so that none of its scores can be trusted.
    """
    entries = _entries(options, answer)
    sent_tokens = request.prefix_length * len(request.segments) + sum(request.lengths)
    if options.route == "packed":
        rows = document_rows(options, request)
        sent_tokens = sum(len(row.token_ids) for row in rows)
        entries = _entries_of_documents(options, rows, entries)
    count = len(request.segments)
    found: dict[int, _Score] = {}
    failures: dict[int, str] = {}
    for entry in entries:
        index = entry.get("index") if isinstance(entry, dict) else None
        if not _is_count(index) or index >= count:
            raise RemoteError(
                f"{options.endpoint} scored a document with index {_short(index)}, and was sent {count} documents: "
                f"is it a service of kind {options.kind!r}?"
            )
        if index in found:
            failures[index] = "the service scored it twice"
        found[index] = _score(options, entry)
    for index in range(count):
        reason = "the service's answer has no score for it" if index not in found else found[index].problem
        if reason is not None:
            failures.setdefault(index, reason)
    usable = {index: score for index, score in found.items() if index not in failures}
    prompt_tokens = _reported_tokens(answer, "prompt_tokens", "total_tokens")
    _check_prompt_tokens(options, sent_tokens, prompt_tokens)
    return Margins(
        _margins(options, usable, count),
        computed_tokens=_reported_tokens(answer, "computed_tokens", "prompt_tokens", "total_tokens") or 0,
        failures=failures,
        prompt_tokens=prompt_tokens or 0,
        truncated=_truncated(answer, count),
    )


@dataclass(frozen=True)
class _Score:
    """The score of one document. Those of an answer are kept in its order.

    Attributes:
        value: as the service wrote it; NaN if that is not a number.
        problem: why it cannot be used, or None.
    """

    value: float
    problem: str | None


def _entries(options: RemoteOptions, answer: object) -> list[Any]:
    name = {"rerank": "results", "score": "data", "classify": "data", "packed": "data"}.get(str(options.route))
    entries = answer if name is None else answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise RemoteError(
            f"{options.endpoint} answered without a list of {name or 'scores'}, with {_shape(answer)}; "
            f"is it a service of kind {options.kind!r}?"
        )
    return entries


def _entries_of_documents(options: RemoteOptions, rows: list[TokenRow], entries: list[Any]) -> list[Any]:
    """One entry {index, score} for each document, from an entry for each row."""
    documents: list[Any] = []
    for entry in entries:
        index = entry.get("index") if isinstance(entry, dict) else None
        scores = entry.get("data") if isinstance(entry, dict) else None
        if not _is_count(index) or index >= len(rows) or not isinstance(scores, list):
            raise RemoteError(f"{options.endpoint} answered {_shape(entry)} instead of the scores of a row")
        row = rows[index]
        if len(scores) != len(row.documents):
            raise RemoteError(
                f"{options.endpoint} gave {len(scores)} scores for a row of {len(row.documents)} documents: "
                "does it serve our architecture, with the same marker_id? docs/engines.md has the command"
            )
        documents += [{"index": i, "score": score} for i, score in zip(row.documents, scores, strict=True)]
    return documents


def _score(options: RemoteOptions, entry: Mapping[str, Any]) -> _Score:
    if options.route == "classify":
        given = entry.get("probs")
        if isinstance(given, list) and len(given) != 1:
            raise RemoteError(
                f"{options.endpoint} has {len(given)} classes instead of one: start vllm serve with the --hf-overrides "
                "of docs/remote.md"
            )
        score = given[0] if isinstance(given, list) else None
    else:
        score = entry.get("relevance_score" if options.route == "rerank" else "score")
    value = _number(score)
    problem = None
    if value is None:
        problem = f"its score is {_short(score)}, which is no number"
    elif not abs(value) < _LARGEST:  # NaN too
        problem = f"its score is {value}"
    elif options.scores == "probability" and not 0 <= value <= 1:
        problem = f"its score is {value}, which is no probability: set engine_options['scores'] to 'logit'"
    return _Score(math.nan if value is None else value, problem)


def _margins(options: RemoteOptions, scores: Mapping[int, _Score], count: int) -> NDArray[np.float32]:
    """Margins, float32 [count]; NaN for documents without a usable score."""
    margins = np.full(count, np.nan, dtype=np.float32)
    for index, score in scores.items():
        margins[index] = score.value if options.scores == "logit" else _logit(score.value)
    values = [score.value for score in scores.values()]
    ranked = values == sorted(values, reverse=True)
    if ranked and options.route in ("rerank", "tei") and options.scores == "probability":
        _keep_order(margins, scores)
    return margins


def _logit(score: float) -> float:
    """log(p / (1 - p)). The floats nearest to 0 and 1 take the place of these two, which gives -744 and 37."""
    p = min(max(score, math.ulp(0.0)), math.nextafter(1.0, 0.0))
    return math.log(p) - math.log1p(-p)


def _keep_order(margins: NDArray[np.float32], scores: Mapping[int, _Score]) -> None:
    """Keep the service's order of documents whose scores were rounded to 0 or to 1: let them differ by one bit each."""
    for limit in (1.0, 0.0):
        tied = [index for index, score in scores.items() if score.value == limit]
        for above, below in pairwise(tied):
            margins[below] = np.nextafter(margins[above], np.float32(-np.inf))


def _reported_tokens(answer: object, *names: str) -> int | None:
    """The service's count of tokens, under the first of these names that its `usage` has."""
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


def _check_prompt_tokens(options: RemoteOptions, sent: int, reported: int | None) -> None:
    """Refuse an answer to other prompts: a service that counts more tokens has put a template of its own around ours.

    Raises:
        RemoteError: the counts differ.
    """
    if options.prompts_are_ours and reported not in (None, sent):
        raise RemoteError(
            f"{options.endpoint} read {reported} tokens, and our prompts have {sent}: either it applies a template of "
            "its own (start vllm serve without --chat-template, or set engine_options['prompts_are_ours'] to false), "
            "or its tokenizer is not that of the `model` given here"
        )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer with hundreds of digits
        return math.inf


def _shape(answer: object) -> str:
    """The names in an answer, without its texts."""
    if isinstance(answer, dict):
        names = ", ".join(sorted(map(str, answer)))
        return f"an object of {names if len(names) <= 80 else f'{names[:77]}...'}" if names else "an empty object"
    return "a list" if isinstance(answer, list) else f"a {type(answer).__name__}"


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
