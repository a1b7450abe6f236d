"""Three sets of settings to start from, with the reasons; `qwen3-ranker tune` measures their cost on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checks import check_choice
from ..prompt import DEFAULT_MAX_LENGTH


@dataclass(frozen=True)
class Preset:
    """Settings of a reranker for one purpose.

    Attributes:
        name: a key of PRESETS.
        template, max_length, token_budget, dtype: as in `Reranker`.
        also_try: further dtypes that `tune` may choose if they are faster and hardly change a score.
        reasons: setting -> why this value.
    """

    name: str
    template: str
    max_length: int
    token_budget: int | None
    dtype: str
    also_try: tuple[str, ...]
    reasons: Mapping[str, str]

    def settings(self) -> dict[str, Any]:
        """Arguments of `Reranker`."""
        return {
            "template": self.template,
            "max_length": self.max_length,
            "token_budget": self.token_budget,
            "dtype": self.dtype,
        }


_OWN_DTYPE = "auto: the half precision that a GPU computes natively, float32 on a CPU"
_TRAINED = "standard: the prompt that the model was trained on"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "accurate",
            template="standard",
            max_length=DEFAULT_MAX_LENGTH,
            token_budget=None,
            dtype="auto",
            also_try=(),
            reasons={
                "template": _TRAINED,
                "max_length": f"{DEFAULT_MAX_LENGTH}: the longest prompt that Qwen recommends, so that nothing is cut "
                "that the model could read",
                "token_budget": "the engine's, which is made to fill the device",
                "dtype": _OWN_DTYPE,
            },
        ),
        Preset(
            "balanced",
            template="standard",
            max_length=2048,
            token_budget=None,
            dtype="auto",
            also_try=("bfloat16",),
            reasons={
                "template": _TRAINED,
                "max_length": "2048: chunks of up to some 1,900 tokens are read whole, and one stray long page cannot "
                "hold up a request",
                "token_budget": "the engine's, which is made to fill the device",
                "dtype": f"{_OWN_DTYPE}; bfloat16 on a CPU too, if tune finds it faster and the scores hardly move",
            },
        ),
        Preset(
            "fast",
            template="compact",
            max_length=256,
            token_budget=4096,
            dtype="auto",
            also_try=("bfloat16", "float16"),
            reasons={
                "template": "compact: a shorter prompt, not the one that the model was trained on. Measure what it "
                "does to your ranking: bench quality SOURCE --preset accurate --against preset=fast",
                "max_length": "256: titles and snippets whole, the beginning of anything longer",
                "token_budget": "4096: short passes, so that a small request waits less for a large one",
                "dtype": f"{_OWN_DTYPE}; another one if tune finds it faster and the scores hardly move",
            },
        ),
    )
}


def preset_named(name: str) -> Preset:
    """The preset.

    Raises:
        InvalidInputError: there is no preset of that name.
    """
    check_choice("preset", name, tuple(PRESETS))
    return PRESETS[name]
