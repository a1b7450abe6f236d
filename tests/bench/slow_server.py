"""An HTTP server that answers reranking requests as it is told to, and notes when each request came."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

#: Number of the request -> its answer: (status, further headers, body), or None to drop the connection.
Answer = tuple[int, dict[str, str], bytes]
Behaviour = Callable[[int, int], Awaitable[Answer | None]]


def scores(count: int) -> Answer:
    """A right answer for `count` documents, in the shape of Cohere and Jina."""
    results = [{"index": index, "relevance_score": 1 / (index + 2)} for index in range(count)]
    return 200, {}, json.dumps({"results": results}).encode()


@dataclass
class SlowServer:
    """Runs in a thread of this process, on a real socket.

    Attributes:
        behaviour: called with the number of the request and of its documents.
        came: on `time.monotonic`, when each request was complete.
        bodies: what was sent.
    """

    behaviour: Behaviour
    came: list[float] = field(default_factory=list)
    bodies: list[dict[str, object]] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1"), self._loop
        ).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
                length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
                body = json.loads(await reader.readexactly(int(length.partition(":")[2])))
                number = len(self.came)
                self.came.append(time.monotonic())
                self.bodies.append(body)
                answer = await self.behaviour(number, len(body["documents"]))
                if answer is None:
                    return
                status, headers, content = answer
                lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(content)}"]
                lines += [f"{name}: {value}" for name, value in headers.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client has gone
        finally:
            writer.close()
