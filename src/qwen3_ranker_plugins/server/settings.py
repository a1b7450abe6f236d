"""Settings of the server from a YAML file, the environment and flags: checked once, printed without secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..checks import canonical_devices, canonical_size, is_secret
from ..config import API_KEY_VARIABLE, BUNDLED_MODEL, ENGINE_ALIASES, VARIABLE_PREFIX, RerankerSettings, variables
from ..documents import DocumentFormat
from ..errors import InvalidInputError
from ..prompt import DEFAULT_MAX_LENGTH
from ..types import DEFAULT_PIECES
from .services_section import translate
from .sources import (
    KEYS_VARIABLE,
    check_variables,
    mentioned_variables,
    read_api_keys,
    read_environment,
    read_yaml,
    separated,
)

#: Replaces a secret in the printed configuration.
HIDDEN = "(hidden)"
#: The served name that matches every name.
ANY_NAME = "*"

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
NotBlank = Annotated[str, Field(pattern=r"\S")]


class ServerSettings(BaseModel):
    """The settings of a server. A field's name is its name in YAML; see `load_settings` for other spellings.

    Attributes:
        model, engine, device, devices, dtype, template, instruction, max_length, token_budget, engine_options,
        adapter, scoring, calibration, cache, cache_path: as in `Reranker`.
        long_documents, piece_tokens, piece_overlap, max_pieces: as in `Reranker`. A
            request with max_chunks_per_doc is judged in such pieces in any case, at most `max_pieces` of a document.
        host, port: the address to listen on.
        served_model_names: additional names of the model; answers contain the first one. "*" serves any name.
        strict_model_names: requests for other names get 404. Otherwise they are served, and the answer names the model.
        return_documents: whether results contain their document, unless a request says otherwise.
        rank_fields: the judged fields of documents that are objects, unless a request names them; None: text.
        document_template: how these fields are joined: yaml, lines, or a text with names of fields in braces.
        return_judged_text: whether results contain the judged text, unless a request says otherwise.
        api_key_file: a file with one key on each line; every route except
            /health, /ready and /ping then requires a key.
        cors_origins: origins whose pages may call the server from a browser; "*" for any.
        max_documents, max_request_tokens, max_body_bytes: limits of one request; above them it gets 413.
        max_queue_documents, max_queue_tokens: limits of all unanswered requests together; above them, 503.
        max_queue_bytes: limit of all request bodies in memory; above it, 503.
        max_connections: maximum number of open connections. A further one takes the place of the longest idle one; if
            all are busy, its requests get 503. Above 1.25 times the limit, it is closed without an answer.
        max_wait: maximum time in seconds that a request without X-Request-Timeout waits for others. If the estimated
            time is longer, the answer is 503 at once. A long request may wait for ten times its own time.
        request_timeout: seconds from the end of a request's body to its answer; after that, 504.
        header_timeout, body_timeout: seconds that a client may take to send a header, and a body.
        write_timeout: seconds that a client may leave an answer unread.
        keep_alive_timeout: seconds that an idle connection stays open.
        drain_timeout: seconds after SIGTERM within which accepted requests are still answered.
        probe_interval: seconds without a forward pass after which the engine has to score a short document; 0: never.
        probe_timeout: seconds without a forward pass, while that document waits, after which the engine is restarted.
        log_level: lowest level that is logged: debug, info, warning or error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), hide_input_in_errors=True)

    model: str = BUNDLED_MODEL
    engine: str = "auto"
    device: str = "auto"
    devices: str | None = None
    dtype: str = "auto"
    template: str = "standard"
    instruction: str | None = None
    max_length: Count = DEFAULT_MAX_LENGTH
    token_budget: Count | None = None
    engine_options: dict[str, object] = Field(default_factory=dict)
    adapter: str | None = None
    scoring: str | None = None
    calibration: str | None = None
    cache: int | None = None
    cache_path: str | None = None
    long_documents: str = "truncate"
    piece_tokens: Count = DEFAULT_PIECES.tokens
    piece_overlap: int = Field(default=DEFAULT_PIECES.overlap, ge=0)
    max_pieces: Count = DEFAULT_PIECES.limit

    host: str = "127.0.0.1"
    port: int = Field(default=8001, ge=0, le=65535)
    served_model_names: tuple[NotBlank, ...] = ()
    strict_model_names: bool = False
    return_documents: bool = False
    rank_fields: tuple[NotBlank, ...] | None = None
    document_template: str | None = None
    return_judged_text: bool = False
    api_key_file: Path | None = None
    cors_origins: tuple[NotBlank, ...] = ()

    max_documents: Count = 2_000
    max_request_tokens: Count = 1_000_000
    max_body_bytes: Count = 16 * 1024 * 1024
    max_queue_documents: Count = 20_000
    max_queue_tokens: Count = 4_000_000
    max_queue_bytes: Count = 256 * 1024 * 1024
    max_connections: Count = 2_000

    max_wait: Seconds = 5.0
    request_timeout: Seconds = 120.0
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 30.0
    write_timeout: Seconds = 30.0
    keep_alive_timeout: Count = 30
    drain_timeout: Seconds = 60.0
    probe_interval: float = Field(default=15.0, ge=0, allow_inf_nan=False)
    probe_timeout: Seconds = 120.0
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")

    @field_validator("engine")
    @classmethod
    def _engine_by_its_name(cls, value: str) -> str:
        return ENGINE_ALIASES.get(value, value)

    @field_validator("cache", mode="before")
    @classmethod
    def _size_in_bytes(cls, value: object) -> int | None:
        return canonical_size("cache", value)

    @field_validator("devices", mode="before")
    @classmethod
    def _devices_as_text(cls, value: object) -> str | None:
        return canonical_devices(value)

    @field_validator("served_model_names", "cors_origins", "rank_fields", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: object) -> object:
        return separated(value)

    @field_validator("engine_options", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("engine_options")
    @classmethod
    def _not_hidden(cls, value: dict[str, object]) -> dict[str, object]:
        if HIDDEN in json.dumps(value, default=str):
            raise ValueError(f"{HIDDEN} replaces a secret in a printed configuration: put the secret itself there")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model on the wire; answers contain the first one."""
        return tuple(dict.fromkeys(name for name in (*self.served_model_names, self.model) if name != ANY_NAME))

    @property
    def demonstration_model(self) -> bool:
        """Whether the model is the bundled one, which is meant for trials and tests."""
        return self.model == BUNDLED_MODEL

    def serves(self, name: str) -> bool:
        """Whether a request may give this name as `model`."""
        return not self.strict_model_names or ANY_NAME in self.served_model_names or name in self.names

    @cached_property
    def document_format(self) -> DocumentFormat:
        """Which fields of documents that are objects are judged, unless a request names them.

        Raises:
            InvalidInputError: rank_fields or document_template is unusable.
        """
        return DocumentFormat(self.rank_fields, self.document_template)

    def reranker_settings(self) -> RerankerSettings:
        """The settings from which the `Reranker` is made.

        Raises:
            InvalidInputError: one of these settings is unusable.
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
            self.adapter,
            self.scoring,
            devices=self.devices,
            calibration=self.calibration,
            cache=self.cache,
            cache_path=self.cache_path,
            long_documents=self.long_documents,
            piece_tokens=self.piece_tokens,
            piece_overlap=self.piece_overlap,
            max_pieces=self.max_pieces,
        )

    def dump(self) -> str:
        """All settings as YAML that `load_settings` reads back; only secrets are hidden."""
        fields = self.model_dump(mode="json") | {"engine_options": hide_secrets(self.engine_options)}
        text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120)
        return text


