"""What this process and its vLLM worker send each other in addition to `workers.messages`.

The worker gets a `LoadModel` first, and answers each `ScorePrompts` with `PromptMargins`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LoadModel:
    """Start vLLM with this model.

    Attributes:
        engine: "vllm_score", "vllm_generate" or "vllm_packed".
        arguments: arguments of vLLM's EngineArgs.
        device: "cpu" or "cuda".
        example: token ids of a prompt with one document, scored once before the first caller waits for a margin.
        yes_id, no_id: ids of the labels.
        label_logprobs: see `GenerateTask`.
        marker_id: see `PackedTask`.
        classifier: whether the checkpoint has a score head of its own, so that label tokens are not used.
    """

    engine: str
    arguments: dict[str, Any]
    device: str
    example: list[int]
    yes_id: int
    no_id: int
    label_logprobs: str = "auto"
    marker_id: int = -1
    classifier: bool = False


@dataclass(frozen=True)
class ScorePrompts:
    """Score these prompts.

    Attributes:
        prompts: for each request, the token ids that all its prompts begin with, and the rest of each prompt.
        counts: number of margins of each prompt.
        at_once: at most this many prompts are handed to vLLM at once.
    """

    prompts: Sequence[tuple[list[int], list[list[int]]]]
    counts: Sequence[int]
    at_once: int

    @property
    def slices(self) -> list[slice]:
        """For each prompt, where its margins are in `PromptMargins.margins`."""
        return [slice(*bounds) for bounds in pairwise([0, *accumulate(self.counts)])]


@dataclass(frozen=True)
class PromptMargins:
    """vLLM's answer to `ScorePrompts`.

    Attributes:
        margins: float32, see `ScorePrompts.slices`; NaN for the prompts in `failures`.
        cached_tokens: int64 [prompts], tokens of each that the prefix cache held.
        failures: index of a prompt -> why it has no margins.
    """

    margins: NDArray[np.float32]
    cached_tokens: NDArray[np.int64]
    failures: dict[int, str] = field(default_factory=dict)
