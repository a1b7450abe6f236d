"""A model name -> a local folder that is safe to load."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ..checks import check_text
from ..config import BUNDLED_MODEL
from ..errors import ModelNotFoundError, UnsupportedModelError
from ..model_files import check_file, find_files, is_listed, reason_and_remedy
from ..pip_command import pip_install
from .adapters import (
    base_of,
    check_files,
    check_merged,
    check_not_merged,
    check_settings,
    has_whole_weights,
    is_adapter,
)
from .cross_encoder_files import check_place_of_model
from .gguf import find_gguf, unpack
from .spec import ModelSpec
from .spec_reader import read_spec
from .tokenizer_settings import check_adapters_tokenizer, check_tokenizer
from .weights import read_headers, weight_files

# The files of a checkpoint, a conversion or an adapter. No *.bin and no *.py, because both can run code.
_HUB_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "added_tokens.json",
    "special_tokens_map.json",
    "processor_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "[0-9]_*/config.json",
    "adapter_config.json",
]


@dataclass(frozen=True)
class Checkpoint:
    """Everything on this machine from which a model is loaded, and how the model judges.

    Attributes:
        folder: with the weights, the configuration and the tokenizer.
        adapter: the folder of a LoRA adapter that is merged into the weights when they are loaded; None for none.
        spec: how the model judges a document.
    """

    folder: Path
    adapter: Path | None
    spec: ModelSpec

    @property
    def folders(self) -> list[Path]:
        """The folders that are read."""
        return [self.folder] if self.adapter is None else [self.folder, self.adapter]


def resolve_checkpoint(
    model: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None = None,
    scoring: str | None = None,
    template: str = "standard",
) -> Checkpoint:
    """Find a model and read how it judges a document.

    Args:
        model: as for `resolve_model`; the folder or the hub name of a LoRA adapter selects its base with this adapter.
        adapter: a LoRA adapter for the model: a folder or a hub name; "none" to ignore one in the model's folder.
        scoring: how to score, instead of how the checkpoint says; see `Scoring.parse`.
        template: as for `read_spec`.

    Raises:
        ModelNotFoundError, UnsupportedModelError: see `resolve_model`.
        InvalidInputError: `scoring` does not fit the model.
    """
    name = _name(model)
    folder = _find(name, _HUB_FILES)
    if adapter is None and is_adapter(folder) and not has_whole_weights(folder):
        adapter, (name, revision) = folder, base_of(folder)
        try:
            folder = _find(name, _HUB_FILES, revision=revision)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"{adapter} is an adapter, and its base is not here ({error}): give the base as model and this folder "
                "as adapter"
            ) from error
        _check_base(adapter, folder)
    _check(folder)
    check_tokenizer(folder)
    if adapter is None or _name(adapter) == "none":
        if adapter is None:
            check_files(folder)
            if is_adapter(folder):
                check_merged(folder, _local_base(folder))
        return Checkpoint(folder, None, read_spec(folder, name=name, scoring=scoring, template=template))
    found = _find(_name(adapter), _HUB_FILES, argument="adapter")
    if not is_adapter(found):
        raise UnsupportedModelError(
            f"adapter={_name(adapter)!r}: {found} does not have both adapter_config.json and "
            "adapter_model.safetensors; save the adapter with peft's save_pretrained()"
        )
    check_settings(found)
    read_headers(found, adapter=True)
    check_adapters_tokenizer(found, folder)
    check_not_merged(folder, found, _local_base(found))
    spec = read_spec(folder, name=name, scoring=scoring, adapter=found, template=template)
    return Checkpoint(folder, found, spec)


def resolve_model(model: str | os.PathLike[str]) -> Path:
    """The folder of a model.

    Args:
        model: "bundled:tiny", a folder, a GGUF file (see `gguf`), or a name on the Hugging Face hub such as
            "Qwen/Qwen3-Reranker-0.6B" (its cache is used when there is no network; HF_HOME, HF_ENDPOINT and HF_TOKEN
            work as usual).

    Raises:
        ModelNotFoundError: there is no such model; the message says where it was looked for and what to do.
        UnsupportedModelError: the folder has no safetensors weights that can be loaded.
    """
    folder = _find(_name(model), _HUB_FILES)
    _check(folder)
    return folder


def _name(model: str | os.PathLike[str]) -> str:
    return os.fspath(model) if isinstance(model, os.PathLike) else model


def _local_base(adapter: Path) -> Path | None:
    """The folder of an adapter's base with its weights, if it is on this machine."""
    try:
        name, revision = base_of(adapter)
        folder = _find(name, _HUB_FILES, revision=revision, local=True)
        return folder if weight_files(folder) else None
    except (UnsupportedModelError, ModelNotFoundError):  # it names none, or only a part of it was downloaded
        return None


