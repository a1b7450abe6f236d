"""What other libraries raise while they read a damaged checkpoint, as an error that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ...errors import ModelError, RankerError, UnsupportedModelError
from ...model_files import remedy_of_reading


@contextmanager
def damage_explained(folder: Path, *, is_quantised: bool = False) -> Iterator[None]:
    """Turn what a load raises into an error that says what to do.

    Args:
        folder: with the files, for messages.
        is_quantised: whether a wrong value is most likely one of quantization_config.

    Raises:
        ModelError: memory ran out, or torch's threads were made before a fork.
        UnsupportedModelError: anything else, most likely because the folder is damaged.
    """
    try:
        yield
    except RankerError:
        raise
    except Exception as error:  # for a damaged folder, transformers and its libraries raise almost anything
        reason = first_sentence(str(error))
        # On a CPU, torch raises a plain RuntimeError if there is too little memory.
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in reason:
            raise ModelError(
                f"{folder} does not fit into the free memory ({type(error).__name__}: {reason}): end other programs "
                "that use it, or choose a smaller model, a dtype with fewer bits or another device"
            ) from error
        if "Invalid thread pool" in reason:  # torch made its threads in a parent process
            raise ModelError(
                f"{folder} cannot be loaded, because torch.set_num_threads was called before a fork ({reason}): set "
                "the environment variable OMP_NUM_THREADS instead, or start workers with the 'spawn' method"
            ) from error
        # pydantic's ValidationError, of compressed-tensors
        if type(error).__name__ == "ValidationError" or (is_quantised and isinstance(error, ValueError)):
            raise UnsupportedModelError(
                f"{folder}/config.json has a quantization_config that cannot be followed ({reason}): write the value "
                "that the original has, or download the file again"
            ) from error
        remedy = f"{remedy_of_reading(error)}, or use a Qwen3-Reranker checkpoint in its original form"
        raise UnsupportedModelError(
            f"{folder} cannot be loaded ({type(error).__name__}: {reason}); {remedy}"
        ) from error


def first_sentence(message: str) -> str:
    """The first line of a message, and what follows if that line only announces it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason given"]
    sentence = lines.pop(0)
    if re.search(r"\d+ validation errors? for ", sentence):  # pydantic names the setting and the reason in two lines
        sentence = ": ".join([sentence, *lines[:2]])
        sentence = re.sub(r"\.function-after\[[^\]]*\]|Value error, ", "", sentence)
        sentence = re.sub(r" \[type=value_error, input_value=\{.*\]$", "", sentence)  # an object with a wrong part
        sentence = re.sub(r" \[type=.*?(, input_value=(.*), input_type=.*)?\]$", r", not \2", sentence)
    while sentence.endswith(":") and lines:
        sentence = f"{sentence} {lines.pop(0)}"
    return sentence
