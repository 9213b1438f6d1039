"""A connection that the server has detached: its stream, and the client at the other end."""

from __future__ import annotations

import queue
from typing import Any

from helpers.server_thread import Messages, Serve
from helpers.waiting import DEADLINE_S
from tornado_worker.connection.stream import TransportStream

__all__ = ["GET", "KERNEL", "Detached"]

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
#: The client's receive buffer, where a test wants a small one (bytes).
KERNEL = 32 * 1024


class Detached:
    """A server that detaches every request, and one client of it."""

    def __init__(self, serve: Serve, options: dict[str, Any], request: bytes = GET) -> None:
        streams: queue.Queue[TransportStream] = queue.Queue()
        self.logs = serve.logs
        self.server = serve(Messages(on_headers=lambda m: streams.put(m.conn.detach())), **options)
        buffer = KERNEL if "kernel_buffer" in options else None
        self.client = self.server.connect(kernel_buffer=buffer)
        self.client.send(request)
        self.stream = streams.get(timeout=DEADLINE_S)

    def run(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the stream on its loop and await its result."""
        return self.server.run(lambda: getattr(self.stream, method)(*args, **kwargs))

    def start(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the stream and return a future of its result."""

        async def call() -> Any:
            return await getattr(self.stream, method)(*args, **kwargs)

        future = self.server.start(call())
        self.server.turn()
        return future
