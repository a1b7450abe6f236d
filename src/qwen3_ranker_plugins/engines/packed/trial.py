"""Tries our decoder on GPUs on which it was never run: compares its margins with those of the model's own layers.

`tools/compile_kernels.py` compiles its kernels for Turing, which proves that they fit such GPUs, not that they are
right.
"""

from __future__ import annotations

import numpy as np
import torch

from ...errors import EngineError
from ...prompt import EncodedRequest
from ..attention.layout import PackedPass, pack
from .model_layers import ModelLayers
from .size_classes import SizeClassRunner

# Measured on GPUs of compute capability 9.0; those of 8.x have the same instructions.
_MEASURED = (8, 0)
# Half precision alone changes margins by a tenth of this (docs/performance.md).
_TOLERANCE = 0.3


def needs_trial(capability: tuple[int, int] | None) -> bool:
    """Whether our decoder was never run on GPUs of a compute capability."""
    return capability is not None and capability < _MEASURED


def trial_pass() -> PackedPass:
    """Two requests, with prefixes and documents that are shorter and longer than the kernels' tiles."""

    def ids(length: int) -> list[int]:
        return [(7 * place + length) % 251 for place in range(length)]  # any vocabulary has them

    return pack(
        [
            EncodedRequest(ids(40), [ids(length) for length in (3, 20, 50)], [0] * 3),
            EncodedRequest(ids(20), [ids(9)], [0]),
        ]
    )


def expected_margins(layers: ModelLayers, device: torch.device) -> torch.Tensor:
    """Margins of the trial's pass by the model's own layers."""
    from ..attention.interface import make_layout

    packed = trial_pass()
    return layers.margins(packed, make_layout(packed, device)).cpu()


def check(runner: SizeClassRunner, expected: torch.Tensor) -> None:
    """Compare our decoder with `expected_margins`.

    Raises:
        EngineError: its margins differ by more than the tolerance.
    """
    found = runner.queue(trial_pass()).wait_for_margins()
    difference = float(np.abs(found - expected.numpy()).max())
    if not difference <= _TOLERANCE:  # also true for NaN
        raise EngineError(f"its margins differ by {difference:.3f} from those of the model's own layers")
