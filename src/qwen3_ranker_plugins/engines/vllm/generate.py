"""`vllm_generate`: one generated token, of which only the log-probabilities of the two labels are read.

Not `logprobs=20` with `allowed_token_ids`: vLLM takes those log-probabilities before it applies the list, so a label
may be missing among them, and what scripts put in its place is an invented score.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, ClassVar


class GenerateMethod:
    """What the worker process asks vLLM for, and where the margin is in its answer.

    Args:
        yes_id, no_id: ids of the labels.
        label_logprobs: "token_ids" asks for the two labels by id, "processed" for what is left after the allow-list;
            "auto" takes the first where the release has it.
    """

    #: See `ScoreMethod`.
    facts: ClassVar[dict[str, str]] = {}

    def __init__(self, yes_id: int, no_id: int, label_logprobs: str = "auto") -> None:
        self.yes_id, self.no_id = yes_id, no_id
        self._label_logprobs = label_logprobs

    @property
    def by_token_ids(self) -> bool:
        """Whether the labels are asked for by id."""
        from vllm import SamplingParams

        if self._label_logprobs == "auto":
            return "logprob_token_ids" in signature(SamplingParams).parameters
        return self._label_logprobs == "token_ids"

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of EngineArgs besides the common ones."""
        # In bfloat16 the logits of a margin of 8 would be rounded to steps of 1/16.
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
            asked["skip_clone"] = True  # one object serves all prompts, and nothing changes it
        return SamplingParams(
            temperature=0.0, max_tokens=1, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **asked
        )

    def read(self, output: Any) -> float:
        """The margin in a finished output.

        Raises:
            ValueError: there is none; says why.
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
