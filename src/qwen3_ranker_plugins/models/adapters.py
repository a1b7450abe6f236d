"""LoRA adapters: the base that an adapter was trained on, and whether weights already contain the adapter."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import UnsupportedModelError
from .spec_reader import read_json
from .weights import read_headers, read_rows

#: Rows of a tensor that are compared with those of the base.
_ROWS = range(4)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, alone or together with whole weights."""
    return (folder / "adapter_config.json").is_file() and (folder / "adapter_model.safetensors").exists()


def base_of(adapter: Path) -> str:
    """The folder or hub name of the model that an adapter was trained on.

    Raises:
        UnsupportedModelError: the adapter does not name its base, or is not a LoRA adapter.
    """
    said = read_json(adapter / "adapter_config.json")
    if said.get("peft_type") != "LORA":
        raise UnsupportedModelError(
            f"{adapter} is an adapter with peft_type={said.get('peft_type')!r}, and only LoRA adapters can be merged "
            "here: merge this one with peft, and give the merged folder as model"
        )
    base = said.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UnsupportedModelError(
            f"{adapter} is an adapter that does not name its base (base_model_name_or_path): give the base as model "
            "and this folder as adapter"
        )
    return base


def check_merged(folder: Path, base: Path | None) -> None:
    """Make sure that the weights in a folder already contain the adapter in the same folder.

    Raises:
        UnsupportedModelError: they do not, or it cannot be found out.
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
            return
    raise UnsupportedModelError(
        f"{folder} holds whole weights and an adapter, and no tensor could be compared with its base {base}: {remedy}"
    )


def _adapted(folder: Path) -> list[str]:
    """Names of the tensors that the adapter changes."""
    names = [name for name, (path, _) in read_headers(folder).items() if path.name.startswith("adapter_")]
    found = (re.fullmatch(r"base_model\.model\.(.*)\.lora_A(?:\.default)?\.weight", name) for name in sorted(names))
    return [f"{match[1]}.weight" for match in found if match]
