"""Checks the settings of config.json that the arithmetic depends on, before a library computes with them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError
from .json_files import shortened

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
#: Sizes that have a default if they are null.
_DERIVED, _DERIVED_BY_QWEN3 = ("num_key_value_heads", "head_dim"), ("num_key_value_heads",)
_NUMBERS = ("rms_norm_eps", "rope_theta", "partial_rotary_factor", "attention_dropout")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "use_sliding_window", "is_causal")
_PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")
#: Kinds of rotary embeddings that transformers computes -> the numbers that each needs.
_ROTARY = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": (),
    "proportional": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_ROTARY_NUMBERS = (
    "rope_theta",
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
)
_HIDDEN, _INNER = ("hidden_size",), ("intermediate_size",)
_HEADS, _KEY_HEADS = ("num_attention_heads", "head_dim"), ("num_key_value_heads", "head_dim")
#: Tensor of the decoder -> for each dimension, the settings whose product it is.
_SHAPES = {
    "embed_tokens.weight": (("vocab_size",), _HIDDEN),
    "norm.weight": (_HIDDEN,),
    "layers.0.self_attn.q_norm.weight": (("head_dim",),),
    "layers.0.self_attn.q_proj.weight": (_HEADS, _HIDDEN),
    "layers.0.self_attn.k_proj.weight": (_KEY_HEADS, _HIDDEN),
    "layers.0.mlp.gate_proj.weight": (_INNER, _HIDDEN),
}
#: Of transformers' Qwen3Config, for settings that are left out.
_DEFAULTS = {"num_hidden_layers": 32, "head_dim": 128, "num_key_value_heads": 32}
_NEVER_QUANTISED = ("norm.weight", "layers.0.self_attn.q_norm.weight")
_EMBEDDING = "embed_tokens.weight"
#: What precedes the names of a decoder's tensors.
_PREFIX = re.compile(r"(model\.)?(language_model\.)?")
#: In the header of a safetensors file.
_WHOLE_NUMBERS = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}
_CORRECT = "write the value that the checkpoint's base has, or download the checkpoint again"


def check_settings(path: Path, config: Mapping[str, Any]) -> None:
    """Make sure that settings have the type and the range that their arithmetic needs.

    Settings that are left out have defaults in transformers.

    Args:
        path: of config.json, for messages.
        config: of the text decoder.

    Raises:
        UnsupportedModelError: one has not; the message names the file, the setting and its value.
    """
    for name in _SIZES:
        value = config.get(name, 1)
        derived = _DERIVED_BY_QWEN3 if str(config.get("model_type")).startswith("qwen3") else _DERIVED
        if (type(value) is not int or value < 1) and not (value is None and name in derived):
            raise _wrong(path, name, value, "a positive whole number")
    for name in _NUMBERS:
        if name in config:
            _check_number(path, name, config[name], positive=name != "attention_dropout")
    for name in _SWITCHES:
        if name in config and type(config[name]) is not bool:
            raise _wrong(path, name, config[name], "true or false")
    if not isinstance(config.get("hidden_act", ""), str):
        raise _wrong(path, "hidden_act", config["hidden_act"], "the name of an activation, such as 'silu'")
    _check_problem_type(path, config)
    types = config.get("layer_types")
    if types is not None and not (isinstance(types, list) and all(isinstance(each, str) for each in types)):
        raise _wrong(path, "layer_types", types, "a list of the kinds of the layers, such as 'full_attention'")
    for name in ("rope_parameters", "rope_scaling"):
        _check_rotary(path, name, config.get(name))


def _check_problem_type(path: Path, config: Mapping[str, Any]) -> None:
    kind, labels = config.get("problem_type"), config.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else config.get("num_labels")
    if kind not in _PROBLEM_TYPES or (kind == "single_label_classification" and count == 1):
        raise UnsupportedModelError(
            f"{path} says problem_type={shortened(kind)}, which transformers refuses"
            f"{' for a single label' if kind in _PROBLEM_TYPES else ''}: remove it, because only the loss of a "
            "training depends on it"
        )


def check_own_code(path: Path, settings: Mapping[str, Any], classes: str) -> None:
    """Make sure that a folder brings no code of its own for the classes that a model is loaded with.

    Args:
        path: of the file, for messages.
        settings: of the file.
        classes: pattern with which the names of these classes begin in `auto_map`.

    Raises:
        UnsupportedModelError: it does. The code is never run, and the scores would not be those that it computes.
    """
    named = settings.get("auto_map") or {}
    found = (
        {name: each for name, each in named.items() if each is not None and re.match(classes, name)}
        if isinstance(named, Mapping)
        else named
    )
    if found:
        raise UnsupportedModelError(
            f"{path} says auto_map={shortened(found)}: the folder brings code of its own, which this package does not "
            "run; remove auto_map if the code computes what transformers' own class does, else use the library that "
            "the model's card names"
        )


def _check_rotary(path: Path, name: str, rotary: object) -> None:
    if rotary is None:
        return
    if not isinstance(rotary, Mapping):
        raise _wrong(path, name, rotary, "an object with a rope_type")
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROTARY:
        raise _wrong(path, f"{name}.rope_type", kind, f"one of {', '.join(_ROTARY)}")
    for each in _ROTARY_NUMBERS:
        if rotary.get(each) is not None:
            _check_number(path, f"{name}.{each}", rotary[each])
        elif each in _ROTARY[kind]:
            raise _wrong(path, f"{name}.{each}", None, f"the number that rope_type={kind!r} needs")


def _check_number(path: Path, name: str, value: object, *, positive: bool = True) -> None:
    if type(value) not in (int, float) or not (0 < value < float("inf") if positive else 0 <= value < 1):  # type: ignore[operator]
        raise _wrong(path, name, value, "a positive number" if positive else "a number from 0 to 1")


def _wrong(path: Path, name: str, value: object, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path} says {name}={shortened(value)}, which is not {what}: {_CORRECT}")


def max_positions(path: Path, config: Mapping[str, Any]) -> int:
    """Maximum length of a prompt in tokens that the position embeddings cover, with YaRN's factor applied.

    Args:
        path, config: as for `check_settings`, which must have passed.

    Raises:
        UnsupportedModelError: the configuration does not state it.
    """
    positions = config.get("max_position_embeddings")
    if type(positions) is not int or positions < 1:
        raise _wrong(path, "max_position_embeddings", positions, "a positive whole number")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    # Other kinds of rotary embeddings are scaled for max_position_embeddings, or not at all.
    is_yarn = rope.get("rope_type", rope.get("type")) == "yarn"
    if is_yarn and isinstance(original, int) and isinstance(factor, (int, float)):
        positions = max(positions, int(original * factor))
    return positions


def check_weights(
    path: Path, config: Mapping[str, Any], headers: Mapping[str, tuple[Path, dict[str, Any]]], *, plain: bool
) -> None:
    """Make sure that the weights have the shapes which the settings demand, before memory is taken for them.

    Args:
        path, config: as for `check_settings`, which must have passed.
        headers: of the weights, see `read_headers`.
        plain: whether no weight is quantised. Others are stored in shapes and dtypes of their own.

    Raises:
        UnsupportedModelError: a shape or the number of layers differs, and the message names the settings that decide
            it; or a weight that should be plain is stored as whole numbers.
    """
    for name, (file, entry) in headers.items():
        if plain and entry["dtype"] in _WHOLE_NUMBERS:
            raise UnsupportedModelError(
                f"{file} stores {name} as whole numbers ({entry['dtype']}), and {path.name} has no quantization_config "
                "that says what they stand for: download both files again"
            )
    shapes = {name: entry["shape"] for name, (_, entry) in headers.items()}
    prefixes = [name.removesuffix(_EMBEDDING) for name in shapes if name.endswith(_EMBEDDING)]
    if not prefixes:
        return
    prefix = next((each for each in prefixes if _PREFIX.fullmatch(each)), None)
    if prefix is None:
        file = headers[f"{prefixes[0]}{_EMBEDDING}"][0]
        raise UnsupportedModelError(
            f"{file}: config.json and the weights do not match, missing keys: model.{_EMBEDDING} is named "
            f"{prefixes[0]}{_EMBEDDING}, as saved from a wrapper such as torch.compile's ('_orig_mod.') or peft's "
            "('base_model.'): save the model inside the wrapper with save_pretrained, or rename the tensors"
        )
    found = [re.match(rf"{re.escape(prefix)}layers\.(\d+)\.", name) for name in shapes]
    layers = 1 + max((int(match[1]) for match in found if match), default=-1)
    defaults = _DEFAULTS if str(config.get("model_type")).startswith("qwen3") else {}
    said = config.get("num_hidden_layers", defaults.get("num_hidden_layers", layers))
    if layers and said > layers:
        by_default = "" if "num_hidden_layers" in config else " by default"
        raise UnsupportedModelError(
            f"{path} says num_hidden_layers={said}{by_default}, and the weights have {layers} layers: {_CORRECT}"
        )
    for name, settings in _SHAPES.items():
        stored = shapes.get(f"{prefix}{name}")
        values = {each: config.get(each, defaults.get(each)) for factors in settings for each in factors}
        if stored is None or None in values.values() or not (plain or name in _NEVER_QUANTISED):
            continue
        due = [math.prod(values[each] for each in factors) for factors in settings]
        if list(stored) != due:
            said = ", ".join(
                f"{each}={value}{'' if each in config else ' by default'}" for each, value in values.items()
            )
            raise UnsupportedModelError(
                f"{path} says {said}, so {prefix}{name} should have the shape {due}, and in the weights it has "
                f"{list(stored)}: {_CORRECT}"
            )
