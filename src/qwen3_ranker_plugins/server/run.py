"""The process: connections with time limits, signals, an orderly shutdown, and new API keys on SIGHUP."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..config import DEFAULT_MODEL
from ..errors import InvalidInputError, RankerError
from .app import create_app
from .logs import configure, describe_error, log
from .middleware import NO_ROOM, Lifecycle
from .settings import Configuration, ServerSettings
from .sources import read_api_keys
from .supervisor import LOADING

# The tokenizers library starts a thread for each core, and all of them look for work while one request is encoded. A
# request of 1000 titles took 0.08 s of processor time on a host with 16 cores, and 0.19 s on one with 64.
_TOKENIZER_THREADS = 16

#: At most this many times `max_connections` connections are open, so that those in excess get an answer.
_MOST_OVER = 1.25
#: Open files of the process besides connections: of the model, of worker processes, of the log.
_OTHER_FILES = 256


class Connection(H11Protocol):
    """uvicorn's connection, with limits on what a client may leave unfinished.

    uvicorn waits without limit for the rest of a header, and for a client that does not read its answer.

    Attributes:
        settings: of the server.
        idle: connections of the server without a request, the longest idle one first.
    """

    settings: ServerSettings
    idle: dict[Connection, None]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit for the first header. If too many connections are open, make room.

        The longest idle connection is closed. If none is idle, the client gets an answer to its request that asks it to
        try again later. Only above `_MOST_OVER` times the limit is the connection closed without an answer.
        """
        super().connection_made(transport)
        self.transport = _Joined(transport, self.loop)  # type: ignore[assignment]
        limit = self.settings.max_connections
        if len(self.connections) > limit:
            if self.idle:
                longest = next(iter(self.idle))
                del self.idle[longest]
                longest.shutdown()
            elif len(self.connections) > _MOST_OVER * limit:
                transport.abort()
                return
            else:
                self.app_state = {**self.app_state, NO_ROOM: True}  # of this connection's requests
        self.idle[self] = None
        self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        """Start the header's time limit at its first byte; stop it when the header is complete."""
        self.idle.pop(self, None)
        if NO_ROOM in self.app_state and len(self.connections) <= self.settings.max_connections:
            del self.app_state[NO_ROOM]
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_header_timer()
        elif self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            # The rest of a body whose request was answered before.
            self._stop_header_timer()
            self.idle[self] = None
        else:
            self._start_header_timer()

    def on_response_complete(self) -> None:
        """Count the connection as idle, unless the next request has arrived already."""
        self.idle[self] = None
        super().on_response_complete()
        if self.cycle is not None and not self.cycle.response_complete:
            self.idle.pop(self, None)

    def pause_writing(self) -> None:
        """The client does not read fast enough: start its time limit."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.settings.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again: stop its time limit."""
        super().resume_writing()
        _stop(self._write_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all time limits."""
        self.idle.pop(self, None)
        self._stop_header_timer()
        _stop(self._write_timer)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer input that is not HTTP in the shape of all other errors."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()
            return
        error = {"type": "bad_request", "message": msg, "request_id": uuid.uuid4().hex, "param": None}
        body = json.dumps({"error": error, "detail": msg}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.settings.header_timeout, self.transport.abort)

    def _stop_header_timer(self) -> None:
        _stop(self._header_timer)
        self._header_timer = None


class _Joined:
    """A transport that sends what is written in one turn of the event loop, such as header and body, in one piece."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        data = b"".join(self._parts)
        self._parts.clear()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """uvicorn's server, except that it refuses new work and answers accepted requests before it stops listening."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, settings: ServerSettings) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._settings = settings
        self._give_up_at = 0.0
        self._reload = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Drain on the first signal, end at once on the second."""
        if self._lifecycle.draining:
            self.should_exit = self.force_exit = True
            return
        log(logging.INFO, "draining", signal=signal.Signals(sig).name, exchanges=self._lifecycle.exchanges)
        self._lifecycle.draining = True
        self._give_up_at = time.monotonic() + self._settings.drain_timeout

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        """On SIGHUP, request that `on_tick` reads the keys again, outside of the signal handler."""
        self._reload = True

    def _reload_keys(self) -> None:
        """Read `api_key_file` again. Keys of the environment stay valid; all keys do if the file is unusable."""
        self._reload = False
        if self._settings.api_key_file is None:
            log(logging.WARNING, "SIGHUP has no effect without api_key_file: no keys were reloaded")
            return
        try:
            keys = read_api_keys(self._settings.api_key_file)
        except InvalidInputError as error:
            log(logging.ERROR, "API keys were not reloaded: the previous ones stay valid", reason=str(error))
            return
        self._lifecycle.keys.replace(keys)
        log(logging.INFO, "API keys reloaded", keys=len(keys))

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second."""
        if self._reload:
            self._reload_keys()
        if self._lifecycle.draining and (not self._lifecycle.exchanges or time.monotonic() > self._give_up_at):
            self.should_exit = True
        self.should_exit |= self._lifecycle.fatal is not None
        return await super().on_tick(counter)


def limit_tokenizer_threads() -> None:
    """Limit the threads of the tokenizer, unless the environment does. They exist from its first use on."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(min(os.cpu_count() or 1, _TOKENIZER_THREADS)))


def _allow_open_files(connections: int) -> None:
    """Allow as many open files as connections need, if the system permits: many systems start with 1024."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = int(_MOST_OVER * connections) + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            note = f"max_connections needs {needed} open files, and the system allows {hard}: raise ulimit -n"
            log(logging.WARNING, "configuration", note=note)


def run(configuration: Configuration) -> int:
    """Serve until a signal comes.

    Returns:
        The exit code: 0 after a signal, 1 if the server could not start.

    Raises:
        RankerError: the model cannot be loaded.
    """
    settings = configuration.settings
    configure(settings.log_level)
    limit_tokenizer_threads()
    _allow_open_files(settings.max_connections)
    _say(configuration)
    lifecycle = Lifecycle(owns_process=True)
    server = make_server(configuration, lifecycle)
    if hasattr(signal, "SIGHUP"):  # Windows has none
        signal.signal(signal.SIGHUP, server.handle_reload)
    try:
        # Bound before anything is loaded, so that a port that is in use is reported at once.
        server.run(sockets=[server.config.bind_socket()])
    except SystemExit:  # uvicorn's way to say that it cannot listen; its log says why
        return 1
    if lifecycle.fatal is None and any(thread.name == LOADING for thread in threading.enumerate()):
        # A signal came while the model was being loaded. Loading cannot be interrupted, and a normal exit of the
        # interpreter would abort inside torch. Worker processes notice that this process has ended.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    if isinstance(lifecycle.fatal, RankerError):
        raise lifecycle.fatal
    if lifecycle.fatal is not None:
        log(logging.ERROR, "the model cannot be loaded", **describe_error(lifecycle.fatal))
        return 1
    return 0


def make_server(configuration: Configuration, lifecycle: Lifecycle) -> Server:
    """Create a server without starting it; its method `serve` runs it in an event loop."""
    settings = configuration.settings
    config = uvicorn.Config(
        create_app(configuration, lifecycle=lifecycle),
        host=settings.host,
        port=settings.port,
        http=type("BoundConnection", (Connection,), {"settings": settings, "idle": {}}),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=max(1, int(settings.drain_timeout)),
    )
    return Server(config, lifecycle, settings)


def _say(configuration: Configuration) -> None:
    """Log what an operator should know about the configuration."""
    settings = configuration.settings
    for note in configuration.notes:
        log(logging.WARNING, "configuration", note=note)
    if settings.demonstration_model:
        log(
            logging.WARNING,
            "configuration",
            note=f"{settings.model} is a demonstration model: choose another one for real use, such as {DEFAULT_MODEL}",
        )
    if not configuration.api_keys and settings.host not in {"127.0.0.1", "::1", "localhost"}:
        log(logging.WARNING, "configuration", note=f"no API key, and other machines can reach {settings.host}")
