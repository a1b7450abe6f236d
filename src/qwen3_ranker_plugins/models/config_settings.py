"""Checks the settings of config.json that the arithmetic depends on, before a library computes with them."""

from __future__ import annotations

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
_NUMBERS = ("rms_norm_eps", "rope_theta", "partial_rotary_factor", "attention_dropout")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "use_sliding_window", "is_causal")
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
#: Part of a tensor's name -> the settings that decide its shape.
_SHAPED_BY = {
    "embed_tokens": ("vocab_size", "hidden_size"),
    "lm_head": ("vocab_size", "hidden_size"),
    "q_proj": ("num_attention_heads", "head_dim", "hidden_size"),
    "o_proj": ("num_attention_heads", "head_dim", "hidden_size"),
    "k_proj": ("num_key_value_heads", "head_dim", "hidden_size"),
    "v_proj": ("num_key_value_heads", "head_dim", "hidden_size"),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
    "mlp": ("intermediate_size", "hidden_size"),
}


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
        value = config.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise _wrong(path, name, value, "a positive whole number")
    for name in _NUMBERS:
        if name in config and (value := config[name]) is not None:
            _check_number(path, name, value, positive=name != "attention_dropout")
    for name in _SWITCHES:
        if name in config and type(config[name]) is not bool:
            raise _wrong(path, name, config[name], "true or false")
    for name in ("rope_parameters", "rope_scaling"):
        _check_rotary(path, name, config.get(name))


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
    return UnsupportedModelError(
        f"{path} says {name}={shortened(value)}, which is not {what}: write the value that the checkpoint's base has, "
        "or download the file again"
    )


def max_positions(path: Path, config: Mapping[str, Any]) -> int:
    """Longest prompt in tokens for which the position embeddings are made, yarn's factor included.

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
    if isinstance(original, int) and isinstance(factor, (int, float)):
        positions = max(positions, int(original * factor))
    return positions


def settings_of_shape(tensor: str, config: Any) -> str:
    """The settings that decide a tensor's shape, with their values, such as "head_dim=32".

    Args:
        tensor: its name.
        config: an object with the settings as attributes.
    """
    names = next((names for part, names in _SHAPED_BY.items() if part in tensor), ("hidden_size",))
    return ", ".join(f"{name}={getattr(config, name, None)}" for name in names)
