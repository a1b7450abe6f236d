"""`vllm_score`: vLLM's pooling runner, with a classifier made of the two labels' rows of the output matrix."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


def shared_parameters(task: str) -> Any:
    """PoolingParams for all prompts that return the logit itself, not its sigmoid.

    vLLM makes a deep copy of the parameters for each prompt. Nothing changes them, so `clone` returns the same object.
    """
    from vllm import PoolingParams

    class SharedPoolingParams(PoolingParams):  # type: ignore[misc, unused-ignore]
        def clone(self) -> Any:
            return self

        def __reduce__(self) -> Any:  # other processes cannot import this class
            return PoolingParams, tuple(getattr(self, name) for name in self.__struct_fields__)

    return SharedPoolingParams(task=task, use_activation=False)


class ScoreTask:
    """How the worker asks vLLM for margins: arguments, parameters of each prompt, and the margin in its output.

    Args:
        yes_id, no_id: ids of the labels. vLLM looks them up by name.
    """

    #: Facts for `describe` that replace those of vLLM's configuration that are not true for this task.
    facts: ClassVar[dict[str, str]] = {}

    def __init__(self, yes_id: int, no_id: int) -> None:
        self.yes_id, self.no_id = yes_id, no_id

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of EngineArgs in addition to those that all tasks share."""
        return {
            "runner": "pooling",
            "convert": "classify",
            "hf_overrides": {
                "architectures": ["Qwen3ForSequenceClassification"],
                # The classifier's weights are the second word's row minus the first word's.
                "classifier_from_token": ["no", "yes"],
                "is_original_qwen3_reranker": True,
                "head_dtype": "float32",
            },
        }

    def parameters(self) -> Any:
        """PoolingParams of every prompt."""
        return shared_parameters("classify")

    def read(self, output: Any) -> NDArray[np.float32]:
        """The margins in a finished output, float32 [documents in the prompt].

        Raises:
            ValueError: the output carries an error.
        """
        # vLLM sets the output of a failed request to 0.0.
        if (error := getattr(output, "error", None)) is not None:
            raise ValueError(f"vLLM: {getattr(error, 'message', error)}")
        margin: NDArray[np.float32] = output.outputs.data.float().flatten().numpy()
        return margin


class ClassifierTask(ScoreTask):
    """Margins of a checkpoint with one label, whose score head vLLM loads as it is."""

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of EngineArgs in addition to those that all tasks share."""
        return {"runner": "pooling", "convert": "classify", "hf_overrides": {"head_dtype": "float32"}}