def resolve_tokenizer(model: str) -> Path:
    """The folder with a model's tokenizer.json, for engines whose weights are elsewhere.

    Args:
        model: as for `resolve_model`; from the hub, only tokenizer.json is fetched.

    Raises:
        ModelNotFoundError: there is no such model; the message says where it was looked for and what to do.
    """
    return _find(model, ["tokenizer.json"])


def _find(
    name: str, patterns: list[str], *, revision: str | None = None, argument: str = "model", local: bool = False
) -> Path:
    """The folder of a model or an adapter.

    Args:
        name: as for `resolve_model`.
        patterns: the files that are fetched from the hub.
        revision: a branch, tag or commit on the hub; None for the newest. A folder has only one.
        argument: name of the argument for messages.
        local: whether to look on this machine only.
    """
    check_text(argument, name)
    if name.startswith("bundled:"):
        return _bundled(name)
    path = Path(name).expanduser()
    if (file := find_gguf(path)) is not None:
        return unpack(file)
    if path.is_dir():
        return path.resolve()
    if path.is_symlink():
        gone = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise ModelNotFoundError(f"{argument}={name!r}: {reason_and_remedy(path, gone)}")
    if path.is_file():
        raise ModelNotFoundError(f"{argument}={name!r} is a file: give its folder, {str(path.absolute().parent)!r}")
    if _looks_like_path(name) or path.suffix.lower() == ".gguf":
        remedy = (
            "give an existing folder, or a hub name"
            if argument == "adapter"
            else "give an existing folder or GGUF file, a hub name such as 'Qwen/Qwen3-Reranker-0.6B', or "
            f"{BUNDLED_MODEL!r}"
        )
        raise ModelNotFoundError(f"{argument}={name!r}: there is no folder {path.absolute()}; {remedy}")
    return _from_hub(name, patterns, revision, argument, local=local)


def _bundled(name: str) -> Path:
    if name != BUNDLED_MODEL:
        raise ModelNotFoundError(f"model={name!r}: the only bundled model is {BUNDLED_MODEL!r}")
    # A clone has the folder, so that `pip install -e .` is enough; otherwise the distribution qwen3-ranker-tiny has it.
    folder = Path(__file__).parents[3] / "models" / "tiny" / "qwen3_ranker_tiny"
    if (folder / "config.json").is_file():
        return folder
    try:
        return Path(str(files("qwen3_ranker_tiny")))
    except ModuleNotFoundError as error:
        raise ModelNotFoundError(
            f"model={name!r} is a distribution of its own, which is not installed: "
            f"{pip_install('tiny', also=('qwen3-ranker-tiny',))}"
        ) from error


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name


