"""The engines on vLLM, which runs in a worker process of its own."""

from ...pip_command import pip_install
from .. import EngineEntry

#: The entry of `vllm_score`, `vllm_generate` and `vllm_packed`.
VLLM = EngineEntry(
    module=f"{__name__}.engine",
    requires=("vllm", "torch", "transformers"),
    install=pip_install("vllm"),
    own_process=True,
)
