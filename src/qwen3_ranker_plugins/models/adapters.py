"""LoRA adapters: the base on which an adapter was trained, its settings, and whether weights already contain it."""

from __future__ import annotations

import math
import re
from pathlib import Path

from ..errors import UnsupportedModelError
from ..model_files import is_listed
from .adapter_comparison import compare
from .json_files import read_json, shortened

#: Kinds of adapters that peft merges into weights.
_MERGED = ("LORA", "IA3", "LOHA", "LOKR", "ADALORA", "OFT", "BOFT", "HRA", "VERA")
#: Settings with which an adapter does not change weights alone -> the reason.
_NOT_MERGED = {
    "alora_invocation_tokens": "an activated LoRA changes only the tokens after its invocation",
    "layer_replication": "the adapter needs more layers than its base has",
    "arrow_config": "each token chooses its adapters",
}
#: Of `init_lora_weights`: initialisations that change the base, each time in another way.
_REPEATED = re.compile("pissa_niter_|corda|lora_ga")
_MODULES = ((str, list), "a list of modules' names, or a pattern")
#: Setting of adapter_config.json -> its types, and what it is.
_SETTINGS: dict[str, tuple[tuple[type, ...], str]] = {
    "r": ((int,), "a positive whole number"),
    "lora_alpha": ((int, float), "a finite number"),
    "lora_dropout": ((int, float), "a finite number"),
    "target_modules": _MODULES,
    "exclude_modules": _MODULES,
    "modules_to_save": ((list,), "a list of modules' names"),
    "layers_to_transform": ((int, list), "a list of layers' numbers"),
    "rank_pattern": ((dict,), "an object with modules and ranks, which are whole numbers"),
    "alpha_pattern": ((dict,), "an object with modules and finite numbers"),
    "bias": ((str,), "'none', 'all' or 'lora_only'"),
    "use_rslora": ((bool,), "true or false"),
    "use_dora": ((bool,), "true or false"),
    "lora_bias": ((bool,), "true or false"),
    "fan_in_fan_out": ((bool,), "true or false"),
}
#: Files of an adapter; the last can run code when it is loaded.
_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_IF_MERGED = "if it is merged, give adapter='none', or remove the adapter's files"
_IF_NOT_MERGED = "if it is not, move the adapter's files into a folder of their own, and give that as adapter"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, alone or together with whole weights."""
    return all(is_listed(folder / name) for name in _FILES[:2])


def has_whole_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights; some trainers write config.json without them."""
    return any(is_listed(folder / name) for name in ("model.safetensors", "model.safetensors.index.json"))


def base_of(adapter: Path) -> tuple[str, str | None]:
    """(the folder or hub name of the model that an adapter was trained on, its revision on the hub).

    Raises:
        UnsupportedModelError: the adapter does not name its base, or the revision is not a text.
    """
    said = read_json(adapter / "adapter_config.json")
    base, revision = said.get("base_model_name_or_path"), said.get("revision")
    if not isinstance(base, str) or not base:
        raise UnsupportedModelError(
            f"{adapter} is an adapter that does not name its base (adapter_config.json says "
            f"base_model_name_or_path={shortened(base)}): give the base as model and this folder as adapter"
        )
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise UnsupportedModelError(
            f"{adapter}/adapter_config.json says revision={shortened(revision)}, which is not a revision of its base "
            f"{base}: write null for the newest, or the name of a branch, a tag or a commit"
        )
    return base, revision


def check_settings(adapter: Path) -> None:
    """Make sure that an adapter changes weights, and that the settings which decide how are as peft expects them.

    Raises:
        UnsupportedModelError: it cannot be merged into weights, or a setting has another type; the message names it and
            its value.
    """
    path = adapter / "adapter_config.json"
    said = read_json(path)
    kind = said.get("peft_type")
    if kind not in _MERGED:
        raise UnsupportedModelError(
            f"{adapter} is an adapter with peft_type={kind!r}, which cannot be merged into weights (such as "
            f"{', '.join(_MERGED[:3])}): use peft with the model's own code"
        )
    for name, reason in _NOT_MERGED.items():
        if said.get(name):
            raise UnsupportedModelError(
                f"{path} says {name}={shortened(said[name])}: {reason}, so it cannot be merged into weights: use peft "
                "with the model's own code, or train it without the setting"
            )
    if _REPEATED.match(str(said.get("init_lora_weights"))):
        raise UnsupportedModelError(
            f"{path} says init_lora_weights={shortened(said['init_lora_weights'])}, which changes the base at each "
            "load, and in the same way only with the training's data or random numbers: save the adapter with peft's "
            "save_pretrained(path_initial_model_for_weight_conversion=...), or merge it where it was trained"
        )
    for name, (kinds, what) in _SETTINGS.items():
        value = said.get(name)
        if kind == "ADALORA" and name == "rank_pattern":
            continue  # for each module, which of its singular values were kept
        if value is not None and not (type(value) in kinds and _holds(name, value)):
            raise UnsupportedModelError(
                f"{path} says {name}={shortened(value)}, which is not {what}: write the value of its training, or "
                "download the file again"
            )
    rank = said.get("r")
    # OFT has r=0 if oft_block_size decides the size of its blocks.
    if rank is not None and rank < (0 if kind == "OFT" else 1):
        raise UnsupportedModelError(f"{path} says r={rank}, which is no rank: write the value of its training")


