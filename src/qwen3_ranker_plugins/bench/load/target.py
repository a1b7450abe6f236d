"""A service under load: its address, the format of its requests, and whether an answer is usable."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from ...config import RerankerSettings
from ...engines.remote.options import SERVICES, RemoteOptions
from ...engines.remote.request_body import request_body
from ...engines.remote.response import read_margins
from ...engines.remote.text_encoders import TextEncoder, TextRequest
from ...errors import InvalidInputError, RemoteError
from .workloads import RequestShape, document_lists, fresh_query

#: Kind of service -> the route that takes a query and documents as texts and reranks them.
_ROUTES = {kind: "tei" if kind == "tei" else "rerank" for kind in SERVICES}


@dataclass(frozen=True)
class Target:
    """The service that gets the requests.

    Attributes:
        options: address and kind of the service, as in the remote engine.
        api_key: sent as a bearer token; None sends none.
        deadline: seconds, sent as X-Request-Timeout, which our server obeys; None sends none.

    Raises:
        InvalidInputError: the deadline is not a positive number.
    """

    options: RemoteOptions
    api_key: str | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.deadline is not None and not (self.deadline > 0 and math.isfinite(self.deadline)):
            raise InvalidInputError("deadline", self.deadline, "use a positive number of seconds")

    @classmethod
    def at(cls, url: str, kind: str = "server", *, served_model: str = "", api_key: str | None = None) -> Self:
        """Make a target that gets texts as its clients send them, without our prompt.

        Args:
            url: address, with or without the route.
            kind: "server" (ours), "vllm", "cohere", "jina" or "tei".
            served_model: the service's name for the model; "" leaves it out of requests.
            api_key: key of the service; None for none.

        Raises:
            InvalidInputError: an argument is unusable.
        """
        given: dict[str, object] = {"url": url, "kind": kind, "route": _ROUTES.get(kind), "served_model": served_model}
        given |= {"scores": "probability", "prompts_are_ours": False}
        try:
            options = RemoteOptions.of(RerankerSettings(engine="remote", engine_options=given))
        except InvalidInputError as error:  # which names an option of the remote engine
            argument = re.sub(r"^engine_options\['(\w+)'\]$", r"\1", error.argument)
            raise InvalidInputError(argument, error.value, error.remedy) from None
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidInputError("api_key_file", "(hidden)", "use a key of printable ASCII characters")
        return cls(options, api_key)


@dataclass(frozen=True)
class WrittenRequest:
    """The body of a request, and the request itself, which is needed to check the answer.

    Attributes:
        content: the JSON that is sent.
        request: query and documents as the service should read them.
    """

    content: bytes
    request: TextRequest


class Writer:
    """Writes requests of one shape. Each has its own query; document lists are used in turn.

    Args:
        target: the service, which determines the format.
        shape: shape of the requests.
        seed: seed of the documents.
    """

    def __init__(self, target: Target, shape: RequestShape, seed: int) -> None:
        self._shape = shape
        self._turn = 0
        self._lists = _written_lists(target, shape, seed)

    def write(self, rng: random.Random) -> WrittenRequest:
        """The next request."""
        rest, request = self._lists[self._turn % len(self._lists)]
        self._turn += 1
        query = json.dumps(fresh_query(self._shape, rng))
        return WrittenRequest(f'{{"query": {query}, '.encode() + rest, request)


@lru_cache(maxsize=16)
def _written_lists(target: Target, shape: RequestShape, seed: int) -> list[tuple[bytes, TextRequest]]:
    """Bodies without their query, made in advance so that sending a request costs the client little time."""
    encoder = TextEncoder(target.options)
    lists = []
    for documents in document_lists(shape, seed):
        request = encoder.encode("", documents, None)
        body = request_body(target.options, request)
        del body["query"]
        lists.append((json.dumps(body, ensure_ascii=False).encode()[1:], request))
    return lists


def why_wrong(target: Target, request: TextRequest, answer: bytes) -> str | None:
    """Why an answer with status 200 is unusable; None if each document has one score, and this is a number."""
    try:
        margins = read_margins(target.options, request, json.loads(answer))
    except RemoteError as error:
        return str(error)
    except ValueError:
        return f"no JSON: {answer[:200]!r}"
    if margins.failures:
        index = min(margins.failures)
        return f"documents[{index}]: {margins.failures[index]}"
    return None
