"""Sends requests over HTTP, any number at the same time, each on its own connection, and returns their outcomes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx

from .target import Target, WrittenRequest, why_wrong

#: Seconds after which an idle connection is not reused: uvicorn closes idle connections after 5.
_KEPT = 4.0

#: Kinds of failures.
REFUSED_LATER = "503 with Retry-After"
REFUSED = "503 without Retry-After"
DROPPED = "connection dropped"
NOT_CONNECTED = "no connection"
TIMEOUT = "timeout"
WRONG = "wrong answer"


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer.

    Attributes:
        kind: one of the kinds above, or "status N".
        message: what happened, in one line.
    """

    kind: str
    message: str


class Connections:
    """Connections to a service, each with at most one request. Idle ones are reused, the most recently used first.

    This is not a single pool of httpx, which looks at all of its connections for each request: with hundreds of them,
    the client would be slower than the service. An object belongs to the event loop in which it is used.

    Args:
        target: the service.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._url = httpx.URL(target.options.endpoint)
        self._headers = {"Host": self._url.netloc.decode("ascii"), "Content-Type": "application/json"}
        if target.api_key is not None:
            self._headers["Authorization"] = f"Bearer {target.api_key}"
        if target.deadline is not None:
            self._headers["X-Request-Timeout"] = f"{target.deadline:g}"
        self._ssl = httpx.create_ssl_context()  # shared, because making it takes milliseconds
        self._idle: list[httpx.AsyncHTTPTransport] = []

    async def post(self, written: WrittenRequest, *, until: float) -> tuple[float, Failure | None]:
        """Send a request and read its answer.

        Args:
            written: the request.
            until: when to give up, on the event loop's clock.

        Returns:
            (time of the answer's last byte, or of the failure; the failure, or None).
        """
        loop = asyncio.get_running_loop()
        connection = self._idle.pop() if self._idle else self._open()
        failure: Failure | None
        try:
            async with asyncio.timeout_at(until):
                response = await connection.handle_async_request(
                    httpx.Request("POST", self._url, headers=self._headers, content=written.content)
                )
                try:
                    content = await response.aread()
                finally:
                    await response.aclose()
        except TimeoutError:
            failure, done = Failure(TIMEOUT, "no answer in time"), loop.time()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failure, done = Failure(NOT_CONNECTED, _said(error)), loop.time()
        except (httpx.TransportError, OSError) as error:
            failure, done = Failure(DROPPED, _said(error)), loop.time()
        else:
            done = loop.time()
            self._idle.append(connection)
            return done, self._failure(written, response, content)
        await connection.aclose()
        return done, failure

    async def close(self) -> None:
        """Close all connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.aclose()

    def _open(self) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=_KEPT)
        return httpx.AsyncHTTPTransport(verify=self._ssl, limits=limits)

    def _failure(self, written: WrittenRequest, response: httpx.Response, content: bytes) -> Failure | None:
        status = response.status_code
        if status == 200:
            wrong = why_wrong(self._target, written.request, content)
            return None if wrong is None else Failure(WRONG, wrong)
        kind = f"status {status}"
        if status == 503:
            kind = REFUSED_LATER if "Retry-After" in response.headers else REFUSED
        said = " ".join(content.decode("utf-8", "replace").split())[:200]
        return Failure(kind, said if self._target.api_key is None else said.replace(self._target.api_key, "***"))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
