"""Whether weights already contain a LoRA adapter: each tensor that it changes is compared with the adapter's base.

All adapted tensors are compared, because a merge may have been interrupted or limited to some layers or kinds of
modules. A few rows of each suffice, because a merge changes all rows of a matrix.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .json_files import read_json
from .weights import Headers, read_headers, read_rows

# Rows of a tensor that are compared, spread over its height.
_ROWS = 4
# Relative error of a cast to bfloat16, twice its bound: people cast weights before and after a merge, and the dtype of
# a file does not tell (bfloat16 weights are stored as float32 too).
_CAST = 2.0**-8
# Largest absolute error of a cast to float16, whose smallest numbers are that far apart.
_SMALLEST = 2.0**-24
# Relative error of the terms of B @ A in a merge in half precision.
_PRODUCT = 2.0**-7
_MATRICES = {"lora_A.weight", "lora_B.weight"}
# peft has written DoRA's vector under both names.
_MAGNITUDES = {"lora_magnitude_vector", "lora_magnitude_vector.weight"}
# Of `init_lora_weights`: initialisations that take a product out of the base before the training.
_CHANGED_BASE = re.compile("pissa|olora|corda|loftq|lora_ga")
# Where the embeddings are the output matrix too, files have only one of the names.
_TIED = {"lm_head.weight": "model.embed_tokens.weight"}


@dataclass(frozen=True)
class Comparison:
    """Names of the tensors that an adapter changes, by what weights have in their place.

    Attributes:
        merged: the base's tensor with the adapter's change.
        unmerged: the base's tensor, up to a cast.
        undecided: what a cast does not tell from both.
        unchanged: the adapter changes nothing there.
        unknown: not the base's tensor, and the adapter's change of it has no known formula.
        other: something else, or nothing that can be compared, such as a quantised tensor.
    """

    merged: list[str] = field(default_factory=list)
    unmerged: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def is_merged(self) -> bool:
        """Whether the weights contain the adapter wherever this can be seen."""
        return bool(self.merged or not self.undecided) and not (self.unmerged or self.unknown or self.other)

    @property
    def is_unmerged(self) -> bool:
        """Whether the weights are the base's wherever this can be seen."""
        return bool(self.unmerged) and not (self.merged or self.unknown or self.other)

    def __str__(self) -> str:
        named = (
            (self.merged, "contain the adapter's change"),
            (self.unmerged, "equal the base's"),
            (self.undecided, "are too close to both"),
            (self.unknown, "are not the base's, and changed in a way that is not computed here"),
            (self.other, "are neither, or cannot be compared"),
        )
        total = sum(len(names) for names, _ in named) + len(self.unchanged)
        parts = [f"{len(names)} {what} (such as {names[0]})" for names, what in named if names]
        return f"of {total} tensors that the adapter changes, " + ", ".join(parts or ["it leaves all as they are"])


def plain_name(name: str) -> str:
    """The name of an adapter's tensor as peft saves it. Other code leaves the name of the adapter in it."""
    return name.replace(".default.", ".").removesuffix(".default")


def compare(weights: Path, adapter: Path, base: Path) -> Comparison:
    """Compare weights with an adapter's base, and with the base after a merge.

    Args:
        weights: folder of the weights.
        adapter: folder of the adapter.
        base: folder of the weights on which the adapter was trained.

    Raises:
        UnsupportedModelError: a file is damaged.
    """
    settings = read_json(adapter / "adapter_config.json")
    ours, theirs, changes = read_headers(weights), read_headers(base), read_headers(adapter, adapter=True)
    modules: dict[str, dict[str, str]] = defaultdict(dict)  # name of a base's tensor -> part -> name in the adapter
    found = Comparison()
    for name in sorted(changes):
        module, part = _split(name, theirs)
        modules[module][part] = name
    for module, parts in modules.items():
        state = _state(module, parts, settings, ours, theirs, changes)
        getattr(found, state).append(module)
    return found


