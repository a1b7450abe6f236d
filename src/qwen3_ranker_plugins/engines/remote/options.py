"""The options of the remote engine: kinds of services, names, checks and defaults."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from ...config import (
    API_KEY_VARIABLE,
    RerankerSettings,
    check_choice,
    check_positive,
    check_text,
    secret_from_environment,
)
from ...errors import InvalidInputError

if TYPE_CHECKING:
    from ...config import EngineConfig


@dataclass(frozen=True)
class Service:
    """A kind of service.

    Attributes:
        routes: name -> path; the first one is the default.
        scores: what it returns by default: "probability" in [0, 1], or "logit".
        takes_instruction, takes_limit: whether its requests have a field for the instruction, and one for the most
            tokens of a document.
        prompts_are_ours: whether it scores prompts as they are sent, so that this package makes them.
        documents_per_request: default of the option.
    """

    routes: Mapping[str, str]
    scores: str
    takes_instruction: bool = False
    takes_limit: bool = False
    prompts_are_ours: bool = False
    documents_per_request: int = 256


#: documents_per_request: 32 is TEI's limit (--max-client-batch-size), 1000 Cohere's.
SERVICES: dict[str, Service] = {
    "server": Service(
        {"rerank": "/v1/rerank", "score": "/v1/score"}, "logit", takes_instruction=True, takes_limit=True
    ),
    "vllm": Service(
        {"classify": "/classify", "score": "/v1/score", "rerank": "/v1/rerank", "packed": "/pooling"},
        "logit",
        takes_instruction=True,
        takes_limit=True,
        prompts_are_ours=True,
    ),
    "tei": Service({"tei": "/rerank"}, "logit", documents_per_request=32),
    "cohere": Service({"rerank": "/v2/rerank"}, "probability", takes_limit=True, documents_per_request=1000),
    "jina": Service({"rerank": "/v1/rerank"}, "probability", documents_per_request=1000),
}

_SCORES = ("probability", "logit")
#: documents_per_request of route "packed", where the tokens of a row are the tighter limit.
_DOCUMENTS_PER_ROW = 4096


@dataclass(frozen=True)
class RemoteOptions:
    """What a request depends on in addition to its texts. Holds no key, only the name of the variable with the key.

    Attributes:
        url: address of the service, without the route.
        kind: a name from SERVICES.
        route: a route of this kind of service; None for its first one.
        path: replaces the route's path.
        served_model: the service's name of the model; "" leaves it out of requests.
        scores: "probability" or "logit"; None for what this kind of service returns.
        prompts_are_ours: send prompts in the reranker's template (true) or the bare texts (false); None for what this
            kind of service needs.
        truncate: of TEI: cut texts that are too long without a report (true), or refuse the request (false).
        marker_id: of route "packed": id of the token that marks the ends of prefix and documents in a row; None for the
            tokenizer's.
        api_key_env: name of the environment variable with the key.
        documents_per_request: longer lists are split; None for what this kind of service accepts.
        concurrency: at most this many HTTP requests at the same time.
        max_attempts: attempts for each HTTP request, including the first one.
        connect_timeout, read_timeout, total_timeout: seconds; the last one limits all attempts and the waits between
            them.
        max_retry_wait: seconds that a retry waits at most, even if the service asks for more.
    """

    url: str
    kind: str = "server"
    route: str | None = None
    path: str | None = None
    served_model: str = ""
    scores: str | None = None
    prompts_are_ours: bool | None = None
    truncate: bool = True
    marker_id: int | None = None
    api_key_env: str = API_KEY_VARIABLE
    documents_per_request: int | None = None
    concurrency: int = 8
    max_attempts: int = 4
    connect_timeout: float = 5.0
    read_timeout: float = 60.0
    total_timeout: float = 120.0
    max_retry_wait: float = 30.0

    @classmethod
    def of(cls, settings: RerankerSettings) -> Self:
        """The options in a reranker's settings, with all defaults filled in.

        Raises:
            InvalidInputError: an option is unknown, missing or unusable, or a setting has no effect on the service.
        """
        given = dict(settings.engine_options)
        for name, value in given.items():
            if name not in _NAMES:
                raise InvalidInputError(
                    _argument(name), value, f"the remote engine has no such option; use {', '.join(_NAMES)}"
                )
        if "url" not in given:
            raise InvalidInputError(_argument("url"), None, "give the address of the service: 'http://host:8001'")
        given.setdefault("served_model", settings.model)
        options = cls(**cls._complete(given))
        options._check_settings(settings)
        return options

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """From `as_json`."""
        return cls(**json.loads(config.options))

    def as_json(self) -> str:
        """Canonical JSON: equal options give equal texts."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def service(self) -> Service:
        """The kind of service."""
        return SERVICES[self.kind]

    @property
    def endpoint(self) -> str:
        """The complete address of the route."""
        return self.url + str(self.path)

    @property
    def sends_ids(self) -> bool:
        """Whether prompts are sent as token ids."""
        return self.route in ("classify", "packed")

    def api_key(self) -> str | None:
        """The key; None if `api_key_env` was left out and its default is not set.

        Raises:
            InvalidInputError: the variable is not set, or its value cannot be sent in a header.
        """
        key = secret_from_environment(self.api_key_env)
        if key is None and self.api_key_env != API_KEY_VARIABLE:
            raise InvalidInputError(_argument("api_key_env"), self.api_key_env, "this variable is not set: export it")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InvalidInputError(
                _argument("api_key_env"), self.api_key_env, "its value has line breaks or characters beyond ASCII"
            )
        return key

    @classmethod
    def _complete(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The options with the defaults that depend on the kind of service."""
        kind = given.setdefault("kind", "server")
        check_choice(_argument("kind"), kind, tuple(SERVICES))
        service = SERVICES[kind]
        route = given["route"] = given.get("route") or next(iter(service.routes))
        check_choice(_argument("route"), route, tuple(service.routes))
        path = given["path"] = given.get("path") or service.routes[route]
        if not isinstance(path, str) or not path.startswith("/"):
            raise InvalidInputError(_argument("path"), path, "use a path such as '/v1/rerank'")
        given["url"] = _base_url(given["url"], path)
        given["served_model"] = given["served_model"] or ""
        for name, default in (
            ("scores", service.scores),
            ("prompts_are_ours", service.prompts_are_ours),
            ("documents_per_request", _DOCUMENTS_PER_ROW if route == "packed" else service.documents_per_request),
        ):
            if given.get(name) is None:
                given[name] = default
        return given

    def __post_init__(self) -> None:
        check_choice(_argument("scores"), self.scores, _SCORES)
        check_text(_argument("served_model"), self.served_model, may_be_empty=True)
        check_text(_argument("api_key_env"), self.api_key_env)
        for name in ("documents_per_request", "concurrency", "max_attempts"):
            if getattr(self, name) is None:
                raise InvalidInputError(_argument(name), None, "use a positive integer")
            check_positive(_argument(name), getattr(self, name))
        check_positive(_argument("marker_id"), self.marker_id)
        for name in ("connect_timeout", "read_timeout", "total_timeout", "max_retry_wait"):
            _check_seconds(name, getattr(self, name))
            object.__setattr__(self, name, float(getattr(self, name)))  # 5 and 5.0 are one engine
        for name in ("prompts_are_ours", "truncate"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(_argument(name), getattr(self, name), "use true or false")
        if self.sends_ids and not self.prompts_are_ours:
            raise InvalidInputError(
                _argument("prompts_are_ours"),
                False,
                f"route {self.route!r} takes prompts: use route 'score' or 'rerank'",
            )

    def _check_settings(self, settings: RerankerSettings) -> None:
        """Refuse settings that would have no effect."""
        where = f"the remote service decides ({self.kind})"
        ignored = ["device", "dtype"] if self.prompts_are_ours else ["device", "dtype", "template", "max_length"]
        defaults = {field.name: field.default for field in fields(RerankerSettings)}
        for name in ignored:
            if getattr(settings, name) != defaults[name]:
                raise InvalidInputError(name, getattr(settings, name), f"{where}: leave it out")
        if settings.instruction is not None and not self.takes_instruction:
            raise InvalidInputError("instruction", settings.instruction, f"{self.kind} takes none: leave it out")

    @property
    def takes_instruction(self) -> bool:
        """Whether an instruction reaches the model, in our prompt or in a field of the request."""
        return bool(self.prompts_are_ours) or self.service.takes_instruction


_NAMES = tuple(field.name for field in fields(RemoteOptions))


def _argument(name: str) -> str:
    return f"engine_options[{name!r}]"


def _base_url(url: object, path: str) -> str:
    """The address without the route, a version or a slash at its end."""
    remedy = "use an address such as 'http://host:8001'"
    if not isinstance(url, str):
        raise InvalidInputError(_argument("url"), url, remedy)
    try:
        address = urlsplit(url)
        host, _port = address.hostname, address.port  # reading the port checks it
    except ValueError as error:
        raise InvalidInputError(_argument("url"), "(hidden)", f"{remedy} ({error})") from None
    if address.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise InvalidInputError(_argument("url"), url, remedy)
    base = url.rstrip("/").removesuffix(path)
    return re.sub(r"/v[12]$", "", base.rstrip("/"))


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < float("inf"):
        raise InvalidInputError(_argument(name), value, "use a positive number of seconds")
