"""`vllm_packed`: the engine that hands vLLM whole rows of documents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....prompt import EncodedRequest, ModelTokenizer
from ...token_rows import PREAMBLE, marker_id, write_rows
from ..engine import Plan, VllmEngine
from ..worker import Start


class VllmPackedEngine(VllmEngine):
    """vLLM in a process of its own, with our model class: a query's documents in one request, its prefix computed once.

    Args:
        config: as `vllm_engine.configure` returns it.

    Raises:
        UnsupportedModelError: the tokenizer lacks the token that ends the parts of a row.
        EngineError: vLLM could not be started; the message ends in the remedy.
    """

    _marker: int

    def _plan(self, request: EncodedRequest) -> Plan:
        """A prompt for each row.

        Raises:
            EngineError: the template has the marker in it.
        """
        rows = list(write_rows(request, self._marker, self._options.max_num_batched_tokens or 0))
        return Plan([], [row.token_ids for row in rows], [row.documents for row in rows])

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