def _split(name: str, base: Headers) -> tuple[str, str]:
    """(the base's tensor that an adapter's tensor changes, the rest of its name).

    peft writes `base_model.model.MODULE.PART`. A tensor without a module in the base is a module of its own.
    """
    words = plain_name(name).removeprefix("base_model.model.").split(".")
    for end in range(len(words) - 1, 0, -1):
        module = ".".join([*words[:end], "weight"])
        if module in base or _TIED.get(module) in base:
            return module, ".".join(words[end:])
    return name, ""


def _state(
    module: str, parts: Mapping[str, str], settings: Mapping[str, Any], ours: Headers, theirs: Headers, changes: Headers
) -> str:
    """Name of the attribute of a `Comparison` to which a tensor belongs."""
    (mine, rows), (original, _) = _chosen(ours, module), _chosen(theirs, module)
    if mine is None or original is None or mine.shape != original.shape:
        return "other"
    near = np.abs(mine - original)
    is_base = bool((near <= _CAST * np.abs(original) + _SMALLEST).all())
    expected, slack = _merged(module, parts, settings, original, rows, changes)
    if expected is None:
        return "unmerged" if is_base else "unknown"
    if np.array_equal(expected, original):
        return "unchanged" if is_base else "other"
    far = np.abs(mine - expected)
    bound = _CAST * (np.abs(original) + np.abs(expected)) + _PRODUCT * slack + _SMALLEST
    is_merged = bool((far <= bound).all())
    if is_base and is_merged:  # the change is about as small as the error of a cast
        to_base, to_merged = float(np.linalg.norm(near)), float(np.linalg.norm(far))
        is_base, is_merged = to_base < to_merged / 2, to_merged < to_base / 2
        if not is_base and not is_merged:
            return "undecided"
    return "merged" if is_merged else "unmerged" if is_base else "other"


def _chosen(headers: Headers, name: str) -> tuple[NDArray[np.float32] | None, Sequence[int]]:
    """(the compared rows of a matrix, their numbers)."""
    name = name if name in headers else _TIED.get(name, name)
    if name not in headers or len(shape := headers[name][1]["shape"]) not in (1, 2):
        return None, ()
    height = shape[0] if len(shape) == 2 else 1
    rows = sorted({round(each) for each in np.linspace(0, height - 1, _ROWS)})
    return read_rows(headers, name, rows), rows


def _merged(
    module: str,
    parts: Mapping[str, str],
    settings: Mapping[str, Any],
    original: NDArray[np.float32],
    rows: Sequence[int],
    changes: Headers,
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | float]:
    """(rows of the base's tensor after a merge, the magnitude of the terms that a merge in half precision rounds).

    None for a change other than LoRA's W + scale * B @ A, DoRA's, which also gives each row a length, or a tensor that
    replaces the base's.
    """
    if set(parts) == {"weight"}:
        replaced = read_rows(changes, parts["weight"], rows)
        return None if replaced is None or replaced.shape != original.shape else replaced, 0.0
    if _CHANGED_BASE.match(str(settings.get("init_lora_weights"))):
        return None, 0.0
    magnitudes = set(parts) & _MAGNITUDES
    if set(parts) - {"lora_B.bias", "bias"} != _MATRICES | magnitudes or settings.get("peft_type") != "LORA":
        return None, 0.0
    down, up = read_rows(changes, parts["lora_A.weight"], None), read_rows(changes, parts["lora_B.weight"], rows)
    if down is None or up is None or (len(up), down.shape[1], up.shape[1]) != (*original.shape, len(down)):
        return None, 0.0
    scale = _scale(module.removesuffix(".weight"), settings, len(down))
    merged, slack = original + scale * (up @ down), abs(scale) * (np.abs(up) @ np.abs(down))
    if magnitudes:
        lengths = read_rows(changes, parts[magnitudes.pop()], None)
        if lengths is None or lengths.size <= max(rows):
            return None, 0.0
        factor = lengths.reshape(-1)[list(rows), None] / np.linalg.norm(merged, axis=1, keepdims=True)
        merged, slack = merged * factor, (slack + np.abs(merged)) * np.abs(factor)
    return merged, slack


def _scale(module: str, settings: Mapping[str, Any], rank: int) -> float:
    """By what LoRA multiplies B @ A, as peft computes it."""
    patterns: Mapping[str, Any] = settings.get("alpha_pattern") or {}
    own = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    alpha = next(own, settings.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
