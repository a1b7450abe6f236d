"""The options of the remote engine: kinds of services, names, checks and defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Self
from urllib.parse import urlsplit

from ...checks import check_positive, check_text
from ...config import API_KEY_VARIABLE, RerankerSettings, secret_from_environment
from ...errors import InvalidInputError
from ..options import EngineOptions, argument, check_seconds, check_switch, checked, one_of


@dataclass(frozen=True)
class Service:
    """A kind of service.

    Attributes:
        routes: name -> path; the first one is the default.
        scores: what it returns by default: "probability" in [0, 1], or "logit".
        takes_instruction, takes_limit: whether its requests have a field for the instruction, and one for the maximum
            number of tokens of a document.
        prompts_are_ours: whether it scores prompts as they are sent, so that this package makes them.
        documents_per_request: default of the option of this name.
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

#: documents_per_request of route "packed", where the tokens of a row are the tighter limit.
_DOCUMENTS_PER_ROW = 4096
#: Routes on which prompts are sent as token ids.
_TAKE_PROMPTS = ("classify", "packed")

_ADDRESS = "give the address of the service, such as 'http://host:8001'"

_check_any_text = partial(check_text, may_be_empty=True)


def _check_url(name: str, url: object) -> None:
    if not isinstance(url, str):
        raise InvalidInputError(name, url, _ADDRESS)
    try:
        address = urlsplit(url)
        host, _port = address.hostname, address.port  # reading the port checks it
    except ValueError as error:
        raise InvalidInputError(name, "(hidden)", f"{_ADDRESS} ({error})") from None
    if address.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise InvalidInputError(name, url, _ADDRESS)


def _check_path(name: str, path: object) -> None:
    if not isinstance(path, str) or (path and not path.startswith("/")):
        raise InvalidInputError(name, path, "use a path such as '/v1/rerank'")