def _holds(name: str, value: object) -> bool:
    """Whether the parts of a setting have the right type too, and numbers are finite."""
    if name in ("rank_pattern", "alpha_pattern"):
        kinds = (int,) if name == "rank_pattern" else (int, float)
        return isinstance(value, dict) and all(type(each) in kinds and math.isfinite(each) for each in value.values())
    if isinstance(value, list):
        return all(isinstance(each, int if name == "layers_to_transform" else str) for each in value)
    return not isinstance(value, float) or math.isfinite(value)


def check_files(folder: Path) -> None:
    """Make sure that a folder with whole weights has all files of an adapter which can be read, or none.

    Raises:
        UnsupportedModelError: it has some only, so it is unclear whether the weights contain the adapter.
    """
    files = [name for name in _FILES if is_listed(folder / name)]
    if files and not is_adapter(folder):
        pickled = ", which can run code when it is loaded," if _FILES[2] in files else ""
        raise UnsupportedModelError(
            f"{folder} holds whole weights and {' and '.join(files)}{pickled} but not both {_FILES[0]} and "
            f"{_FILES[1]}, so it is unclear whether the adapter is merged into the weights: {_IF_MERGED}; if it is "
            "not, store the adapter with peft's save_pretrained() in a folder of its own, give that as adapter, and "
            f"remove {' and '.join(files)} here"
        )


def check_merged(folder: Path, base: Path | None) -> None:
    """Make sure that the weights in a folder already contain the adapter in the same folder.

    Args:
        folder: with weights and an adapter.
        base: folder of the model on which the adapter was trained; None if it is not on this machine.

    Raises:
        UnsupportedModelError: they do not, or this cannot be determined.
    """
    if base is None:
        raise UnsupportedModelError(
            f"{folder} holds whole weights and an adapter, and its base is not here for a comparison: {_IF_MERGED}; "
            f"{_IF_NOT_MERGED}"
        )
    found = compare(folder, folder, base)
    if found.is_unmerged:
        raise UnsupportedModelError(
            f"{folder} holds the weights of its base, {base}, and an adapter that is not merged into them ({found}): "
            f"give model={str(base)!r} and adapter={str(folder)!r}"
        )
    if not found.is_merged:
        raise UnsupportedModelError(
            f"{folder} holds whole weights and an adapter, and it is unclear whether the adapter is merged into them; "
            f"compared with its base {base}, {found}: {_IF_MERGED}; {_IF_NOT_MERGED}"
        )


def check_not_merged(folder: Path, adapter: Path, base: Path | None) -> None:
    """Make sure that weights do not yet contain the adapter that is given for them.

    Args:
        folder: with weights.
        adapter: folder of the adapter.
        base: folder of the model on which the adapter was trained; None if it is not on this machine. Then only an
            adapter in `folder` is refused.

    Raises:
        UnsupportedModelError: they contain it, or the folder has an adapter and this cannot be determined.
    """
    if base is not None and base.samefile(folder):
        return
    found = None if base is None else compare(folder, adapter, base)
    if found is not None and (found.merged or found.unknown):
        part = "already contain" if found.is_merged else "may already contain a part of"
        raise UnsupportedModelError(
            f"the weights in {folder} {part} adapter={str(adapter)!r}, which would be applied twice; compared with its "
            f"base {base}, {found}: leave adapter out (or give adapter='none'), or give model={str(base)!r} with it"
        )
    if (found is None or found.other) and any(is_listed(folder / name) for name in _FILES):
        why = "is not here for a comparison" if found is None else f"is {base}; compared with it, {found}"
        raise UnsupportedModelError(
            f"{folder} holds an adapter besides whole weights, and it is unclear whether the weights contain it: the "
            f"base of adapter={str(adapter)!r} {why}: {_IF_MERGED}; if it is not, remove the adapter's files from "
            f"{folder}"
        )
