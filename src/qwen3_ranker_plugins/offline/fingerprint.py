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
from ..models import resolve_model
from ..prompt import DEFAULT_INSTRUCTION, Template


def settings_fingerprint(settings: RerankerSettings) -> dict[str, str]:
    """The part that is known before a model is loaded: field -> value."""
    folder = resolve_model(settings.model)
    return {
        "model": model_hash(folder),
        "model_name": settings.model,
        "template": Template.named(settings.template).text,
        "instruction": DEFAULT_INSTRUCTION if settings.instruction is None else settings.instruction,
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
    paths = [folder / "config.json", folder / "tokenizer.json", *sorted(folder.glob("*.safetensors"))]
    for path in paths:
        if path.is_file():
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            with path.open("rb") as weights:
                add_content(digest, weights, path.stat().st_size, THOROUGH)
    return digest.hexdigest()[:16]
