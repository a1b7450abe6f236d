"""`vllm_score`: vLLM's pooling runner, with the classifier that Qwen3-Reranker's two labels make."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


def shared_parameters(task: str) -> Any:
    """PoolingParams that serve all prompts: vLLM copies them deeply for each, and nothing changes them."""
    from vllm import PoolingParams

    class SharedPoolingParams(PoolingParams):  # type: ignore[misc, unused-ignore]
        def clone(self) -> Any:
            return self

        def __reduce__(self) -> Any:  # this class exists in this process only
            return PoolingParams, tuple(getattr(self, name) for name in self.__struct_fields__)

    return SharedPoolingParams(task=task, use_activation=False)


class ScoreMethod:
    """What the worker process asks vLLM for, and where the margin is in its answer.

    Args:
        yes_id, no_id: ids of the labels; vLLM finds them itself, by name.
    """

    #: In place of what vLLM would say of itself.
    facts: ClassVar[dict[str, str]] = {}

    def __init__(self, yes_id: int, no_id: int) -> None:
        self.yes_id, self.no_id = yes_id, no_id

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of EngineArgs besides the common ones."""
        return {
            "runner": "pooling",
            "convert": "classify",
            "hf_overrides": {
                "architectures": ["Qwen3ForSequenceClassification"],
                # The classifier's row is the second word's minus the first one's.
                "classifier_from_token": ["no", "yes"],
                "is_original_qwen3_reranker": True,
                "head_dtype": "float32",
            },
        }

    def parameters(self) -> Any:
        """PoolingParams of every prompt: the logit itself, not its sigmoid."""
        return shared_parameters("classify")

    def read(self, output: Any) -> NDArray[np.float32]:
        """The margins in a finished output, float32 [1]; with many documents in a prompt, one for each.

        Raises:
            ValueError: there is none; says why.
        """
        # vLLM fills the output of a request that failed with 0.0.
        if (error := getattr(output, "error", None)) is not None:
            raise ValueError(f"vLLM: {getattr(error, 'message', error)}")
        margin: NDArray[np.float32] = output.outputs.data.float().flatten().numpy()
        return margin
