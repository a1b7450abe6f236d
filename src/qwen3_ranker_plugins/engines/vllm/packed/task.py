"""How the worker asks vLLM for the margins of a prompt with many documents, and the releases of vLLM that can do it."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from ..score import ScoreTask, shared_parameters
from . import ARCHITECTURE, register

#: The oldest release with the interfaces that the model class needs, and the newest release that was tested.
OLDEST, NEWEST_TESTED = (0, 26), (0, 32)


class PackedTask(ScoreTask):
    """A `ScoreTask` in which one prompt gives a margin for each document that it holds.

    Args:
        yes_id, no_id: ids of the labels.
        marker: id of the token that marks the ends of prefix and documents in a row.
    """

    facts: ClassVar[dict[str, str]] = {"attention": "shared prefix", "block_size": "none", "kv_cache_tokens": "none"}

    def __init__(self, yes_id: int, no_id: int, marker: int) -> None:
        super().__init__(yes_id, no_id)
        self._overrides = {
            "architectures": [ARCHITECTURE],
            "ranker_yes_id": yes_id,
            "ranker_no_id": no_id,
            "ranker_marker_id": marker,
        }

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of EngineArgs in addition to those that all tasks share.

        Raises:
            RuntimeError: this release of vLLM is too old.
        """
        import vllm

        check_release(vllm.__version__)
        # vLLM calls this in every process through the entry point, but only if this package is installed.
        register()
        return {
            "runner": "pooling",
            "hf_overrides": self._overrides,
            "enable_chunked_prefill": False,
            "enable_prefix_caching": False,
            # Each step has a different number of tokens, so there are no batch sizes for which to capture graphs.
            "compilation_config": {"cudagraph_mode": "NONE"},
        }

    def parameters(self) -> Any:
        """PoolingParams of every prompt."""
        return shared_parameters("token_classify")


def facts_of_model(model: Any) -> dict[str, str]:
    """Facts that the model class reports, see `Qwen3PackedReranker.facts`."""
    facts: dict[str, str] = model.facts
    return facts


def check_release(version: str) -> None:
    """Raise RuntimeError for a release of vLLM that is too old.

    Args:
        version: such as "0.32.0" or "0.32.0+cpu".
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise RuntimeError(
            f"vLLM {version} is too old for the engine 'vllm_packed', which was tested on "
            f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST_TESTED))}: upgrade it"
        )
