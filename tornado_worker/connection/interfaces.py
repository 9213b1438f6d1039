"""What a connection needs of its server, whatever it speaks. The interface alone."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from tornado.http1connection import HTTP1ConnectionParameters

from tornado_worker.connection.timeouts import Timeouts
from tornado_worker.connection.turns import Turns

__all__ = ["Server"]


class Server(Protocol):
    """The server of a connection."""

    #: Shares out turns of the loop among its connections.
    turns: Turns
    #: How long connections may wait.
    timeouts: Timeouts
    #: A future that is done, for all writes that need not wait.
    done: asyncio.Future[None]
    #: Bytes that a stream may keep, once a connection is detached.
    max_buffer_size: int
    #: Bytes of a request's body, unless the application says otherwise.
    max_body_size: int
    #: What the same server of Tornado's would have; applications may look at it.
    conn_params: HTTP1ConnectionParameters

    def make_context(self, transport: Any, address: Any, server_address: Any) -> Any:
        """Return the `ConnectionContext` of a connection that has just been made."""
