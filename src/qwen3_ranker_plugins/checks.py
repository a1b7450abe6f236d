"""Checks of values that callers give, and the form in which settings store them. Errors name the argument."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from numbers import Integral, Real
from typing import Any

import numpy as np

from .errors import InvalidInputError
from .types import Pieces


def check_text(argument: str, value: object, *, may_be_empty: bool = False) -> None:
    """Raise InvalidInputError unless the value is a string that is not blank."""
    if not isinstance(value, str):
        raise InvalidInputError(argument, value, f"needs a string, not {type(value).__name__}")
    if not may_be_empty and not value.strip():
        raise InvalidInputError(argument, value, "needs a text that is not empty")


def check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise InvalidInputError unless the value is one of the choices."""
    if value not in choices:
        raise InvalidInputError(argument, value, f"use one of {', '.join(choices)}")


def check_positive(argument: str, value: object) -> None:
    """Raise InvalidInputError unless the value is None or a positive integer."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) <= 0:
        raise InvalidInputError(argument, value, "use a positive integer, or None")


def check_pieces(pieces: Pieces) -> None:
    """Raise InvalidInputError, which names the setting, unless all values are valid."""
    values: dict[str, tuple[object, int]] = {
        "piece_tokens": (pieces.tokens, 1),
        "piece_overlap": (pieces.overlap, 0),
        "max_pieces": (pieces.limit, 1),
    }
    for name, (value, least) in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
            raise InvalidInputError(name, value, f"use a whole number of at least {least}")
    if pieces.overlap > pieces.tokens // 2:
        raise InvalidInputError(
            "piece_overlap", pieces.overlap, f"use at most half of piece_tokens, which is {pieces.tokens}"
        )


def check_probability(argument: str, value: object) -> None:
    """Raise InvalidInputError unless the value is None or a number from 0 to 1."""
    if value is None:
        return
    # A NaN fails the comparison.
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise InvalidInputError(argument, value, "use a number from 0 to 1, or None")


def check_json(argument: str, value: object) -> str:
    """The canonical JSON of a mapping; InvalidInputError unless its keys are strings and JSON can hold its values."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidInputError(argument, value, "use a mapping of option names to values")
    try:
        return json.dumps(dict(value), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(argument, value, f"use values that JSON can write ({error})") from error


def plain(value: Any) -> Any:
    """Convert a path, an enum member, a numpy scalar or an instance of a builtin type's subclass to a builtin value.

    Settings hold builtin values, so that JSON, YAML and pickles of them can be read without the caller's libraries.
    Everything else is returned as it is.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    for kind, builtin in _PLAIN:
        if isinstance(value, kind):
            return builtin(value)
    return value


#: Tried in this order, because a bool is an Integral and every Integral is a Real.
_PLAIN: tuple[tuple[Any, Callable[[Any], object]], ...] = (
    ((bool, np.bool_), bool),
    (str, str.__str__),
    (Integral, int),
    (Real, float),
)


_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?:(?P<unit>[kKMGT])(?P<binary>i?)B)?")


def canonical_size(argument: str, value: object) -> int | None:
    """A size as settings store it: bytes, or None.

    Args:
        argument: name of the argument in error messages.
        value: None, a positive number of bytes, or text such as "256MB" (10^6 bytes each) or "1.5 GiB" (2^30).

    Raises:
        InvalidInputError: the value is none of these.
    """
    if value is None:
        return None
    found = 0
    if isinstance(value, int) and not isinstance(value, bool):
        found = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        base = 1024 if match["binary"] else 1000
        power = 0 if match["unit"] is None else 1 + "KMGT".index(match["unit"].upper())
        found = int(float(match["number"]) * base**power)
    if found <= 0:
        raise InvalidInputError(argument, value, "use a number of bytes, or text such as '256MB' or '2GiB'")
    return found


_NAMED_DEVICE = re.compile(r"cpu|cuda:\d+")


def canonical_devices(devices: object) -> str | None:
    """Devices as settings store them: None, "all", or names such as "cuda:0,cuda:1".

    Args:
        devices: None, a text in this form, or a sequence of names.

    Raises:
        InvalidInputError: the value is none of these.
    """
    if devices is None:
        return None
    names = devices.split(",") if isinstance(devices, str) else devices
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InvalidInputError("devices", devices, "use 'all', or names such as 'cuda:0,cuda:1' or ['cpu', 'cpu']")
    names = [str(name).strip() for name in names]
    if names == ["all"]:
        return "all"
    for name in names:
        if not _NAMED_DEVICE.fullmatch(name):
            raise InvalidInputError(
                "devices", devices, f"{name!r} is not a device: use 'cpu' or 'cuda:N', or 'all' alone"
            )
    if not names:
        raise InvalidInputError("devices", devices, "name at least one device, or leave it out")
    return ",".join(names)


# The last word of a name decides: `api_key` and `hf_token` hold a secret; `api_key_env`, `tokenizer`, `max_tokens` and
# `pad_token_id` do not.
_HOLDS_SECRET = re.compile(
    r"(?:^|[_-]|api|access)(?:key|token|secret|password|passwd|auth|authorization|bearer)$", re.IGNORECASE
)
_HOLDS_SECRETS = re.compile(r"(?:^|[_-]|api|access)(?:headers?|credentials?|keys|secrets|passwords)$", re.IGNORECASE)
# A URL with a user or a password, or with a query.
_CREDENTIALS = re.compile(r"^[a-z]+://(?:[^/?#]*@|[^?#]*[?#])", re.IGNORECASE)


def is_secret(name: str, value: object) -> bool:
    """Whether the value of an option must not be printed, logged or stored.

    A value is secret if the option's name says so and the value can be a secret (the list of words in
    `classifier_from_token` cannot), or if it is a URL with a user, a password or a query.
    """
    if value is None or isinstance(value, bool) or value in ("", [], {}):
        return False
    if isinstance(value, str) and _CREDENTIALS.search(value):
        return True
    return bool(_HOLDS_SECRETS.search(name) or (_HOLDS_SECRET.search(name) and not isinstance(value, list | tuple)))


def check_no_secrets(options: object) -> None:
    """Refuse secrets in options, which are printed, pickled and written into pipelines. The error does not show them.

    Raises:
        InvalidInputError: an option holds a secret.
    """
    for name, value in options.items() if isinstance(options, Mapping) else ():
        if is_secret(str(name), value):
            raise InvalidInputError(
                f"engine_options[{name!r}]",
                "(hidden)",
                "secrets are not written into options: put the key into an environment variable and its name into "
                "engine_options['api_key_env']",
            )
