"""One shape for every error, and what may stand in it: never a text of the request, never a stack trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import EngineError, InvalidInputError, ScoringError


class ApiError(Exception):
    """An answer other than the one that was asked for.

    Attributes:
        status: HTTP status.
        kind: for programs.
        message: for people.
        param: the field at fault.
        headers: to send with it, such as Retry-After.
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
        """The JSON."""
        error = {"type": self.kind, "message": self.message, "request_id": request_id, "param": self.param}
        return json.dumps({"error": error, "detail": self.message}).encode()

    def response(self, request_id: str) -> Response:
        """For Starlette."""
        return Response(self.body(request_id), self.status, self.headers, "application/json")


def unavailable(kind: str, message: str, retry_after: int) -> ApiError:
    """503 with Retry-After, in seconds."""
    return ApiError(503, kind, message, headers={"Retry-After": str(retry_after)})


def from_validation(error: RequestValidationError) -> ApiError:
    """The first complaint; pydantic's own answer would repeat the input."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", "the body is not JSON")
    # The union's tags are no part of the request.
    place = [part for part in first["loc"] if part not in ("body", "seed", "tei", "rerank", "text", "queries", "str")]
    param = ".".join(str(part)[:60] for part in place) or None  # an unknown field's name is the client's
    message = str(first["msg"])
    if first["type"] == "extra_forbidden":
        message = "unknown field; it is refused because it might have been meant to change the ranking"
    return ApiError(422, "invalid_request", f"{param or 'body'}: {message}", param=param)


def from_http(error: HTTPException) -> ApiError:
    """404, 405 and what else the framework raises."""
    kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = str(error.detail)
    if error.status_code == 400:
        kind, message = "invalid_json", "the body cannot be read as JSON"
    return ApiError(error.status_code, kind, message, headers=error.headers)


def from_core(error: Exception) -> ApiError:
    """What the core raised. The values in its messages stay out of the answer."""
    if isinstance(error, InvalidInputError):
        # The argument is ours, such as documents[3]; the remedy says nothing of the value.
        return ApiError(422, "invalid_request", f"{error.argument}: {error.remedy}", param=error.argument)
    if isinstance(error, ScoringError):
        failed = sorted(error.failures)
        shown = ", ".join(map(str, failed[:10])) + (", ..." if len(failed) > 10 else "")
        return ApiError(500, "scoring_failed", f"no usable score for {len(failed)} documents, at positions {shown}")
    if isinstance(error, EngineError):
        return unavailable("engine_failed", "the engine failed on this request or has ended; see /health", 5)
    return ApiError(500, "internal_error", "internal error; the server's log names it under the request id")
