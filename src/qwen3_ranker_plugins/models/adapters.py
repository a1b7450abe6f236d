"""LoRA adapters: the base that an adapter was trained on, and whether weights already contain the adapter."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedModelError
from ..model_files import is_listed
from .json_files import read_json, shortened
from .weights import read_headers, read_rows

#: Kinds of adapters that peft merges into weights.
_MERGED = ("LORA", "IA3", "LOHA", "LOKR", "ADALORA", "OFT", "BOFT", "HRA", "VERA")
_MODULES = ((str, list), "a list of modules' names, or a pattern")
#: Setting of adapter_config.json -> its types, and what it is.
_SETTINGS: dict[str, tuple[tuple[type, ...], str]] = {
    "r": ((int,), "a positive whole number"),
    "lora_alpha": ((int, float), "a number"),
    "lora_dropout": ((int, float), "a number"),
    "target_modules": _MODULES,
    "exclude_modules": _MODULES,
    "modules_to_save": ((list,), "a list of modules' names"),
    "layers_to_transform": ((int, list), "a list of layers' numbers"),
    "rank_pattern": ((dict,), "an object with modules and ranks"),
    "alpha_pattern": ((dict,), "an object with modules and numbers"),
    "bias": ((str,), "'none', 'all' or 'lora_only'"),
    "use_rslora": ((bool,), "true or false"),
    "use_dora": ((bool,), "true or false"),
    "lora_bias": ((bool,), "true or false"),
    "fan_in_fan_out": ((bool,), "true or false"),
}
#: Largest relative error of rounding to a dtype.
_ROUNDING = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
#: Rows of a tensor that are compared with those of the base.
_ROWS = range(4)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, alone or together with whole weights."""
    return all(is_listed(folder / name) for name in ("adapter_config.json", "adapter_model.safetensors"))


def has_whole_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights; some trainers write config.json without them."""
    return any(is_listed(folder / name) for name in ("model.safetensors", "model.safetensors.index.json"))


def base_of(adapter: Path) -> str:
    """The folder or hub name of the model that an adapter was trained on.

    Raises:
        UnsupportedModelError: the adapter does not name its base.
    """
    said = read_json(adapter / "adapter_config.json")
    base = said.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UnsupportedModelError(
            f"{adapter} is an adapter that does not name its base (adapter_config.json says "
            f"base_model_name_or_path={shortened(base)}): give the base as model and this folder as adapter"
        )
    return base


def check_kind(adapter: Path) -> None:
    """Make sure that an adapter changes weights, into which it can be merged.

    Raises:
        UnsupportedModelError: it changes prompts or the layers' structure.
    """
    kind = read_json(adapter / "adapter_config.json").get("peft_type")
    if kind not in _MERGED:
        raise UnsupportedModelError(
            f"{adapter} is an adapter with peft_type={kind!r}, which cannot be merged into weights (such as "
            f"{', '.join(_MERGED[:3])}): use peft with the model's own code"
        )


def check_settings(adapter: Path) -> None:
    """Make sure that the settings of an adapter which decide its arithmetic have the types that peft expects.

    Raises:
        UnsupportedModelError: one has not; the message names it and its value.
    """
    path = adapter / "adapter_config.json"
    said = read_json(path)
    for name, (kinds, what) in _SETTINGS.items():
        value = said.get(name)
        if value is not None and not (type(value) in kinds and _holds_texts(name, value)):
            raise UnsupportedModelError(
                f"{path} says {name}={shortened(value)}, which is not {what}: write the value of its training, or "
                "download the file again"
            )
    if type(said.get("r", 8)) is int and said.get("r", 8) < 1:
        raise UnsupportedModelError(f"{path} says r={said['r']}, which is no rank: write the value of its training")


def _holds_texts(name: str, value: object) -> bool:
    """Whether a list of modules holds their names; layers have numbers."""
    return not isinstance(value, list) or name == "layers_to_transform" or all(isinstance(each, str) for each in value)


def check_merged(folder: Path, base: Path | None) -> None:
    """Make sure that the weights in a folder already contain the adapter in the same folder.

    Raises:
        UnsupportedModelError: they do not, or this cannot be determined.
    """
    remedy = (
        "if the adapter is merged into the weights, delete adapter_config.json or give adapter='none'; if it is not, "
        "give this folder as model and a folder with the adapter alone as adapter"
    )
    if base is None:
        raise UnsupportedModelError(
            f"{folder} holds whole weights and an adapter, and its base is not here for a comparison: {remedy}"
        )
    for name in _adapted(folder):
        rows, original = read_rows(folder, name, _ROWS), read_rows(base, name, _ROWS)
        if rows is not None and original is not None and rows.shape == original.shape:
            if np.array_equal(rows, original):
                raise UnsupportedModelError(
                    f"{folder} holds the weights of its base, {base}, and an adapter that is not merged into them: "
                    f"give model={str(base)!r} and a folder with the adapter alone as adapter"
                )
            if not _is_product_with(folder, name, rows, rows - original):
                raise UnsupportedModelError(
                    f"{folder} holds weights that differ from its base {base} by more than the adapter in the same "
                    f"folder, so that it is unclear whether the adapter is merged into them: {remedy}"
                )
            return
    raise UnsupportedModelError(
        f"{folder} holds whole weights and an adapter, and no tensor could be compared with its base {base}: {remedy}"
    )


def _adapted(folder: Path) -> list[str]:
    """Names of the tensors that the adapter changes."""
    names = [name for name, (path, _) in read_headers(folder).items() if path.name.startswith("adapter_")]
    found = (re.fullmatch(r"base_model\.model\.(.*)\.lora_A(?:\.default)?\.weight", name) for name in sorted(names))
    return [f"{match[1]}.weight" for match in found if match]


def _is_product_with(folder: Path, name: str, rows: NDArray[np.float32], difference: NDArray[np.float32]) -> bool:
    """Whether a difference of rows is a product with the adapter's matrix A, up to rounding.

    A LoRA adapter adds scale * B @ A with any scale. DoRA also scales the rows, so this does not hold for it.
    """
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    stored = read_headers(folder)
    if any(each.startswith(f"{prefix}.lora_magnitude_vector") for each in stored):
        return True
    names = [each for each in (f"{prefix}.lora_A.weight", f"{prefix}.lora_A.default.weight") if each in stored]
    down = read_rows(folder, names[0], None)
    if down is None:
        return True
    coefficients, *_ = np.linalg.lstsq(down.T, difference.T, rcond=None)
    rest = difference - coefficients.T @ down
    rounding = _ROUNDING[str(stored[name][1]["dtype"])] * np.linalg.norm(rows)
    return float(np.linalg.norm(rest)) < 0.5 * float(np.linalg.norm(difference)) + float(rounding)
