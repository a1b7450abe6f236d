"""Settings of the server: YAML file < environment < flags, checked once, printed without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..config import BUNDLED_MODEL, ENGINE_ALIASES, VARIABLE_PREFIX, RerankerSettings, variables
from ..errors import InvalidInputError
from ..prompt import DEFAULT_MAX_LENGTH
from .legacy_settings import translate

KEYS_VARIABLE = f"{VARIABLE_PREFIX}API_KEYS"
_SECRET_OPTION = re.compile(r"key|token|secret|password|authorization|headers", re.IGNORECASE)

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class ServerSettings(BaseModel):
    """What a server is made of. The name of a field is its name in YAML; see `load_settings` for the other spellings.

    Attributes:
        model, engine, device, dtype, template, instruction, max_length, token_budget, engine_options: as in `Reranker`.
        host, port: where to listen.
        served_model_names: names that requests may give as `model`, the first of them in answers; by default `model`.
        api_key_file: a file with a key a line; every route but /health then asks for one of them.
        max_documents, max_request_tokens, max_body_bytes: of one request; over them it gets 413.
        max_queue_documents, max_queue_tokens: of all requests that are not answered yet; over them 503.
        max_queue_bytes: of all request bodies in memory; over it 503.
        max_connections: open at a time; more are closed without an answer.
        request_timeout: seconds from the end of a request's body to its answer; over it 504.
        header_timeout, body_timeout: seconds a client may take to send them.
        write_timeout: seconds a client may leave an answer unread.
        keep_alive_timeout: seconds an idle connection stays open.
        drain_timeout: seconds that requests get to end after SIGTERM.
        probe_interval: seconds without a forward pass after which /health wants to see one; 0 for never.
        log_level: debug, info, warning or error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), hide_input_in_errors=True)

    model: str = BUNDLED_MODEL
    engine: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    template: str = "standard"
    instruction: str | None = None
    max_length: Count = DEFAULT_MAX_LENGTH
    token_budget: Count | None = None
    engine_options: dict[str, object] = Field(default_factory=dict)

    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=0, le=65535)
    served_model_names: tuple[str, ...] = ()
    api_key_file: Path | None = None

    max_documents: Count = 2_000
    max_request_tokens: Count = 1_000_000
    max_body_bytes: Count = 16 * 1024 * 1024
    max_queue_documents: Count = 20_000
    max_queue_tokens: Count = 4_000_000
    max_queue_bytes: Count = 256 * 1024 * 1024
    max_connections: Count = 2_000

    request_timeout: Seconds = 120.0
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 30.0
    write_timeout: Seconds = 30.0
    keep_alive_timeout: Count = 30
    drain_timeout: Seconds = 60.0
    probe_interval: float = Field(default=15.0, ge=0, allow_inf_nan=False)
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")

    @field_validator("engine")
    @classmethod
    def _engine_by_its_name(cls, value: str) -> str:
        return ENGINE_ALIASES.get(value, value)

    @field_validator("served_model_names", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: object) -> object:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("engine_options", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model on the wire, the one of answers first."""
        return self.served_model_names or (self.model,)

    def reranker_settings(self) -> RerankerSettings:
        """The part that makes a `Reranker`.

        Raises:
            InvalidInputError: one of them is unusable.
        """
        return RerankerSettings(
            self.model,
            self.engine,
            self.device,
            self.dtype,
            self.template,
            self.instruction,
            self.max_length,
            self.token_budget,
            self.engine_options,
        )

    def dump(self) -> str:
        """All settings as YAML that can be read again, secrets hidden."""
        fields = self.model_dump(mode="json") | {"engine_options": hide_secrets(self.engine_options)}
        text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120)
        return text


@dataclass(frozen=True)
class Configuration:
    """Settings, the keys, and what is worth saying about how they came about.

    Attributes:
        settings: checked.
        api_keys: never shown.
        notes: sentences for the log.
    """

    settings: ServerSettings
    api_keys: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Configuration({self.settings!r}, api_keys={len(self.api_keys)} hidden)"

    def dump(self) -> str:
        """The effective configuration as YAML, the keys as their number."""
        keys = f"{len(self.api_keys)} (hidden)" if self.api_keys else "none: every route is open"
        return f"{self.settings.dump()}# API keys: {keys}\n"


def load_settings(config: Path | None, flags: Mapping[str, object]) -> Configuration:
    """Defaults < YAML file < environment < flags.

    Args:
        config: a YAML file with fields of `ServerSettings`, or with a `services.rerank` section as in the seed.
        flags: fields that were given on the command line.

    The environment variable of a field is QWEN3_RANKER_ and its name in capitals; QWEN3_RANKER_API_KEYS holds keys,
    separated by commas or line breaks.

    Raises:
        InvalidInputError: names the setting, where it came from and the remedy.
    """
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    notes: list[str] = []
    if config is not None:
        from_file, file_notes = translate(_read_yaml(config), str(config), frozenset(ServerSettings.model_fields))
        values |= from_file
        sources |= dict.fromkeys(from_file, str(config))
        notes += file_notes
    for name, value in variables().items():
        if name in ServerSettings.model_fields and value:
            values[name] = value
            sources[name] = f"{VARIABLE_PREFIX}{name.upper()}"
    for name, given in flags.items():
        values[name] = given
        sources[name] = f"--{name.replace('_', '-')}"
    if isinstance(values.get("engine_options"), Mapping) and isinstance(flags.get("engine_options"), Mapping):
        notes.append("--engine-option replaces all engine_options of the file and the environment")
    try:
        settings = ServerSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        where = f" (from {sources[name]})" if name in sources else ""
        raise InvalidInputError(f"{name}{where}", values.get(name), str(first["msg"])) from None
    except ValueError as error:  # engine_options that are not JSON
        raise InvalidInputError(
            "engine_options", values.get("engine_options"), f"needs a JSON object: {error}"
        ) from None
    settings.reranker_settings()
    return Configuration(settings, _api_keys(settings.api_key_file), tuple(notes))


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError("--config", str(path), f"{error.strerror}; give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError("--config", str(path), f"is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidInputError("--config", str(path), "needs names and values, such as `port: 8001`")
    return content


def _api_keys(file: Path | None) -> tuple[str, ...]:
    """Keys of the file and of the environment.

    Raises:
        InvalidInputError: a source of keys that holds none would leave the server open.
    """
    keys: list[str] = []
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError("api_key_file", str(file), f"cannot be read: {type(error).__name__}") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise InvalidInputError("api_key_file", str(file), "holds no key: write one a line, or leave it out")
        keys += found
    if (given := variables().get("api_keys")) is not None:
        found = [key for key in re.split(r"[,\s]+", given) if key]
        if not found:
            raise InvalidInputError(KEYS_VARIABLE, "", "is set and holds no key: write keys, or unset it")
        keys += found
    if any(not key.isascii() or not key.isprintable() for key in keys):
        raise InvalidInputError("api_keys", "(hidden)", "a key is sent in a header: use printable ASCII characters")
    return tuple(dict.fromkeys(keys))


def hide_secrets(options: Mapping[str, object]) -> dict[str, object]:
    """Options with the text of those hidden whose names sound like a secret."""
    hidden: dict[str, object] = {}
    for name, value in options.items():
        if isinstance(value, (str, list, dict)) and value and _SECRET_OPTION.search(name):
            hidden[name] = "(hidden)"
        else:
            hidden[name] = hide_secrets(value) if isinstance(value, dict) else value
    return hidden
