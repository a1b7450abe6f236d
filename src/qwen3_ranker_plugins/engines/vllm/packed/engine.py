"""`vllm_packed`: the engine that hands vLLM rows of many documents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....prompt import EncodedRequest, ModelTokenizer
from ...token_rows import PREAMBLE, marker_id, write_rows
from ..messages import LoadModel
from ..worker_engine import RequestPrompts, VllmEngine


class VllmPackedEngine(VllmEngine):
    """vLLM in a worker process, with our model class: each prompt is a row of documents with one prefix.

    Args:
        config: as `resolve` returns it.

    Raises:
        UnsupportedModelError: the tokenizer lacks the token that marks the ends of prefix and documents in a row.
        EngineError: vLLM could not be started; the message ends in the remedy.
    """

    _marker: int

    def _prompts(self, request: EncodedRequest) -> RequestPrompts:
        """One prompt for each row.

        Raises:
            EngineError: the template contains the marker.
        """
        rows = list(write_rows(request, self._marker, self._options.max_num_batched_tokens or 0))
        return RequestPrompts([], [row.token_ids for row in rows], [row.documents for row in rows])

    def _adapt(self, arguments: dict[str, Any], environment: dict[str, str], *, positions: int) -> None:
        # To vLLM a row is a prompt. Rows must not be cut into chunks, so a step has room for a whole one.
        length = max(arguments["max_num_batched_tokens"], arguments["max_model_len"] + PREAMBLE)
        arguments |= {"max_model_len": length, "max_num_batched_tokens": length, "enable_prefix_caching": False}
        arguments.pop("block_size", None)
        if length > positions:  # each document has positions of its own, so a row may be longer than the model's window
            environment["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"

    def _load_message(self, load: LoadModel, tokenizer: ModelTokenizer) -> LoadModel:
        self._marker = marker_id(tokenizer)
        example = EncodedRequest([tokenizer.yes_id], [[tokenizer.no_id]], [0])
        [row] = write_rows(example, self._marker, room=8)
        return replace(load, example=row.token_ids, marker_id=self._marker)
