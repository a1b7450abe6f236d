"""`vllm_generate`: vLLM generates one token, and the log-probabilities of the two labels give the margin.

Scripts often combine `logprobs=20` with `allowed_token_ids`. vLLM computes these log-probabilities before it applies
the list, so a label may be missing, and the value that such a script substitutes for it is an invented score.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, ClassVar


class GenerateTask:
    """How the worker asks vLLM for margins, see `ScoreTask`.

    Args:
        yes_id, no_id: ids of the labels.
        label_logprobs: "token_ids" requests the log-probabilities of the two labels by id, "processed" those that
            remain after the allow-list; "auto" uses the first if this release of vLLM has it.
    """

    #: See `ScoreTask`.
    facts: ClassVar[dict[str, str]] = {}

    def __init__(self, yes_id: int, no_id: int, label_logprobs: str = "auto") -> None:
        self.yes_id, self.no_id = yes_id, no_id
        self._label_logprobs = label_logprobs

    @property
    def by_token_ids(self) -> bool:
        """Whether log-probabilities are requested by id."""
        from vllm import SamplingParams

        if self._label_logprobs == "auto":
            return "logprob_token_ids" in signature(SamplingParams).parameters
        return self._label_logprobs == "token_ids"

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of EngineArgs in addition to those that all tasks share."""
        # In bfloat16 a margin of 8 would be rounded to a multiple of 1/16.
        arguments: dict[str, Any] = {"runner": "generate", "hf_overrides": {"head_dtype": "float32"}}
        if not self.by_token_ids:
            arguments["logprobs_mode"] = "processed_logprobs"
        return arguments

    def parameters(self) -> Any:
        """SamplingParams of every prompt."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        labels = [self.yes_id, self.no_id]
        asked: dict[str, Any] = (
            {"logprob_token_ids": labels} if self.by_token_ids else {"allowed_token_ids": labels, "logprobs": 2}
        )
        if "skip_clone" in signature(SamplingParams).parameters:
            asked["skip_clone"] = True  # all prompts share one object, which nothing changes
        return SamplingParams(
            temperature=0.0, max_tokens=1, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **asked
        )

    def read(self, output: Any) -> float:
        """The margin in a finished output.

        Raises:
            ValueError: the output carries an error, or lacks a label.
        """
        if (error := getattr(output, "error", None)) is not None:
            raise ValueError(f"vLLM: {getattr(error, 'message', error)}")
        completion = output.outputs[0]
        if not completion.logprobs:
            raise ValueError(f"vLLM returned no log-probabilities (finish_reason={completion.finish_reason!r})")
        labels = completion.logprobs[0]
        if self.yes_id not in labels or self.no_id not in labels:
            raise ValueError(f"vLLM returned log-probabilities of {sorted(labels)} only, not of both labels")
        return float(labels[self.yes_id].logprob - labels[self.no_id].logprob)