def _from_hub(name: str, patterns: list[str], revision: str | None, argument: str, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download  # imported here because it takes a tenth of a second
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    download = f"hf download {name}" + ("" if revision is None else f" --revision {revision}")
    what_to_do = (
        f"check the name, log in if it is private (hf auth login), download it where there is a network ({download}) "
        "and give the folder"
    )
    if argument != "adapter":
        what_to_do += f", or use {BUNDLED_MODEL!r}, which needs no network"
    named = f"{argument}={name!r}" + ("" if revision is None else f" with revision {revision!r}")
    unreachable: tuple[type[Exception], ...] = (LocalEntryNotFoundError, HfHubHTTPError, *_network_errors())
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=local))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        what = "revision of the model" if isinstance(error, RevisionNotFoundError) else argument
        raise ModelNotFoundError(
            f"{named}: no such folder here, and no such {what} on the hub; {what_to_do}"
        ) from error
    except unreachable as error:
        if revision is not None and not local:
            # For a commit, the library asks the hub for the list of its files although all may be here.
            return _from_hub(name, patterns, revision, argument, local=True)
        raise ModelNotFoundError(
            f"{named}: no such folder here, not in the hub's cache, and the hub cannot be reached "
            f"({type(error).__name__}); {what_to_do}"
        ) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub lets through when the hub cannot be reached: errors of httpx; OSErrors before version 1."""
    try:
        from httpx import HTTPError
    except ModuleNotFoundError:
        return (OSError,)
    return (OSError, HTTPError)


def _check_base(adapter: Path, base: Path) -> None:
    """Make sure that the base which an adapter names is a model.

    Raises:
        UnsupportedModelError: it is the adapter itself, or another adapter.
    """
    if is_adapter(base) and not has_whole_weights(base):
        what = "the adapter itself" if base.samefile(adapter) else f"{base}, which is an adapter too"
        raise UnsupportedModelError(
            f"{adapter}/adapter_config.json names as base_model_name_or_path {what}: give the model that it was "
            "trained on as model, and this folder as adapter"
        )


def _check(folder: Path) -> None:
    """Refuse a folder that could not be loaded later, or could only be loaded by running code from it.

    Raises:
        UnsupportedModelError: the message says what is missing and what to do.
    """
    if not is_listed(folder / "config.json"):
        check_place_of_model(folder)
        if is_adapter(folder):
            raise UnsupportedModelError(
                f"{folder} is an adapter, not a model: give the model that it was trained on as model, and this folder "
                "as adapter"
            )
        if is_listed(folder / "adapter_config.json"):
            raise UnsupportedModelError(
                f"{folder} is an adapter without adapter_model.safetensors (an adapter_model.bin can run code when it "
                "is loaded): load it with peft where you trust it, and store it with save_pretrained()"
            )
        if is_listed(folder / "adapter_model.safetensors"):
            raise UnsupportedModelError(
                f"{folder} is an adapter without adapter_config.json, which says how it is merged: download that file"
            )
        below = [repr(str(each)) for each in _models_below(folder)]
        remedy = (
            f"give the model's folder below it, {' or '.join(below[:3])}"
            if below
            else "give the folder of a transformers model, or the path of a GGUF file"
        )
        raise UnsupportedModelError(f"{folder} has no config.json: {remedy}")
    check_file(folder / "config.json")
    if not weight_files(folder):
        names = [path.name for path in find_files(folder, "*.safetensors")]
        strays = [name for name in names if not name.startswith("adapter_")]
        if strays:
            remedy = "download what is missing"
            if len(strays) == 1:
                remedy = f"if the file holds all weights, rename it to model.safetensors, else {remedy}"
            raise UnsupportedModelError(
                f"{folder} has {', '.join(strays[:3])}, but neither model.safetensors nor model.safetensors.index.json "
                f"(the list of a divided model's files): {remedy}"
            )
        other = sorted(path.name for path in folder.glob("*.bin"))
        found = f" (only {', '.join(other)}, which can run code when loaded)" if other else ""
        raise UnsupportedModelError(
            f"{folder} has no *.safetensors weights{found}; convert them with model.save_pretrained(folder)"
        )
    read_headers(folder)


def _models_below(folder: Path) -> list[Path]:
    """The folders of models and adapters in a folder, or in a repository of the hub's cache."""
    snapshots = folder / "snapshots"
    return sorted(
        each
        for each in (snapshots if snapshots.is_dir() else folder).iterdir()
        if is_adapter(each) or (is_listed(each / "config.json") and has_whole_weights(each))
    )
