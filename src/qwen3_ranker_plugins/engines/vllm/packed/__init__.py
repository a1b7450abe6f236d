"""Many documents in one request of vLLM: a plugin with a model class, and the engine that speaks to it.

    rows.py     a request and its documents -> one row of token ids, and back to a packed layout
    model.py    vLLM's Qwen3 with shared-prefix attention in place of its own; runs inside vLLM
    method.py   what vLLM is asked for, and which of its releases
    engine.py   the engine `vllm_packed`

vLLM finds `register` through the entry point `vllm.general_plugins` in every process that it starts.
"""

from __future__ import annotations

#: The name in `architectures` that stands for the model class.
ARCHITECTURE = "Qwen3PackedReranker"


def register() -> None:
    """Make the model class known to vLLM; it is imported when a model of that architecture is loaded."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
