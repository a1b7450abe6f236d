"""Values that identify a model and a prompt, for files that must not be used with any other."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..config import RerankerSettings
from ..content import THOROUGH, add_content
from ..model_files import find_files
from ..prompt import Template
from .spec import ModelSpec


def model_hash(folder: Path, *, is_adapter: bool = False) -> str:
    """First 16 digits of a SHA-256 of the configuration, the tokenizer and the weights; large files are sampled.

    Args:
        folder: with the files.
        is_adapter: whether they are used as a LoRA adapter. Otherwise an adapter's configuration next to a model's does
            not count, because it has no effect on the model.
    """
    digest = hashlib.sha256()
    named = [folder / name for name in ("config.json", "adapter_config.json", "tokenizer.json")]
    paths = [path for path in named if is_adapter or path.name != "adapter_config.json" or not named[0].exists()]
    paths += find_files(folder, "*.safetensors")
    for path in paths:
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as weights:
                add_content(digest, weights, path.stat().st_size, THOROUGH)
    return digest.hexdigest()[:16]


def prompt_facts(spec: ModelSpec, template: str, instruction: str | None) -> dict[str, str]:
    """The template and the instruction as they reach the model.

    Args:
        spec: of the model.
        template, instruction: as in `RerankerSettings`.
    """
    instruction = spec.instruction if instruction is None else instruction
    text = Template.named(template).text
    if template == "standard":  # the model's own
        text = spec.template if instruction is not None else (spec.template_without_instruction or spec.template)
    return {"template": text, "instruction": instruction or ""}


def judgement_facts(
    settings: RerankerSettings, folder: Path | None, spec: ModelSpec | None, adapter: Path | None
) -> dict[str, str]:
    """What the meaning of a margin depends on: "model", "adapter", "scoring", "template", "instruction" and "pieces".

    Args:
        settings: of the reranker.
        folder: with the weights; None if they are not on this machine, so that only the model's name is known.
        spec: how the model judges; None as for `folder`.
        adapter: folder of a LoRA adapter that is merged into the weights.
    """
    if folder is None or spec is None:
        known = {"model": f"named {settings.model}", "scoring": settings.scoring or ""}
        prompt = {"template": Template.named(settings.template).text, "instruction": settings.instruction or ""}
    else:
        known = {"model": model_hash(folder), "scoring": str(spec.scoring)}
        prompt = prompt_facts(spec, settings.template, settings.instruction)
    pieces = settings.pieces
    known["pieces"] = (
        "" if pieces is None else f"{pieces.tokens} tokens, overlap {pieces.overlap}, at most {pieces.limit}"
    )
    return {**known, "adapter": "" if adapter is None else model_hash(adapter, is_adapter=True), **prompt}
