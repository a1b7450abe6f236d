"""Load a Qwen3 checkpoint, with its own weights only, or refuse it.

A checkpoint in the plain form is loaded into `qwen3`, all others by transformers, whose import takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import RankerError, UnsupportedModelError
from ..attention.interface import ATTENTION_NAME, register
from . import qwen3


def read_config(folder: Path) -> Any:
    """The model's configuration.

    Raises:
        UnsupportedModelError: it cannot be read, or is not that of a decoder that the packed engine can run.
    """
    with _damage_explained(folder):
        return qwen3.plain_config(folder) or _transformers_config(folder)


def load_causal_lm(folder: Path, dtype: torch.dtype) -> Any:
    """The causal language model, in evaluation mode, with our attention.

    Raises:
        UnsupportedModelError: it cannot be loaded, or would run with weights that are not the checkpoint's.
    """
    with _damage_explained(folder):
        return qwen3.load(folder, dtype) or _load_with_transformers(folder, dtype)


def _load_with_transformers(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    register()
    config = _transformers_config(folder)
    with _quiet():
        model: Any
        loaded: dict[str, Any]
        load: Any = AutoModelForCausalLM.from_pretrained  # its annotation does not know output_loading_info
        model, loaded = load(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION_NAME,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    # transformers fills what it does not find with random numbers, which would pass for scores.
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if problems := sorted(map(str, loaded.get(kind) or ())):
            raise UnsupportedModelError(
                f"{folder}: config.json and the weights do not fit, {kind.replace('_', ' ')}: {', '.join(problems[:3])}"
                f"{', ...' if len(problems) > 3 else ''}; download the checkpoint again"
            )
    model.requires_grad_(False)
    return model


def _transformers_config(folder: Path) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type != "qwen3" or set(config.layer_types) != {"full_attention"}:
        raise UnsupportedModelError(
            f"{folder} holds a {config.model_type!r} model with {sorted(set(config.layer_types))} layers; the packed "
            "engine runs Qwen3 decoders with full attention: use a Qwen3-Reranker checkpoint"
        )
    rope = config.rope_parameters["rope_type"]
    if rope in ("dynamic", "longrope"):
        raise UnsupportedModelError(
            f"{folder} has {rope!r} rotary embeddings, which depend on the longest prompt of a batch, so that a score "
            "would depend on its neighbours; set a fixed one, such as 'default' or 'yarn', in config.json"
        )
    return config


@contextmanager
def _damage_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except RankerError:
        raise
    except Exception as error:  # a damaged folder makes transformers and what it calls raise almost anything
        raise UnsupportedModelError(
            f"{folder} cannot be loaded ({type(error).__name__}: {str(error).strip().splitlines()[0]}); "
            "download it again, or use a Qwen3-Reranker checkpoint in its original form"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar, which leaves a thread running, and no table of what is checked here."""
    from transformers.utils import logging as transformers_logging

    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
