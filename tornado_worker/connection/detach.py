"""Makes the stream that an application gets for a connection, or for a stream of HTTP/2.

May know exchanges and streams; what is beneath is handed over by what carried the exchange.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

from tornado.iostream import IOStream

from tornado_worker.connection.delivery import ExchangeServer
from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.stream import DetachedTransport, TransportStream
from tornado_worker.connection.stream_state import StreamState

__all__ = ["closed_stream", "make_stream"]


def make_stream(
    server: ExchangeServer,
    exchange: RequestConnection,
    owner: Any,
    transport: DetachedTransport,
    held: bytes,
    state: StreamState,
    waiters: Iterable[asyncio.Future[None]] | None,
    *,
    reading_paused: bool = False,
    writing_paused: bool,
) -> TransportStream:
    """Return a stream over `transport`, of which `held` was read and not used.

    `waiters` are the futures of writes that wait. Tell the observer next.
    """
    observer = server.observer
    stream_class = TransportStream if observer is None else observer.stream_class
    stream = stream_class(
        transport,
        held,
        reading_paused=reading_paused,
        writing_paused=writing_paused,
        max_buffer_size=server.max_buffer_size,
        on_closed=server.on_stream_closed,
        turns=server.turns,
    )
    stream.owner = owner
    stream.adopt_state(state)
    stream.context = exchange.get_context()
    stream.adopt_waiters(waiters)
    return stream


def closed_stream() -> IOStream:
    """Return what `detach` does when the connection has gone already, as Tornado's."""
    stream = IOStream(socket.socket())
    stream.close()
    return stream
