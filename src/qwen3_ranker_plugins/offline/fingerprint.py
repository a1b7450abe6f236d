"""What two runs must have in common for the second to continue the first."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from .._version import __version__
from ..config import RerankerSettings
from ..data.files import THOROUGH, add_content
from ..models import resolve_checkpoint
from ..prompt import Template


def settings_fingerprint(settings: RerankerSettings) -> dict[str, str]:
    """The part that is known before a model is loaded: field -> value."""
    checkpoint = resolve_checkpoint(settings.model, adapter=settings.adapter, scoring=settings.scoring)
    spec = checkpoint.spec
    instruction = spec.instruction if settings.instruction is None else settings.instruction
    template = Template.named(settings.template).text
    if settings.template == "standard":  # the model's own
        template = spec.template if instruction is not None else (spec.template_without_instruction or spec.template)
    # What an ordinary Qwen3-Reranker does not have is left out, so that jobs begun before it was looked at go on.
    others = {} if checkpoint.adapter is None else {"adapter": model_hash(checkpoint.adapter)}
    if str(spec.scoring) != "yes - no":
        others["scoring"] = str(spec.scoring)
    return others | {
        "model": model_hash(checkpoint.folder),
        "model_name": settings.model,
        "template": template,
        "instruction": instruction or "",
        "max_length": str(settings.max_length),
        "engine_options": json.dumps(dict(_without_secrets(settings.engine_options)), sort_keys=True),
        "version": __version__,
    }


def _without_secrets(options: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """What may be written into a file that others can read; a key of a server has no say in the scores."""
    for name, value in options.items():
        if not re.search("key|token$|secret|password|header", name):
            yield name, value


def model_hash(folder: Path) -> str:
    """SHA-256 over the configuration, the tokenizer and the weights, 16 digits."""
    digest = hashlib.sha256()
    named = [folder / name for name in ("config.json", "adapter_config.json", "tokenizer.json")]
    paths = [path for path in named if path.name != "adapter_config.json" or not named[0].exists()]
    paths += sorted(folder.glob("*.safetensors"))
    for path in paths:
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as weights:
                add_content(digest, weights, path.stat().st_size, THOROUGH)
    return digest.hexdigest()[:16]
