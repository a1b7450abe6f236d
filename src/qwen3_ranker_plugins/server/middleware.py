"""What every request passes through: request id, API key, limits on its body, deadline, log line.

The application runs as a task of its own. When the client disconnects or the deadline passes, the task is cancelled,
which frees its place in the queue and drops its documents that no forward pass has taken yet.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import RankerError
from .admission import DEADLINE, LONGEST_WAIT, Admission, BodyBudget
from .auth import KeyRing
from .body import Decoder
from .errors import ApiError, from_core, unavailable
from .logs import log, logger
from .metrics import Metrics
from .settings import ServerSettings

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_CLOSED = 499  # nginx's status for a client that did not wait; logged and counted, never sent
_OPEN_ROUTES = frozenset({b"/health", b"/ready", b"/ping"})  # Kubernetes' probes have no key


#: Set in a request's state if its connection exceeds the limit of connections.
NO_ROOM = "no_room"


class _ClientGone(Exception):  # noqa: N818 - ends an exchange and is never reported
    pass


class Lifecycle:
    """State that the process and the application share.

    Attributes:
        draining: whether new work is refused because the process is about to end.
        exchanges: number of requests that are not answered yet.
        fatal: why the model could not be loaded; None if it was not tried or has succeeded.
        owns_process: whether the process does nothing but serve, so that settings of the whole process may be changed.
        keys: the keys that the server accepts; `Server` replaces them on SIGHUP.
    """

    def __init__(self, *, owns_process: bool = False) -> None:
        self.owns_process = owns_process
        self.keys = KeyRing(())
        self.draining = False
        self.exchanges = 0
        self.fatal: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Record that the model cannot be loaded, which ends the process."""
        self.fatal = error


