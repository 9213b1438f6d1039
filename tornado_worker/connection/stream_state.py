"""Settings that applications make on `request.connection.stream` while HTTP has the connection.

Connections keep it, views of them change it, and the stream that `detach()` makes takes
it over; none of them is known here.
"""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Callable
from typing import NamedTuple, Protocol

from tornado.iostream import StreamBufferFullError

from tornado_worker.connection.isolation import IsolatedLoop

__all__ = ["CloseCallback", "StreamState"]


class CloseCallback(NamedTuple):
    function: Callable[[], None]
    context: contextvars.Context


class DetachedStream(Protocol):
    """The stream that `detach()` has made of a connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As of an `asyncio.Protocol`: the transport is gone."""


class StreamState:
    """The settings that applications have made on the stream of a connection that HTTP has.

    It stays with the connection, whose views come and go, and goes over to the stream
    that `detach()` makes of it.
    """

    __slots__ = (
        "_detached",
        "close_callback",
        "error",
        "max_buffer_size",
        "max_write_buffer_size",
    )

    def __init__(self) -> None:
        self.close_callback: CloseCallback | None = None
        # Weak: with TLS the PieceReader keeps the connection, and this, as long as the stream.
        self._detached: weakref.ref[DetachedStream] | None = None
        self.error: BaseException | None = None
        self.max_buffer_size: int | None = None
        self.max_write_buffer_size: int | None = None

    @property
    def detached(self) -> DetachedStream | None:
        """The stream that `detach()` has made of the connection, while there is one."""
        return None if self._detached is None else self._detached()

    def check_write(self, waiting: int, size: int) -> None:
        """Raise StreamBufferFullError if `size` bytes behind `waiting` are too many."""
        limit = self.max_write_buffer_size
        if limit is not None and waiting + size > limit:
            raise StreamBufferFullError("Reached maximum write buffer size")

    def on_detached(self, stream: DetachedStream) -> None:
        self.close_callback = None
        self._detached = weakref.ref(stream)

    def on_connection_lost(self, loop: IsolatedLoop, exc: BaseException | None) -> None:
        self.error = self.error or exc
        callback, self.close_callback = self.close_callback, None
        if callback is not None:
            # In the context in which it was set, not in that of the call that closes.
            loop.call_soon(callback.context.run, callback.function)