@dataclass(frozen=True)
class RemoteOptions(EngineOptions):
    """Where requests go, in what form, and how long they may take. Holds the name of the key's variable, not the key.

    Attributes:
        url: address of the service, without the route.
        kind: a name from SERVICES.
        route: a route of this kind of service; None for its first one.
        path: replaces the route's path.
        served_model: the service's name of the model; None and "" leave it out of requests.
        scores: "probability" or "logit"; None for what this kind of service returns.
        prompts_are_ours: send prompts in the reranker's template (true) or the bare texts (false); None for what this
            kind of service needs.
        truncate: for TEI only: cut texts that are too long, which TEI does not report (true), or have TEI refuse the
            request (false).
        marker_id: for route "packed" only: id of the token that marks the ends of prefix and documents in a row; None
            for the tokenizer's.
        api_key_env: name of the environment variable with the key.
        documents_per_request: longer lists are split; None for what this kind of service accepts.
        concurrency: at most this many HTTP requests at the same time.
        max_attempts: attempts for each HTTP request, including the first one.
        connect_timeout, read_timeout, total_timeout: seconds; the last one limits all attempts and the waits between
            them.
        max_retry_wait: maximum number of seconds before a retry, even if the service asks for more.
    """

    url: str = field(metadata=checked(_check_url, if_missing=_ADDRESS))
    kind: str = field(default="server", metadata=checked(one_of(*SERVICES)))
    route: str | None = field(default=None, metadata=checked(_check_any_text))
    path: str | None = field(default=None, metadata=checked(_check_path))
    served_model: str | None = field(default=None, metadata=checked(_check_any_text))
    scores: str | None = field(default=None, metadata=checked(one_of("probability", "logit")))
    prompts_are_ours: bool | None = field(default=None, metadata=checked(check_switch))
    truncate: bool = field(default=True, metadata=checked(check_switch))
    marker_id: int | None = field(default=None, metadata=checked(check_positive))
    api_key_env: str = field(default=API_KEY_VARIABLE, metadata=checked(check_text))
    documents_per_request: int | None = field(default=None, metadata=checked(check_positive))
    concurrency: int = field(default=8, metadata=checked(check_positive))
    max_attempts: int = field(default=4, metadata=checked(check_positive))
    connect_timeout: float = field(default=5.0, metadata=checked(check_seconds))
    read_timeout: float = field(default=60.0, metadata=checked(check_seconds))
    total_timeout: float = field(default=120.0, metadata=checked(check_seconds))
    max_retry_wait: float = field(default=30.0, metadata=checked(check_seconds))

    @classmethod
    def of(cls, settings: RerankerSettings) -> Self:
        """The options in a reranker's settings, with all defaults filled in.

        Raises:
            InvalidInputError: an option is unknown, missing or unusable, or a setting has no effect on the service.
        """
        options = cls.parse("remote", {"served_model": settings.model, **settings.engine_options}).completed()
        options.check_settings(settings)
        return options

    def completed(self) -> Self:
        """The options with the defaults of this kind of service. Options that mean the same become equal.

        Raises:
            InvalidInputError: the service has no such route, or the route takes prompts and prompts_are_ours is false.
        """
        route = self.route or next(iter(self.service.routes))
        one_of(*self.service.routes)(argument("route"), route)
        path = self.path or self.service.routes[route]
        if route in _TAKE_PROMPTS and self.prompts_are_ours is False:
            raise InvalidInputError(
                argument("prompts_are_ours"), False, f"route {route!r} takes prompts: use route 'score' or 'rerank'"
            )
        documents = _DOCUMENTS_PER_ROW if route == "packed" else self.service.documents_per_request
        return replace(
            self,
            url=_base_url(self.url, path),
            route=route,
            path=path,
            served_model=self.served_model or "",
            scores=self.scores or self.service.scores,
            prompts_are_ours=self.service.prompts_are_ours if self.prompts_are_ours is None else self.prompts_are_ours,
            documents_per_request=self.documents_per_request or documents,
            connect_timeout=float(self.connect_timeout),
            read_timeout=float(self.read_timeout),
            total_timeout=float(self.total_timeout),
            max_retry_wait=float(self.max_retry_wait),
        )

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
        return self.route in _TAKE_PROMPTS

    def api_key(self) -> str | None:
        """The key; None if `api_key_env` was left out and its default is not set.

        Raises:
            InvalidInputError: the variable is not set, or its value cannot be sent in a header.
        """
        key = secret_from_environment(self.api_key_env)
        if key is None and self.api_key_env != API_KEY_VARIABLE:
            raise InvalidInputError(argument("api_key_env"), self.api_key_env, "this variable is not set: export it")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise InvalidInputError(
                argument("api_key_env"),
                self.api_key_env,
                "its value has line breaks or characters outside ASCII: export the key alone",
            )
        return key

    def check_settings(self, settings: RerankerSettings) -> None:
        """Raise InvalidInputError for a setting that would have no effect."""
        where = f"the remote service decides this ({self.kind})"
        ignored = ["device", "dtype"] if self.prompts_are_ours else ["device", "dtype", "template", "max_length"]
        defaults = {each.name: each.default for each in fields(RerankerSettings)}
        for name in ignored:
            if getattr(settings, name) != defaults[name]:
                raise InvalidInputError(name, getattr(settings, name), f"{where}: leave it out")
        if settings.instruction is not None and not self.takes_instruction:
            raise InvalidInputError("instruction", settings.instruction, f"{self.kind} takes none: leave it out")

    @property
    def takes_instruction(self) -> bool:
        """Whether an instruction reaches the model, in our prompt or in a field of the request."""
        return bool(self.prompts_are_ours) or self.service.takes_instruction


def _base_url(url: str, path: str) -> str:
    """The address without the route, a version or a slash at its end."""
    base = url.rstrip("/").removesuffix(path)
    return re.sub(r"/v[12]$", "", base.rstrip("/"))
