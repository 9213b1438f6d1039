"""Delivery of a request to the application, whatever protocol brought it.

Tells of its head, waits where the application wants to, finds the answer to its errors, and
tells of an end before the time. May know an exchange and Tornado's interfaces; never bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from tornado import httputil
from tornado.http1connection import _GzipMessageDelegate
from tornado.iostream import StreamClosedError
from tornado.log import app_log

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.interfaces import Server
from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.connection.observer import ExchangeObserver
from tornado_worker.connection.peer import PeerPolicy
from tornado_worker.connection.served import ServedConnection
from tornado_worker.connection.stream import TransportStream
from tornado_worker.logs.guard import guarded

__all__ = ["Delivery", "ExchangeServer", "has_succeeded", "tell_gone"]


class ExchangeServer(Server, Protocol):
    """What connections need of their server to serve exchanges."""

    #: What peers may say about themselves.
    policy: PeerPolicy | None
    #: Is told of exchanges.
    observer: ExchangeObserver | None
    #: Body bytes handed over at once; None: as many as one read brought.
    body_chunk_size: int | None

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Return the application's delegate for a request."""

    def on_connection_made(self, conn: ServedConnection) -> None:
        """Note a connection that has been established."""

    def on_close(self, server_conn: object) -> None:
        """Note that a connection is gone."""

    def on_stream_closed(self, stream: TransportStream) -> None:
        """Note that the connection of a detached exchange is gone."""


def tell_gone(server: ExchangeServer, exchange: RequestConnection) -> None:
    """Tell the application that `exchange` ended before its time, then the observer."""
    exchange.keep_alive = False
    exchange.abandon()
    if server.observer is not None:
        exchange.call_aside(server.observer.exchange_finished, exchange)


def has_succeeded(awaitable: Awaitable[None]) -> bool:
    return (
        isinstance(awaitable, asyncio.Future)
        and awaitable.done()
        and not awaitable.cancelled()
        and awaitable.exception() is None
    )


class Delivery:
    """What hands the body of a request to the application: a connection, or one of its streams.

    A base class without attributes of its own.
    """

    __slots__ = ()

    exchange: RequestConnection | None
    loop: IsolatedLoop

    # For those that build on it

    def _is_whole(self, exchange: RequestConnection) -> bool:
        """Tell whether all of the request has come, and no byte of a body is left to hand over."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _end_reading(self, exchange: RequestConnection) -> None:
        """The request has arrived whole, and its application is told so next."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _end_exchange(self, exchange: RequestConnection) -> None:
        """Request read and response written: go on with what comes next."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _hold_body(self) -> None:
        """Hand over nothing more until `_release_body`."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _release_body(self) -> None:
        """The application goes on: the client was not to blame until now."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _refuse(self, status: int, reason: str, data: bytes = b"") -> None:
        """Answer a message that cannot be served; `data` was read of it last."""
        raise NotImplementedError  # pragma: no cover (abstract)

    def _fail(self, status: int, data: bytes = b"") -> None:
        """Answer `status` or, if a response has begun, cut it short.

        `data` was read of a message that is refused.
        """
        raise NotImplementedError  # pragma: no cover (abstract)

    def _tell_head(
        self,
        server: ExchangeServer,
        server_conn: object,
        exchange: RequestConnection,
        start_line: httputil.RequestStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        """Tell the observer and the application that a request has begun; called in its context.

        If nothing else is to come, tell the application this too.
        """
        if server.observer is not None:
            server.observer.exchange_started(exchange)
        delegate = server.start_request(server_conn, exchange)
        decompress = server.conn_params.decompress
        if decompress:
            headers.pop("X-Consumed-Content-Encoding", None)  # not the client's to say
            delegate = _GzipMessageDelegate(
                delegate, server.conn_params.chunk_size, exchange.max_body_size
            )
        exchange.delegate = delegate
        wait = delegate.headers_received(start_line, headers)
        if decompress:
            # The application may have set it only now.
            delegate._max_body_size = exchange.max_body_size  # type: ignore[attr-defined]
        if wait is None and self._is_whole(exchange):
            self._end_reading(exchange)
            if not exchange.write_finished:
                delegate.finish()
        return wait

    def _wait_for(
        self,
        exchange: RequestConnection,
        awaitable: Awaitable[None],
        proceed: Callable[[], None],
    ) -> None:
        """Read no further until `awaitable` is done, then call `proceed`."""
        future = exchange.ensure_future(awaitable)
        if self.exchange is exchange:
            self._hold_body()

        def on_done(future: asyncio.Future[None]) -> None:
            if future.cancelled():
                error: BaseException | None = asyncio.CancelledError()
            else:
                error = future.exception()
            if error is not None:
                self._on_delegate_error(error, exchange)
                return
            if self.exchange is not exchange:
                return
            self._release_body()
            proceed()

        if future.done():
            on_done(future)
        else:
            self.loop.add_done_callback(future, on_done)

    def _end_request(self, exchange: RequestConnection) -> None:
        """The request has arrived whole: tell the application."""
        delegate = exchange.delegate
        self._end_reading(exchange)
        if not exchange.write_finished:
            assert delegate is not None
            try:
                exchange.call(delegate.finish)
            except Exception as e:
                self._on_delegate_error(e, exchange)
                return
        self._end_if_answered(exchange)

    def _end_if_answered(self, exchange: RequestConnection) -> None:
        if exchange.write_finished and self.exchange is exchange:
            exchange.call_aside(self._end_exchange, exchange)

    def _on_delegate_error(self, error: BaseException, exchange: RequestConnection) -> None:
        if self.exchange is not exchange or exchange.write_finished:
            # Answered before it failed, detached or closed: no place for another
            # answer. The error is still worth a line.
            if not isinstance(
                error, (StreamClosedError, httputil.HTTPInputError, asyncio.CancelledError)
            ):
                exchange.call_aside(guarded, app_log.error, "Uncaught exception", exc_info=error)
            return
        if isinstance(error, httputil.HTTPInputError):
            delegate = exchange.delegate
            oversize = (
                isinstance(delegate, _GzipMessageDelegate)
                and delegate._decompressed_body_size > exchange.max_body_size
            )
            self._refuse(exchange.oversize_status if oversize else 400, str(error))
            return
        if isinstance(error, asyncio.CancelledError):
            self._fail(503)
            return
        if not isinstance(error, StreamClosedError):
            exchange.call_aside(guarded, app_log.error, "Uncaught exception", exc_info=error)
        self._fail(500)
