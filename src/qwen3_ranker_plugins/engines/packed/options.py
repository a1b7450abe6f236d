"""The options of the packed engine: names, checks, and what is put in place of those that are left out.

Nothing here imports torch. docs/engines.md explains every option.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from ...config import check_text
from ...errors import InvalidInputError

#: How many lengths there may be between a length and its double.
SIZE_CLASSES = (1, 2, 4, 8, 16, 32, 64)

# Tensor cores that know bfloat16 and load asynchronously (Ampere), and float8 (Ada).
_KERNELS_CAPABILITY, _FLOAT8_CAPABILITY = (8, 0), (8, 9)

_OF_COMPILE = ("float8", "warm_up", "size_classes", "cuda_graphs", "compile_cache")


@dataclass(frozen=True)
class PackedOptions:
    """Options as given; None leaves the choice to `resolved`.

    Attributes:
        compile: run compiled pieces between the matrix products, with fused weights, instead of transformers' layers.
        float8: compute most products in float8.
        warm_up: compile, and prepare every size class up to the token budget, before the first request.
        size_classes: lengths between a length and its double that rows are padded to; more of them pad less and take
            longer to prepare.
        cuda_graphs: record the passes of small size classes once, so that the host launches each with one call.
        compile_cache: folder that keeps compiled code between processes; None for the compilers' own.

    Raises:
        InvalidInputError: names the option and its value.
    """

    compile: bool | None = None
    float8: bool | None = None
    warm_up: bool | None = None
    size_classes: int | None = None
    cuda_graphs: bool | None = None
    compile_cache: str | None = None

    @classmethod
    def parse(cls, engine: str, options: Mapping[str, object]) -> Self:
        """From `engine_options`.

        Raises:
            InvalidInputError: there is no such option, its value is unusable, or it says nothing without `compile`.
        """
        names = [each.name for each in fields(cls)]
        for name, value in options.items():
            if name not in names:
                raise InvalidInputError(
                    _argument(name), value, f"engine {engine!r} has no such option: use one of {', '.join(names)}"
                )
            if value is None:
                raise InvalidInputError(_argument(name), value, "leave it out for the default")
        given: dict[str, Any] = dict(options)
        return cls(**given)

    def __post_init__(self) -> None:
        for name in ("compile", "float8", "warm_up", "cuda_graphs"):
            value = getattr(self, name)
            if not isinstance(value, bool | None):
                raise InvalidInputError(_argument(name), value, "use true or false")
        if self.size_classes is not None and (
            isinstance(self.size_classes, bool) or self.size_classes not in SIZE_CLASSES
        ):
            raise InvalidInputError(
                _argument("size_classes"), self.size_classes, f"use one of {', '.join(map(str, SIZE_CLASSES))}"
            )
        if self.compile_cache is not None:
            check_text(_argument("compile_cache"), self.compile_cache)
        if self.compile is False:
            self._refuse_without_compile("says nothing without compile: set that to true")

    def _refuse_without_compile(self, why: str) -> None:
        for name in _OF_COMPILE:
            if (value := getattr(self, name)) is not None:
                raise InvalidInputError(_argument(name), value, why)

    def resolved(self, device: str, dtype: str, capability: tuple[int, int] | None = None) -> PackedOptions:
        """The options with defaults in place of what was left out.

        Args:
            device: "cpu" or "cuda:N".
            dtype: what the model is computed in.
            capability: compute capability of the GPU, such as (9, 0); None for a CPU.

        Raises:
            InvalidInputError: what is asked for cannot be had on the device or with the dtype.
        """
        on_gpu = device.partition(":")[0] == "cuda"
        compile = self.compile  # noqa: A001 - the option's name
        if compile is None:
            compile = kernels_run(dtype, capability) and can_compile()  # noqa: A001
        if not compile:
            self._refuse_without_compile(
                f"is for compiled pieces, which are the default in half precision on a GPU (here: {dtype} on {device}) "
                "of compute capability 8.0 or more, where Triton, a C compiler and Python's headers are installed: set "
                "compile to true, or leave this out"
            )
            return PackedOptions(compile=False)
        if self.cuda_graphs and not on_gpu:
            raise InvalidInputError(_argument("cuda_graphs"), True, f"device {device!r} has none: leave it out")
        if self.float8 and not (dtype == "bfloat16" and capability is not None and capability >= _FLOAT8_CAPABILITY):
            raise InvalidInputError(
                _argument("float8"),
                True,
                "needs dtype='bfloat16' and a GPU of compute capability 8.9 or more, Ada or Hopper "
                f"(here: {dtype} on {device}): leave it out",
            )
        return replace(
            self,
            compile=True,
            float8=bool(self.float8),
            warm_up=True if self.warm_up is None else self.warm_up,
            # Kernels of our own run any length, so that there a class costs its graph only.
            size_classes=self.size_classes or (64 if kernels_run(dtype, capability) else 8),
            cuda_graphs=on_gpu if self.cuda_graphs is None else self.cuda_graphs,
        )

    @property
    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of them: without those that are left out, so that `parse` takes it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def kernels_run(dtype: str, capability: tuple[int, int] | None) -> bool:
    """Whether our own kernels compute in this dtype on a GPU of this compute capability."""
    return dtype != "float32" and capability is not None and capability >= _KERNELS_CAPABILITY


def can_compile() -> bool:
    """Whether Triton is installed, and what it makes the code with that launches a kernel."""
    compilers = (os.environ.get("CC"), "gcc", "clang", "cc")
    return (
        find_spec("triton") is not None
        and any(name and shutil.which(name) for name in compilers)
        and Path(sysconfig.get_paths()["include"], "Python.h").exists()
    )


def _argument(name: str) -> str:
    return f"engine_options[{name!r}]"
