"""Where settings come from besides flags: a YAML file, environment variables, files of API keys."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ..config import VARIABLE_PREFIX, variables, variables_in_other_case
from ..errors import InvalidInputError

KEYS_VARIABLE = f"{VARIABLE_PREFIX}API_KEYS"

#: Variables that Kubernetes sets in every container next to a service named qwen3-ranker.
_SERVICE_LINK = re.compile(r"service_host|service_port(_\w+)?|port_\d+_(tcp|udp|sctp)(_(proto|port|addr))?")


class _StrictLoader(yaml.SafeLoader):
    """Refuses repeated keys; PyYAML alone would silently keep the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "while constructing a mapping", node.start_mark, f"found {key.value!r} twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, object]:
    """The content of a configuration file.

    Raises:
        InvalidInputError: it cannot be read, is not YAML, repeats a name, or does not consist of names and values.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)  # noqa: S506 - derived from SafeLoader
    except OSError as error:
        raise InvalidInputError("--config", str(path), f"{error.strerror}; give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError("--config", str(path), f"is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidInputError("--config", str(path), "needs names and values, such as `port: 8001`")
    return content


def read_environment(known: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Returns (settings of the environment that are not empty, sentences for the log).

    Args:
        known: names of settings.
    """
    given, notes = {}, []
    for name, value in variables().items():
        if name == "port" and value.startswith(("tcp://", "udp://")):
            notes.append(
                f"{VARIABLE_PREFIX}PORT={value} is ignored: Kubernetes sets it for a service named qwen3-ranker; "
                "enableServiceLinks: false prevents that"
            )
        elif name in known and value:
            given[name] = value
    return given, notes


def check_variables(known: Collection[str]) -> None:
    """Refuse environment variables with our prefix that nothing reads: a typing error must not leave a server open.

    Args:
        known: lower-case names without the prefix.

    Raises:
        InvalidInputError: names the variable and the most similar one that is read.
    """
    for name in variables_in_other_case():
        raise InvalidInputError(name, "(hidden)", f"nothing reads this variable: write it in capitals, {name.upper()}")
    for name in variables():
        if name in known or _SERVICE_LINK.fullmatch(name):
            continue
        similar = get_close_matches(name, known, n=1, cutoff=0.6)
        remedy = f"did you mean {VARIABLE_PREFIX}{similar[0].upper()}?" if similar else "docs/server.md lists them"
        raise InvalidInputError(
            f"{VARIABLE_PREFIX}{name.upper()}", "(hidden)", f"nothing reads this variable: unset it, or {remedy}"
        )


def read_api_keys(file: Path | None) -> tuple[str, ...]:
    """Keys of the file and of the environment.

    Raises:
        InvalidInputError: the file cannot be read, or a key is not printable ASCII. Also if the file or the variable
            is given without any key, which would leave the server open.
    """
    keys: list[str] = []
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError("api_key_file", str(file), f"cannot be read: {type(error).__name__}") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise InvalidInputError("api_key_file", str(file), "holds no key: write one on each line, or leave it out")
        keys += found
    if (given := variables().get("api_keys")) is not None:
        found = [key for key in re.split(r"[,\s]+", given) if key]
        if not found:
            raise InvalidInputError(KEYS_VARIABLE, "", "is set and holds no key: write keys, or unset it")
        keys += found
    if any(not key.isascii() or not key.isprintable() for key in keys):
        raise InvalidInputError("api_keys", "(hidden)", "a key is sent in a header: use printable ASCII characters")
    return tuple(dict.fromkeys(keys))


def separated(value: object) -> object:
    """A list that may be written as text separated by commas, as in an environment variable."""
    return [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value


def mentioned_variables(options: Mapping[str, object]) -> set[str]:
    """Variables with our prefix that options name, such as `api_key_env`; lower-case, without the prefix."""
    texts = [value for value in options.values() if isinstance(value, str)]
    return {text.removeprefix(VARIABLE_PREFIX).lower() for text in texts if text.startswith(VARIABLE_PREFIX)}
