"""Many documents in one prompt of vLLM: a plugin with a model class, and the engine that uses it.

    engine.py   the engine `vllm_packed`, which writes rows of documents (`engines/token_rows.py`)
    task.py     how the worker asks vLLM for their margins, and which releases of vLLM can do it
    model.py    Qwen3 with shared-prefix attention; runs inside vLLM and reads the rows
    decoder.py  our decoder over the weights that vLLM has loaded, for `model.py`

vLLM calls `register` through the entry point `vllm.general_plugins` in every process that it starts.
"""

from __future__ import annotations

#: The model class's name in `architectures` of a model's configuration.
ARCHITECTURE = "Qwen3PackedReranker"


def register() -> None:
    """Register the model class with vLLM, which imports it when it loads a model of that architecture."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
