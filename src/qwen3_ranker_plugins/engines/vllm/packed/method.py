"""What the worker process asks vLLM for when a request holds many documents, and with which releases that works."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from ..score import ScoreMethod, shared_parameters
from . import ARCHITECTURE, register

#: The oldest release that has the interfaces which the model class is made for, and the newest one that was run.
OLDEST, NEWEST_RUN = (0, 26), (0, 32)


class PackedMethod(ScoreMethod):
    """As `vllm_score`, but that one prompt gives as many margins as it holds documents.

    Args:
        yes_id, no_id: ids of the labels.
        marker: id of the token that ends the parts of a row.
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
        """Arguments of EngineArgs besides the common ones.

        Raises:
            RuntimeError: this release of vLLM is too old.
        """
        import vllm

        check_release(vllm.__version__)
        # The entry point does the same in every process of vLLM; here also for a package that is not installed.
        register()
        return {
            "runner": "pooling",
            "hf_overrides": self._overrides,
            "enable_chunked_prefill": False,
            "enable_prefix_caching": False,
            # A step has as many tokens as its documents have; there is no batch of a few known sizes to capture.
            "compilation_config": {"cudagraph_mode": "NONE"},
        }

    def parameters(self) -> Any:
        """PoolingParams of every prompt: the logit itself, not its sigmoid."""
        return shared_parameters("token_classify")


def check_release(version: str) -> None:
    """Raise RuntimeError for a release of vLLM that is too old.

    Args:
        version: such as "0.32.0" or "0.32.0+cpu".
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise RuntimeError(
            f"vLLM {version} is too old for the engine 'vllm_packed', which was run on "
            f"{'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST_RUN))}"
        )
