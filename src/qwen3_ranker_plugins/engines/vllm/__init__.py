"""The engines on vLLM, which runs in a worker process of its own."""

from .. import EngineEntry

#: Of `vllm_score`, `vllm_generate` and `vllm_packed`.
VLLM = EngineEntry(
    module=f"{__name__}.engine",
    requires=("vllm", "torch", "transformers"),
    install='pip install "qwen3-ranker-plugins[vllm]"',
    own_process=True,
)
