"""Options of engines: each engine declares its own as a frozen dataclass whose fields carry their checks.

@dataclass(frozen=True)
class MyOptions(EngineOptions):
    threads: int | None = field(default=None, metadata=checked(check_positive))

MyOptions.parse("mine", settings.engine_options)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..config import RerankerSettings
from ..errors import InvalidInputError

if TYPE_CHECKING:
    from ..config import EngineConfig

#: Gets `engine_options['name']` and a value that is not None; raises InvalidInputError if the value is unusable.
Check = Callable[[str, Any], object]

_SETTINGS = {each.name: each.name for each in fields(RerankerSettings)} | {"model_name": "model"}


@dataclass(frozen=True)
class EngineOptions:
    """Base of an engine's options. Making an instance checks its values.

    None leaves the choice to the engine if it is the field's default; otherwise it is refused.

    Raises:
        InvalidInputError: names the option and its value.
    """

    #: Added to the remedy for an unknown name.
    unknown_hint: ClassVar[str] = ""
    #: Whether `parse` takes None for an option whose default is None.
    parses_none: ClassVar[bool] = True

    @classmethod
    def parse(cls, engine: str, options: Mapping[str, object]) -> Self:
        """The options of the engine of this name, from its `engine_options`.

        Raises:
            InvalidInputError: the engine has no such option, lacks one that it needs, or a value is unusable.
        """
        known = {each.name: each for each in fields(cls) if engine not in each.metadata["not_of"]}
        for name, value in options.items():
            if name not in known:
                raise InvalidInputError(argument(name), value, cls._remedy_for_unknown(engine, name, known))
            if value is None and not cls.parses_none:
                raise InvalidInputError(argument(name), value, _LEAVE_OUT)
        for name, each in known.items():
            if each.default is MISSING and each.default_factory is MISSING and name not in options:
                raise InvalidInputError(argument(name), None, each.metadata["if_missing"])
        given: dict[str, Any] = dict(options)
        return cls(**given)

    @classmethod
    def _remedy_for_unknown(cls, engine: str, name: str, known: Mapping[str, Field[Any]]) -> str:
        if name in _SETTINGS:
            return f"is a setting, not an option of an engine: set Reranker({_SETTINGS[name]}=...)"
        return f"engine {engine!r} has no such option: use one of {', '.join(known)}{cls.unknown_hint}"

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """The options from an engine's configuration, which holds their `as_dict`."""
        given: dict[str, Any] = config.engine_options
        return cls(**given)

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None:
                each.metadata["check"](argument(each.name), value)
            elif each.default is not None:
                raise InvalidInputError(argument(each.name), value, each.metadata["if_missing"])

    @property
    def as_dict(self) -> dict[str, Any]:
        """Name -> value, for all options that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


_LEAVE_OUT = "leave it out for the default"


def argument(name: str) -> str:
    """How errors name an option."""
    return f"engine_options[{name!r}]"


def checked(check: Check, *, not_of: tuple[str, ...] = (), if_missing: str = _LEAVE_OUT) -> dict[str, Any]:
    """Metadata of a field of `EngineOptions`.

    Args:
        check: called with each value that is not None.
        not_of: names of engines that share the dataclass and lack this option.
        if_missing: remedy for an option without a default that is left out or None.
    """
    return {"check": check, "not_of": not_of, "if_missing": if_missing}


def one_of(*choices: str | int) -> Check:
    """A check that the value is one of these, and of their type."""

    def check(name: str, value: object) -> None:
        # `in` alone would take True and 1.0 for 1.
        if type(value) is not type(choices[0]) or value not in choices:
            raise InvalidInputError(name, value, f"use one of {', '.join(map(str, choices))}")

    return check


def check_switch(name: str, value: object) -> None:
    """Raise InvalidInputError unless the value is true or false."""
    if not isinstance(value, bool):
        raise InvalidInputError(name, value, "use true or false")


def check_share(name: str, value: object) -> None:
    """Raise InvalidInputError unless the value is a number greater than 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 1:
        raise InvalidInputError(name, value, "use a share greater than 0 and at most 1")


def check_seconds(name: str, value: object) -> None:
    """Raise InvalidInputError unless the value is a finite number of seconds greater than 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < float("inf"):
        raise InvalidInputError(name, value, "use a positive number of seconds")
