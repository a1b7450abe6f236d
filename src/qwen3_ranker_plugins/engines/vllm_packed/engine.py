"""`vllm_packed`: the engine that hands vLLM whole rows of documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import UnsupportedModelError
from ...prompt import EncodedRequest, ModelTokenizer
from ..base import Margins
from ..vllm_engine import VllmEngine
from ..vllm_worker import Batch, Start
from .rows import MARKER_TOKEN, PREAMBLE, TokenRow, write_rows


class VllmPackedEngine(VllmEngine):
    """vLLM in a process of its own, with our model class: a query's documents in one request, its head computed once.

    Args:
        config: as `vllm_engine.configure` returns it.

    Raises:
        UnsupportedModelError: the tokenizer lacks the token that ends the parts of a row.
        EngineError: vLLM could not be started; the message ends in the remedy.
    """

    _marker: int

    def score(self, requests: Sequence[EncodedRequest]) -> list[Margins]:
        """Margins by vLLM; what it says of a row that it refuses is every document's failure in that row.

        Raises:
            EngineError: the process died; the next call starts it again. Or the template has the marker in it.
        """
        room = self._options.max_num_batched_tokens or 0
        rows = [(number, row) for number, request in enumerate(requests) for row in self._rows(request, room)]
        batch = Batch(
            prompts=[(row.token_ids, [[]]) for _, row in rows],
            order=[(place, 0) for place in range(len(rows))],
            size=len(rows),
            counts=[len(row.documents) for _, row in rows],
        )
        scored = self._ask(batch)
        values = [np.full(len(request.segments), np.nan, dtype=np.float32) for request in requests]
        computed = [0] * len(requests)
        failures: list[dict[int, str]] = [{} for _ in requests]
        for place, ((number, row), where) in enumerate(zip(rows, batch.slices, strict=True)):
            values[number][row.documents] = scored.margins[where]
            computed[number] += len(row.token_ids)
            if place in scored.failures:
                failures[number].update(dict.fromkeys(row.documents, scored.failures[place]))
        return [Margins(*each) for each in zip(values, computed, failures, strict=True)]

    def _rows(self, request: EncodedRequest, room: int) -> list[TokenRow]:
        return list(write_rows(request, self._marker, room))

    def _adapt(self, arguments: dict[str, Any], environment: dict[str, str], *, positions: int) -> None:
        length = max(arguments["max_num_batched_tokens"], arguments["max_model_len"] + PREAMBLE)
        # To vLLM a row is a prompt. Rows are never cut, so that a step must have room for a whole one.
        arguments |= {"max_model_len": length, "max_num_batched_tokens": length, "enable_prefix_caching": False}
        arguments.pop("block_size", None)
        if length > positions:  # of a row; each document has positions of its own
            environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"

    def _start_message(self, start: Start, tokenizer: ModelTokenizer) -> Start:
        self._marker = marker_id(tokenizer)
        example = EncodedRequest([tokenizer.yes_id], [[tokenizer.no_id]], [0])
        [row] = write_rows(example, self._marker, room=8)
        return replace(start, example=row.token_ids, marker_id=self._marker)


def marker_id(tokenizer: ModelTokenizer) -> int:
    """Id of the token that ends the parts of a row.

    Raises:
        UnsupportedModelError: the tokenizer has no such token.
    """
    if MARKER_TOKEN not in tokenizer.control:
        raise UnsupportedModelError(
            f"the tokenizer has no {MARKER_TOKEN}, by which engine 'vllm_packed' tells documents apart: use a Qwen3 "
            "tokenizer, or another engine"
        )
    return tokenizer.control[MARKER_TOKEN]