@dataclass(frozen=True)
class Configuration:
    """Checked settings, the API keys, which must not be printed, and what should be logged about the settings.

    Attributes:
        settings: without secrets.
        api_keys: the keys that clients may send; never shown.
        notes: sentences for the log.
    """

    settings: ServerSettings
    api_keys: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Configuration({self.settings!r}, api_keys={len(self.api_keys)} hidden)"

    def dump(self) -> str:
        """The effective configuration as YAML, with the number of API keys instead of the keys."""
        keys = f"{len(self.api_keys)} (hidden)" if self.api_keys else "none: every route is open"
        return f"{self.settings.dump()}# API keys: {keys}\n"


def load_settings(config: Path | None, flags: Mapping[str, object]) -> Configuration:
    """Load and check the settings.

    Flags take precedence over the environment, the environment over the YAML file, and the file over the defaults. The
    served names of all sources are combined.

    Args:
        config: a YAML file with fields of `ServerSettings`, or with a `services.rerank` section, see `translate`.
        flags: fields that were given on the command line.

    The environment variable of a field is QWEN3_RANKER_ and its name in capitals. QWEN3_RANKER_API_KEYS holds keys,
    separated by commas or line breaks.

    Raises:
        InvalidInputError: a setting is unusable, or nothing reads an environment variable with our prefix; the error
            names the setting, where it came from and the remedy.
    """
    known = frozenset(ServerSettings.model_fields)
    from_file, notes = ({}, []) if config is None else translate(read_yaml(config), str(config), known)
    from_environment, more_notes = read_environment(known)
    values: dict[str, object] = {}
    for source in (from_file, from_environment, flags):
        # device and devices exclude each other, so that either of them replaces the other one of an earlier source.
        for name, other in (("device", "devices"), ("devices", "device")):
            if name in source and other not in source:
                values.pop(other, None)
        values |= source
    sources = (
        dict.fromkeys(from_file, str(config))
        | {name: f"{VARIABLE_PREFIX}{name.upper()}" for name in from_environment}
        | {name: f"--{name.replace('_', '-')}" for name in flags}
    )
    names = [separated(each.get("served_model_names", ())) for each in (flags, from_environment, from_file)]
    if all(isinstance(each, (list, tuple)) for each in names):
        values["served_model_names"] = list(dict.fromkeys(name for each in names for name in each))  # type: ignore[attr-defined]
    if isinstance(values.get("engine_options"), Mapping) and isinstance(flags.get("engine_options"), Mapping):
        more_notes.append("--engine-option replaces all engine_options of the file and the environment")
    try:
        settings = ServerSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        where = f" (from {sources[name]})" if name in sources else ""
        raise InvalidInputError(f"{name}{where}", values.get(name), str(first["msg"])) from None
    settings.reranker_settings()
    _ = settings.document_format  # checked here, and not by the first request
    _check_variables(settings)
    return Configuration(settings, read_api_keys(settings.api_key_file), (*notes, *more_notes))


def _check_variables(settings: ServerSettings) -> None:
    own_key = API_KEY_VARIABLE.removeprefix(VARIABLE_PREFIX).lower()
    named = mentioned_variables(settings.engine_options)
    check_variables({*ServerSettings.model_fields, "api_keys", own_key, *named})
    if own_key in variables() and settings.engine != "remote" and own_key not in named:
        raise InvalidInputError(
            API_KEY_VARIABLE,
            HIDDEN,
            f"is the key for a remote service, and engine is {settings.engine!r}: unset it; the keys that clients of "
            f"this server have to send are read from {KEYS_VARIABLE}",
        )


def hide_secrets(options: Mapping[str, object]) -> dict[str, object]:
    """The options, with `HIDDEN` in place of secrets."""
    return {
        name: HIDDEN if is_secret(name, value) else hide_secrets(value) if isinstance(value, dict) else value
        for name, value in options.items()
    }
