"""The shape that all errors share. An error never contains text of the request or a stack trace."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import EngineError, InvalidInputError, ScoringError

#: Prefix of the tags of wire shapes, which distinguishes them from the names of fields.
SHAPE_TAG = "shape: "
_UNION_MEMBER = re.compile(
    r"str|bool|int|float|constrained-\w+|[A-Z][a-z]+[A-Z]\w*|(?:list|literal|dict|function-\w+)\[.*\]"
)


class ApiError(Exception):
    """An error that becomes an HTTP answer.

    Attributes:
        status: HTTP status.
        kind: the error's type, for programs.
        message: for people; without text of the request.
        param: the field at fault.
        headers: sent with the answer, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> bytes:
        """The error as JSON."""
        error = {"type": self.kind, "message": self.message, "request_id": request_id, "param": self.param}
        return json.dumps({"error": error, "detail": self.message}).encode()

    def response(self, request_id: str) -> Response:
        """The error as a Starlette response."""
        return Response(self.body(request_id), self.status, self.headers, "application/json")


def unavailable(kind: str, message: str, retry_after: int) -> ApiError:
    """503 with Retry-After, in seconds."""
    return ApiError(503, kind, message, headers={"Retry-After": str(retry_after)})


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Convert the first of pydantic's errors, whose texts would repeat the input."""
    # Our own errors explain more than the "not a string" that another member of a union reports.
    first = next((each for each in errors if each["type"] in {"too_deep", "refused_field"}), errors[0])
    # Of the members of a union, the one that fits better reports a field inside the value.
    place = _place(first)
    first = max((each for each in errors if _place(each)[: len(place)] == place), key=lambda each: len(_place(each)))
    param = ".".join(str(part)[:60] for part in _place(first)) or None  # the client chose an unknown field's name
    message = str(first["msg"])
    if first["type"] == "extra_forbidden":
        message = "unknown field; it is refused because it might have been meant to change the ranking"
    return ApiError(422, "invalid_request", f"{param or 'body'}: {message}", param=param)


def _place(error: Mapping[str, Any]) -> list[object]:
    """The names and indices that lead to the value at fault, without those of members of unions."""
    *parts, last = error["loc"] or (SHAPE_TAG,)
    place = [part for part in parts if _is_of_the_request(part)]
    return [*place, last] if error["type"] == "extra_forbidden" or _is_of_the_request(last) else place


def _is_of_the_request(part: object) -> bool:
    """Whether a part of pydantic's location is a field or an index rather than the name of a union's member."""
    return not isinstance(part, str) or not (part.startswith(SHAPE_TAG) or _UNION_MEMBER.fullmatch(part))


def from_http(error: HTTPException) -> ApiError:
    """Convert an error that the framework raises, such as 404 and 405."""
    kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return ApiError(error.status_code, kind, str(error.detail), headers=error.headers)


def from_core(error: Exception) -> ApiError:
    """Convert an error of the core. The answer leaves out the values that its message contains."""
    if isinstance(error, InvalidInputError):
        # The argument's name is ours, such as documents[3], and the remedy does not mention the value.
        return ApiError(422, "invalid_request", f"{error.argument}: {error.remedy}", param=error.argument)
    if isinstance(error, ScoringError):
        failed = sorted(error.failures)
        shown = ", ".join(map(str, failed[:10])) + (", ..." if len(failed) > 10 else "")
        return ApiError(500, "scoring_failed", f"no usable score for {len(failed)} documents, at positions {shown}")
    if isinstance(error, EngineError):
        return unavailable("engine_failed", "the engine failed on this request or has ended; see /health", 5)
    return ApiError(500, "internal_error", "internal error; the server's log describes it under the request id")
