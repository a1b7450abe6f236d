"""The options of the packed engine: names, checks, and what is put in place of those that are left out.

Nothing here imports torch. docs/engines.md explains every option.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from ..config import check_text
from ..errors import InvalidInputError

#: How many lengths there may be between a length and its double.
SIZE_CLASSES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class PackedOptions:
    """Options as given; None leaves the choice to `resolved`.

    Attributes:
        compile: run compiled pieces between the matrix products, with fused weights, instead of transformers' layers.
        warm_up: compile every size class up to the token budget before the first request.
        size_classes: lengths between a length and its double that rows are padded to; more of them pad less and take
            longer to compile.
        cuda_graphs: record the passes of small size classes once, so that the host launches each with one call.
        compile_cache: folder that keeps compiled code between processes; None for torch's own, which lies in the
            folder for temporary files.

    Raises:
        InvalidInputError: names the option and its value.
    """

    compile: bool = False
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
        for name in ("compile", "warm_up", "cuda_graphs"):
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
        if not self.compile:
            for name in ("warm_up", "size_classes", "cuda_graphs", "compile_cache"):
                if (value := getattr(self, name)) is not None:
                    raise InvalidInputError(_argument(name), value, "says nothing without compile: set that to true")

    def resolved(self, device: str) -> PackedOptions:
        """The options with defaults in place of what was left out.

        Args:
            device: "cpu" or "cuda:N".

        Raises:
            InvalidInputError: CUDA graphs are asked for and the device is a CPU.
        """
        if not self.compile:
            return self
        on_gpu = device.partition(":")[0] == "cuda"
        if self.cuda_graphs and not on_gpu:
            raise InvalidInputError(_argument("cuda_graphs"), True, f"device {device!r} has none: leave it out")
        return replace(
            self,
            warm_up=True if self.warm_up is None else self.warm_up,
            cuda_graphs=on_gpu if self.cuda_graphs is None else self.cuda_graphs,
        )

    @property
    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of them: without those that are left out, so that `parse` takes it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _argument(name: str) -> str:
    return f"engine_options[{name!r}]"
