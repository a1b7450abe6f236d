"""What two runs must have in common for the second to continue the first."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from .._version import __version__
from ..config import RerankerSettings
from ..models import resolve_model
from ..prompt import DEFAULT_INSTRUCTION, Template

_WHOLE = 64 * 2**20
_SAMPLE = 2**20
_SAMPLES = 64


def settings_fingerprint(settings: RerankerSettings) -> dict[str, str]:
    """The part that is known before a model is loaded: field -> value."""
    folder = resolve_model(settings.model)
    return {
        "model": model_hash(folder),
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
            _add_content(digest, path)
    return digest.hexdigest()[:16]


def _add_content(digest: hashlib._Hash, path: Path) -> None:
    """All of a file; of a large one its beginning (with the names of all tensors), its end, and samples between."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            while block := file.read(_SAMPLE):
                digest.update(block)
            return
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
