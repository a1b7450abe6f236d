"""The encoder of a model: its own template and limits, or those of the settings.

The template named "standard" is the prompt on which a model was trained: the official prompt for Qwen3-Reranker, and
that of its authors for a related model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidInputError
from ..prompt import DEFAULT_INSTRUCTION, DEFAULT_MAX_LENGTH, PromptEncoder, load_tokenizer

if TYPE_CHECKING:
    from .spec import ModelSpec


def make_encoder(spec: ModelSpec, folder: Path, template: str, max_length: int) -> PromptEncoder:
    """The encoder that makes a model's prompts.

    Args:
        spec: of the model.
        folder: with the model's tokenizer.
        template: "standard" for the model's own prompt, another name, or the text of a template.
        max_length: longest prompt in tokens. If it is the default, it is lowered to the model's number of positions.

    Raises:
        InvalidInputError: max_length exceeds the model's number of positions.
    """
    if max_length > spec.max_positions:
        if max_length != DEFAULT_MAX_LENGTH:
            raise InvalidInputError(
                "max_length",
                max_length,
                f"the model has {spec.max_positions} positions "
                f"({spec.sources.get('max_positions', 'max_position_embeddings in its config.json')}): give at "
                "most that",
            )
        max_length = spec.max_positions
    tokenizer = load_tokenizer(folder)
    if template != "standard":
        instruction = DEFAULT_INSTRUCTION if spec.instruction is None else spec.instruction
        return PromptEncoder(tokenizer, template, max_length, instruction=instruction)
    return PromptEncoder(
        tokenizer,
        spec.template,
        max_length,
        template_without_instruction=spec.template_without_instruction,
        instruction=spec.instruction,
        empty_document=spec.empty_document,
    )