@dataclass
class _Reply:
    """Sends the answer, adds headers to it, and records its status; `on_begin` is called before its first byte."""

    send: Send
    request_id: str
    status: int = 0
    kind: str | None = None
    extra: list[tuple[bytes, bytes]] = field(default_factory=list)
    on_begin: Callable[[], None] | None = None
    complete: bool = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.on_begin is not None:
                self.on_begin()
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"cache-control", b"no-store"),
                *self.extra,
            ]
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self.send(message)

    async def error(self, error: ApiError) -> None:
        """Send an error, unless an answer has begun."""
        self.kind = error.kind
        if self.status:
            return
        body = error.body(self.request_id)
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        await self(
            {
                "type": "http.response.start",
                "status": error.status,
                "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await self({"type": "http.response.body", "body": body})


class Guard:
    """The ASGI middleware that this module describes.

    Args:
        app: the application.
        settings, metrics, admission, bodies, lifecycle: of the server.
        routes: routes of `app` for POST that may be called without it. They raise `ApiError` and `RankerError`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServerSettings,
        metrics: Metrics,
        admission: Admission,
        bodies: BodyBudget,
        lifecycle: Lifecycle,
        routes: Sequence[Route] = (),
    ) -> None:
        self._app = app
        self._routes = {route.path: route for route in routes if not route.param_convertors}
        self._settings = settings
        self._metrics = metrics
        self._admission = admission
        self._bodies = bodies
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request; events other than requests go straight to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _as_routed(scope)
        started = time.perf_counter()
        headers = dict(reversed(scope["headers"]))  # the first of each name counts
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        reply = _Reply(send, given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        facts: dict[str, object] = {}
        scope["state"] = {**scope.get("state", {}), "request_id": reply.request_id, "facts": facts}
        self._lifecycle.exchanges += 1
        try:
            await self._exchange(scope, receive, reply, headers)
        except ApiError as error:
            await reply.error(error)
        except _ClientGone:
            reply.status, reply.kind = _CLIENT_CLOSED, "client_gone"
        except Exception as error:  # noqa: BLE001 - the client gets an answer, the log gets the traceback
            logger.exception("internal error", extra={"fields": {"request_id": reply.request_id}})
            await reply.error(from_core(error))
        finally:
            self._lifecycle.exchanges -= 1
            self._record(scope, reply, facts, time.perf_counter() - started)

    async def _exchange(self, scope: Scope, receive: Receive, reply: _Reply, headers: Mapping[bytes, bytes]) -> None:
        if self._lifecycle.keys and scope["raw_path"] not in _OPEN_ROUTES:
            self._check_key(headers, reply)
        if scope["method"] != "POST":
            await self._run(scope, receive, _replay(b""), reply, None)
            return
        if self._lifecycle.draining:
            reply.extra.append((b"connection", b"close"))
            raise unavailable(
                "shutting_down", "the server is shutting down: send the request to another one, or later", 5
            )
        deadline = self._deadline(headers)
        LONGEST_WAIT.set(math.inf if b"x-request-timeout" in headers else self._settings.max_wait)
        if NO_ROOM in scope["state"]:
            raise unavailable("queue_full", "too many connections are open: send the request again later", 1)
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and not headers.get(b"content-encoding") and scope["path"] in self._routes:
            self._admission.expect(int(declared), deadline)
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            self._bodies.take(count)
            held += count

        try:
            body = await self._read(receive, headers, hold, reply)
            await self._run(scope, receive, _replay(body), reply, deadline)
        finally:
            self._bodies.give_back(held)

    def _check_key(self, headers: Mapping[bytes, bytes], reply: _Reply) -> None:
        if not self._lifecycle.keys.opens(headers.get(b"authorization"), headers.get(b"x-api-key")):
            # Browsers know Basic; they ask for a user name (any will do) and a password (the key).
            reply.extra += [(b"www-authenticate", b"Bearer"), (b"www-authenticate", b'Basic realm="key as password"')]
            raise ApiError(401, "unauthorized", "give a valid API key: Authorization: Bearer KEY")

    def _deadline(self, headers: Mapping[bytes, bytes]) -> float:
        """Seconds until the request is answered with 504: as configured, or fewer if the client asks for fewer."""
        given = headers.get(b"x-request-timeout")
        if given is None:
            return self._settings.request_timeout
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            raise ApiError(
                422,
                "invalid_request",
                "X-Request-Timeout: give a number of seconds, such as 2.5",
                param="X-Request-Timeout",
            )
        return min(seconds, self._settings.request_timeout)

    async def _read(
        self, receive: Receive, headers: Mapping[bytes, bytes], hold: Callable[[int], None], reply: _Reply
    ) -> bytearray:
        """The whole body, decoded.

        Raises:
            ApiError: 400, 408, 413, 415 or 503.
        """
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if media_type != b"application/json":
            raise ApiError(415, "unsupported_media_type", "send Content-Type: application/json")
        decoder = Decoder(headers.get(b"content-encoding", b""))
        limit = self._settings.max_body_bytes
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            raise _too_large(limit)
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientGone
                    chunk = decoder.decode(message.get("body", b""), limit - len(body))
                    if len(body) + len(chunk) > limit:
                        raise _too_large(limit)
                    hold(len(chunk))
                    body += chunk
                    if not message.get("more_body", False):
                        decoder.finish()
                        return body
        except TimeoutError:
            reply.extra.append((b"connection", b"close"))
            raise ApiError(
                408, "body_timeout", f"the body did not arrive within {self._settings.body_timeout:g} s"
            ) from None

    async def _run(self, scope: Scope, receive: Receive, body: Receive, reply: _Reply, deadline: float | None) -> None:
        """Run the application until it has answered, the client disconnects, or the deadline passes."""
        if deadline is not None:
            DEADLINE.set(time.monotonic() + deadline)
        task = asyncio.current_task()
        gone = asyncio.create_task(_until_disconnect(receive))
        left = False

        def leave(_gone: object) -> None:
            nonlocal left
            if task is not None and not (gone.cancelled() or gone.exception() or reply.complete):
                left = True
                task.cancel()

        gone.add_done_callback(leave)
        try:
            async with asyncio.timeout(deadline) as limit:
                # The deadline does not apply once the answer has begun; `run.Connection` ends it if nobody reads it.
                reply.on_begin = lambda: limit.reschedule(None)
                await self._answer(scope, body, reply)
        except asyncio.CancelledError:
            if not left or task is None or task.uncancel():
                raise
            raise _ClientGone from None
        except TimeoutError:
            if not limit.expired():
                raise
            raise ApiError(
                504,
                "deadline_exceeded",
                f"not answered within {deadline:g} s; the request was removed from the queue",
            ) from None
        finally:
            reply.on_begin = None
            gone.remove_done_callback(leave)
            gone.cancel()

    async def _answer(self, scope: Scope, body: Receive, reply: _Reply) -> None:
        """Call the route if it has no parameters; FastAPI's layers and its search for a route take longer than it."""
        route = self._routes.get(scope["path"]) if scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, body, reply)
            return
        scope["route"] = route
        try:
            await route.app(scope, body, reply)
        except RankerError as error:
            await reply.error(from_core(error))

    def _record(self, scope: Scope, reply: _Reply, facts: Mapping[str, object], seconds: float) -> None:
        """Count and log a request under its route: with its path, a client could fill the metrics or log text."""
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        kind = reply.kind or facts.get("error")
        self._metrics.requests.labels(route, method, reply.status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if isinstance(kind, str):
            self._metrics.rejected.labels(kind).inc()
        client = scope.get("client")
        log(
            logging.DEBUG if route in {"/health", "/ready", "/metrics"} and reply.status == 200 else logging.INFO,
            "request",
            request_id=reply.request_id,
            method=method,
            route=route,
            status=reply.status,
            seconds=round(seconds, 6),
            client=client[0] if client else None,
            **{**facts, **({"error": kind} if kind else {})},
        )


def _as_routed(scope: Scope) -> Scope:
    """The request as the routes expect it: /rerank/ becomes /rerank, and HEAD becomes GET (uvicorn drops the body)."""
    path: str = scope["path"]
    return {
        **scope,
        "method": "GET" if scope["method"] == "HEAD" else scope["method"],
        "path": path[:-1] if len(path) > 1 and path.endswith("/") else path,
        "raw_path": scope.get("raw_path") or path.encode(),
    }


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"the body is larger than {limit} bytes")


def _replay(body: bytes | bytearray) -> Receive:
    """Returns a body that was read already, then waits: `_until_disconnect` watches the client."""
    parts = [body]

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": bytes(parts.pop()), "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError  # not reached: the task is cancelled while it waits

    return receive


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
