"""The options of the packed engine: names, checks, and the defaults for a device.

Nothing here imports torch. docs/engines.md explains every option.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from ...checks import check_text
from ...errors import InvalidInputError
from ..options import EngineOptions, argument, check_switch, checked, one_of

#: Values of `size_classes`.
SIZE_CLASSES = (1, 2, 4, 8, 16, 32, 64)

# Triton compiles for GPUs from Turing on; Ada and later have tensor cores for float8.
_KERNELS_CAPABILITY, _FLOAT8_CAPABILITY = (7, 5), (8, 9)

# Options that affect our decoder only, not the model's own layers.
_OF_COMPILE = ("float8", "warm_up", "size_classes", "cuda_graphs", "compile_cache")


@dataclass(frozen=True)
class PackedOptions(EngineOptions):
    """Options as given; None leaves the choice to `resolved`.

    Attributes:
        compile: run our own decoder, whose kernels are compiled on this machine, instead of the model's own layers.
        float8: compute most products in float8.
        warm_up: compile the kernels and record the CUDA graphs before the first request.
        size_classes: number of lengths between a length and its double to which passes are padded. More lengths mean
            less padding and a longer preparation.
        cuda_graphs: record the passes of small size classes once, so that the host launches each with one call.
        compile_cache: folder that keeps compiled code between processes; None for Triton's own.

    Raises:
        InvalidInputError: names the option and its value.
    """

    parses_none: ClassVar[bool] = False

    compile: bool | None = field(default=None, metadata=checked(check_switch))
    float8: bool | None = field(default=None, metadata=checked(check_switch))
    warm_up: bool | None = field(default=None, metadata=checked(check_switch))
    size_classes: int | None = field(default=None, metadata=checked(one_of(*SIZE_CLASSES)))
    cuda_graphs: bool | None = field(default=None, metadata=checked(check_switch))
    compile_cache: str | None = field(default=None, metadata=checked(check_text))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile is False:
            self._refuse_without_compile("has no effect unless compile is true: set that to true, or leave this out")

    def _refuse_without_compile(self, why: str) -> None:
        for name in _OF_COMPILE:
            if (value := getattr(self, name)) is not None:
                raise InvalidInputError(argument(name), value, why)

    def resolved(
        self, device: str, dtype: str, capability: tuple[int, int] | None = None, config: Any = None
    ) -> PackedOptions:
        """The options, with defaults for those that were left out.

        Args:
            device: as `resolve_device` returns it.
            dtype: what the model is computed in.
            capability: compute capability of an NVIDIA GPU, such as (9, 0); None for other devices.
            config: the model's configuration, as `read_config` returns it; not read if `capability` is None.

        Raises:
            InvalidInputError: an option asks for something that the device, the dtype or the model does not allow.
        """
        why_not = obstacle(device, dtype, capability, config)
        if self.compile and why_not:
            raise InvalidInputError(
                argument("compile"), True, f"{why_not}: leave it out, and the model's own layers run"
            )
        if self.compile is False or why_not:
            self._refuse_without_compile(
                f"has no effect on the model's own layers, which run because {why_not}: leave it out"
            )
            return PackedOptions(compile=False)
        if self.float8 and not (dtype == "bfloat16" and capability is not None and capability >= _FLOAT8_CAPABILITY):
            raise InvalidInputError(
                argument("float8"),
                True,
                "needs dtype='bfloat16' and a GPU of compute capability 8.9 or more, Ada or Hopper "
                f"(here: {dtype} on {device}): leave it out",
            )
        return replace(
            self,
            compile=True,
            float8=bool(self.float8),
            warm_up=True if self.warm_up is None else self.warm_up,
            # The kernels run any length, so a size class costs no more than its buffers and its graph.
            size_classes=self.size_classes or SIZE_CLASSES[-1],
            cuda_graphs=True if self.cuda_graphs is None else self.cuda_graphs,
        )


def obstacle(device: str, dtype: str, capability: tuple[int, int] | None, config: Any) -> str | None:
    """Why our own decoder cannot run; None if it can."""
    if capability is None:
        return f"our decoder needs an NVIDIA GPU (here: {device})"
    if dtype == "float32":
        return "our decoder computes in half precision (here: float32)"
    if capability < _KERNELS_CAPABILITY:
        return f"our decoder needs compute capability 7.5 or more (here: {capability[0]}.{capability[1]})"
    if not can_compile():
        return "our decoder needs Triton, a C compiler and Python's headers, which are not all installed"
    return _obstacle_of_model(config)


def _obstacle_of_model(config: Any) -> str | None:
    if getattr(config, "model_type", "qwen3") not in ("qwen3", "qwen3_vl_text"):
        return f"our decoder runs Qwen3 only (here: {config.model_type})"
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    # Dimensions of the kernels' tiles are powers of two.
    if heads // kv_heads not in (1, 2, 4, 8) or head_dim not in (32, 64, 128):
        return f"our decoder has no kernels for {heads} heads, {kv_heads} kv heads and head_dim={head_dim}"
    if config.hidden_act != "silu" or config.attention_bias:
        return (
            f"our decoder supports no biases, and SiLU only (here: hidden_act={config.hidden_act!r}, "
            f"attention_bias={config.attention_bias})"
        )
    return None


def can_compile() -> bool:
    """Whether Triton is installed, and what it needs to build the code that launches a kernel."""
    compilers = (os.environ.get("CC"), "gcc", "clang", "cc")
    return (
        find_spec("triton") is not None
        and any(name and shutil.which(name) for name in compilers)
        and Path(sysconfig.get_paths()["include"], "Python.h").exists()
    )
