"""A model name -> a local folder that is safe to load."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path

from ..config import BUNDLED_MODEL, check_text
from ..errors import ModelNotFoundError, UnsupportedModelError

_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*.json"]


def resolve_model(model: str | os.PathLike[str]) -> Path:
    """The folder of a model.

    Args:
        model: "bundled:tiny", a folder, or a name on the Hugging Face hub such as "Qwen/Qwen3-Reranker-0.6B"
            (its cache is used when there is no network; HF_HOME, HF_ENDPOINT and HF_TOKEN work as usual).

    Raises:
        ModelNotFoundError: says what was looked for and what to do.
        UnsupportedModelError: found, but not a safetensors Qwen3 decoder with its tokenizer.
    """
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    folder = _find(name, _HUB_FILES)
    _check(folder)
    return folder


def resolve_tokenizer(model: str) -> Path:
    """The folder with a model's tokenizer.json, for engines whose weights are elsewhere.

    Args:
        model: as of `resolve_model`; of a model on the hub nothing but its tokenizer.json is fetched.

    Raises:
        ModelNotFoundError: says what was looked for and what to do.
    """
    return _find(model, ["tokenizer.json"])


def _find(name: str, patterns: list[str]) -> Path:
    check_text("model", name)
    if name.startswith("bundled:"):
        return _bundled(name)
    if (local := Path(name).expanduser()).is_dir():
        return local.resolve()
    if _looks_like_path(name):
        raise ModelNotFoundError(
            f"model={name!r}: there is no folder {local.absolute()}; give an existing folder, a hub name such as "
            f"'Qwen/Qwen3-Reranker-0.6B', or {BUNDLED_MODEL!r}"
        )
    return _from_hub(name, patterns)


def modified_ns(folder: Path) -> int:
    """When the files of a model's weights and configuration were last written."""
    return max(file.stat().st_mtime_ns for file in [folder / "config.json", *folder.glob("*.safetensors")])


def _bundled(name: str) -> Path:
    folder = Path(str(files("qwen3_ranker_plugins") / "assets" / name.removeprefix("bundled:")))
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"model={name!r}: the only bundled model is {BUNDLED_MODEL!r}")
    return folder


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name


def _from_hub(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # imported here because it takes a tenth of a second
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    what_to_do = (
        f"check the name, log in if it is private (hf auth login), download it where there is a network "
        f"(hf download {name}) and give the folder, or use {BUNDLED_MODEL!r}, which needs no network"
    )
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"model={name!r}: no such folder here, and no such model on the hub; {what_to_do}"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelNotFoundError(
            f"model={name!r}: no such folder here, not in the hub's cache, and the hub cannot be reached "
            f"({type(error).__name__}); {what_to_do}"
        ) from error


def _check(folder: Path) -> None:
    """Refuse what could only fail later, or would run code from the folder."""
    if not (folder / "config.json").is_file():
        raise UnsupportedModelError(f"{folder} has no config.json: give the folder of a transformers model")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{folder}/config.json is not JSON: {error}") from error
    architectures = config.get("architectures") or [] if isinstance(config, dict) else []
    if architectures != ["Qwen3ForCausalLM"] or config.get("model_type") != "qwen3":
        raise UnsupportedModelError(
            f"{folder} holds {architectures or 'an unnamed architecture'}, not Qwen3ForCausalLM: use a "
            "Qwen3-Reranker checkpoint in its original form"
        )
    if not any(folder.glob("*.safetensors")):
        other = sorted(path.name for path in folder.glob("*.bin"))
        found = f" (only {', '.join(other)}, which can run code when loaded)" if other else ""
        raise UnsupportedModelError(
            f"{folder} has no *.safetensors weights{found}; convert them with model.save_pretrained(folder)"
        )
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            if file.read(8) == b"version ":
                raise UnsupportedModelError(f"{path} is a git-lfs pointer, not the weights: run `git lfs pull`")
