"""`HTTPServer`: Tornado's HTTPServer on asyncio transports.

Keeps the set of connections, sweeps it for timeouts and drains it; accepting is
the acceptor's. May know http1 and Tornado; never parses a byte and knows nothing
of Gunicorn's worker or of signals.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import sys
from collections.abc import Callable, Iterable
from typing import Any, cast

import tornado.httpserver
from tornado import httputil
from tornado.ioloop import IOLoop
from tornado.log import app_log, gen_log
from tornado.netutil import ssl_options_to_context

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.connection.observer import ExchangeObserver
from tornado_worker.connection.peer import ConnectionContext, PeerPolicy
from tornado_worker.connection.served import ServedConnection
from tornado_worker.connection.stream import TransportStream
from tornado_worker.connection.timeouts import Timeouts
from tornado_worker.connection.turns import Turns
from tornado_worker.http1.connection import ServerConnection
from tornado_worker.http1.proxy_protocol import ProxiedConnection
from tornado_worker.http1.reader import READER_SETTINGS, ReaderOptions, Rules
from tornado_worker.http2.interfaces import HTTP2_SETTINGS, HTTP2Options
from tornado_worker.logs.counted_line import CountedLine
from tornado_worker.logs.guard import guarded
from tornado_worker.server.acceptor import Acceptor, LoadShare
from tornado_worker.server.negotiation import (
    NegotiatingConnection,
    Protocols,
    ProxiedNegotiatingConnection,
)

__all__ = ["HTTPServer"]

_HANDSHAKE_TIMEOUT_S = 60.0
# asyncio's own limit on the end of a TLS connection would cut off slow readers.
_TLS_SHUTDOWN_TIMEOUT_S = 24 * 3600.0


class HTTPServer(tornado.httpserver.HTTPServer):
    """A `tornado.httpserver.HTTPServer` with the same constructor and methods.

    It works inside the worker, alone in a script, and as
    `tornado.httpserver.HTTPServer.configure("tornado_worker.HTTPServer")`.
    Keyword arguments beside Tornado's: those of `ReaderOptions`, and

    - `header_timeout`: seconds a client may take to send one header section;
    - `keepalive_timeout`: seconds a connection may wait for another request;
      `idle_connection_timeout` (Tornado's) unless given;
    - `stall_timeout`: seconds without a byte of progress after which a client
      that stalls in a body, or does not read its response, is cut off;
    - `max_connections`: connections (detached ones too) at which accepting
      pauses until one of them closes; None: no limit;
    - `policy`: what peers may say about themselves; without one, what Tornado
      lets them say;
    - `http_protocols`: `h1`, `h2` or both, in the order of preference for ALPN, as a string
      with commas or a list; over TLS a client that does not choose h2 gets HTTP/1;
    - `http2_cleartext`: how HTTP/2 begins without TLS: `off`, `prior-knowledge`, `upgrade`
      or `both`; for peers that `policy` trusts;
    - those of `HTTP2Options`.
    """

    #: The name of `max_connections` where it is set, for the log.
    limit_name = "max_connections"

    def initialize(
        self,
        request_callback: (
            httputil.HTTPServerConnectionDelegate | Callable[[httputil.HTTPServerRequest], None]
        ),
        no_keep_alive: bool = False,
        xheaders: bool = False,
        ssl_options: dict[str, Any] | ssl.SSLContext | None = None,
        protocol: str | None = None,
        decompress_request: bool = False,
        chunk_size: int | None = None,
        max_header_size: int | None = None,
        idle_connection_timeout: float | None = None,
        body_timeout: float | None = None,
        max_body_size: int | None = None,
        max_buffer_size: int | None = None,
        trusted_downstream: list[str] | None = None,
        *,
        header_timeout: float | None = 60.0,
        keepalive_timeout: float | None = None,
        stall_timeout: float = 60.0,
        max_connections: int | None = None,
        policy: PeerPolicy | None = None,
        http_protocols: str | Iterable[str] = "h1",
        http2_cleartext: str | bool | None = "off",
        **options: Any,
    ) -> None:
        super().initialize(
            request_callback,
            no_keep_alive=no_keep_alive,
            xheaders=xheaders,
            ssl_options=ssl_options,
            protocol=protocol,
            decompress_request=decompress_request,
            chunk_size=chunk_size,
            max_header_size=max_header_size,
            idle_connection_timeout=idle_connection_timeout,
            body_timeout=body_timeout,
            max_body_size=max_body_size,
            max_buffer_size=max_buffer_size,
            trusted_downstream=trusted_downstream,
        )
        size = self.conn_params.max_header_size
        self.protocols = Protocols.read(http_protocols, http2_cleartext)
        http2_options = {name: options.pop(name) for name in HTTP2_SETTINGS if name in options}
        self.http2 = HTTP2Options(**http2_options)
        self.rules = Rules(_reader_options(size, policy, options))
        self.policy = policy
        is_proxied = policy is not None and policy.proxy_protocol != "off"
        self._connection_class: type[ServerConnection] = (
            (ProxiedNegotiatingConnection if is_proxied else NegotiatingConnection)
            if self.protocols.speaks_http2
            else (ProxiedConnection if is_proxied else ServerConnection)
        )
        self.observer: ExchangeObserver | None = None
        self.max_buffer_size: int = max_buffer_size or 104857600  # Tornado's default
        self.max_body_size = self.max_buffer_size if max_body_size is None else max_body_size
        #: Body bytes handed over at once; None: as many as one read brought.
        self.body_chunk_size = chunk_size
        idle = idle_connection_timeout or 3600.0  # Tornado's default
        header = min(idle, header_timeout or idle)
        self.timeouts = Timeouts(
            header=header,
            idle=idle if keepalive_timeout is None else keepalive_timeout,
            stall=stall_timeout,
        )
        self._tls: ssl.SSLContext | None = None
        if self.ssl_options is not None:
            self._tls = (
                self.ssl_options
                if isinstance(self.ssl_options, ssl.SSLContext)
                else ssl_options_to_context(self.ssl_options, server_side=True)
            )
            if self.protocols.speaks_http2:
                self._tls.set_alpn_protocols(self.protocols.alpn)
        self._protocol = protocol or ("https" if self._tls is not None else "http")
        self._trusted_downstream = set(trusted_downstream or ())
        self._connections: set[ServedConnection] = set()  # type: ignore[assignment]
        self._streams: set[TransportStream] = set()
        # Tasks that make connections of accepted sockets.
        self._establish_tasks: dict[asyncio.Task[None], ServedConnection] = {}
        self._unmade_count = 0  # accepted, and not in _connections yet
        self._drain_waiters: list[asyncio.Future[None]] = []
        self._draining = False
        self._loop: IsolatedLoop | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._tls_errors = CountedLine(gen_log.warning)
        self.max_connections = max_connections or sys.maxsize
        self._acceptor = Acceptor(self._on_accepted, self._has_room)
        self._acceptor.limit = f"{self.limit_name} = {max_connections}"

    # Listening

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections on `sockets`, which must listen already, on the current loop."""
        loop = self._use_loop(IOLoop.current())
        for sock in sockets:
            self._acceptor.add(loop, sock)
            # For Tornado's stop().
            self._sockets[sock.fileno()] = sock
            self._handlers[sock.fileno()] = functools.partial(self._acceptor.remove, sock)

    def share_load(self, share: LoadShare) -> None:
        """Accept new connections in fair shares with others on the same sockets."""
        self._acceptor.share = share

    def _use_loop(self, io_loop: IOLoop) -> IsolatedLoop:
        if self._loop is None:
            # As in Tornado, what requests find in their context is what is in the
            # current one now.
            self._loop = IsolatedLoop(io_loop)
            self.turns = Turns(self._loop.call_soon)
            # One finished future, shared by all writes that need not wait.
            self.done: asyncio.Future[None] = self._loop.create_future()
            self.done.set_result(None)
        return self._loop

    def connection_count(self) -> int:
        """Return how many connections are open: in a handshake, HTTP, and detached."""
        return self._unmade_count + len(self._connections) + len(self._streams)

    def exchanges(self) -> list[RequestConnection]:
        """Return the exchanges that are not over."""
        return [exchange for conn in self._connections for exchange in conn.exchanges()]

    def detached_streams(self) -> list[TransportStream]:
        """Return the streams of the connections that applications have detached, and not closed."""
        return list(self._streams)

    def _has_room(self) -> bool:
        return self.connection_count() < self.max_connections

    def _on_accepted(self, sock: socket.socket, address: Any, server_address: Any) -> None:
        assert self._loop is not None
        self._unmade_count += 1
        conn = self._connection_class(self, self._loop, (address, server_address))
        task = self._loop.create_task(self._establish(self._loop, sock, conn, address))
        self._establish_tasks[task] = conn
        self._loop.add_done_callback(task, self._on_established)

    async def _establish(
        self, loop: IsolatedLoop, sock: socket.socket, conn: ServerConnection, address: Any
    ) -> None:
        """Turn a socket accepted from `address` into `conn`; with TLS, after the handshake."""
        try:
            if self._tls is None:
                fd = 0
                await loop.asyncio_loop.connect_accepted_socket(lambda: conn, sock)
            else:
                fd = sock.fileno()
                await loop.asyncio_loop.connect_accepted_socket(
                    lambda: conn,
                    sock,
                    ssl=self._tls,
                    ssl_handshake_timeout=_HANDSHAKE_TIMEOUT_S,
                    ssl_shutdown_timeout=_TLS_SHUTDOWN_TIMEOUT_S,
                )
        except BaseException as e:
            # Broad: whatever it is, the place must be free again.
            if not conn.was_made:
                if isinstance(e, ssl.SSLError):
                    # Any client can have as many of these as it likes.
                    self._tls_errors.tell(loop, "SSL Error on %s %s: %s", fd, address, str(e))
                elif isinstance(e, OSError):
                    gen_log.info("connection from %s failed: %s", address, e)
                sock.close()
                self._unmade_count -= 1
                self._acceptor.room_made()
                # asyncio's frames and the error refer to each other, and keep
                # 260 KB of a failed handshake until the next full collection.
                e.__traceback__ = None
                loop.break_cycles(fd)
            if not isinstance(e, OSError):
                raise

    def _on_established(self, task: asyncio.Task[None]) -> None:
        del self._establish_tasks[task]
        self._check_drained()
        if not task.cancelled():
            task.result()

    # Connections

    def make_context(self, transport: Any, address: Any, server_address: Any) -> ConnectionContext:
        family = transport.get_extra_info("socket").family
        return ConnectionContext(
            address,
            family,
            self._protocol,
            self._trusted_downstream,
            server_address,
            self.policy,
        )

    def on_connection_made(self, conn: ServedConnection) -> None:
        self._unmade_count -= 1
        self._connections.add(conn)
        if self._draining:
            conn.begin_drain()
        if self._sweep_timer is None:
            self._schedule_sweep(conn.loop)

    def on_protocol_changed(self, conn: ServedConnection, successor: ServedConnection) -> None:
        self._connections.discard(conn)
        self._connections.add(successor)
        if self._draining:
            successor.begin_drain()

    def on_close(self, server_conn: object) -> None:
        self._connections.discard(cast(ServedConnection, server_conn))
        self._acceptor.room_made()
        self._check_drained()

    def on_detached(self, conn: ServedConnection, stream: TransportStream) -> None:
        self._connections.discard(conn)
        self._streams.add(stream)

    def on_stream_detached(self, stream: TransportStream) -> None:
        self._streams.add(stream)

    def on_stream_closed(self, stream: TransportStream) -> None:
        self._streams.discard(stream)
        if self.observer is not None:
            stream.call_aside(self.observer.stream_closed, stream)
        self._acceptor.room_made()
        self._check_drained()

    def _schedule_sweep(self, loop: IsolatedLoop) -> None:
        shortest = self.timeouts.shortest()
        interval = min(1.0, max(0.01, shortest / 4))
        self._sweep_timer = loop.call_later(interval, self._sweep, loop)

    def _sweep(self, loop: IsolatedLoop) -> None:
        """Look for what has waited too long: one pass instead of a timer for each."""
        self._sweep_timer = None
        self._end_overdue(loop)
        if self._connections:
            self._schedule_sweep(loop)

    def _end_overdue(self, loop: IsolatedLoop) -> None:
        """End the connections that have waited too long: not now, but soon."""
        now = loop.time()
        suspects = [conn for conn in self._connections if conn.sweep(now) is not None]
        if suspects:
            # Not yet: a process that was stopped, or blocked, finds its timers due before it
            # has read what came meanwhile. Two calls, because the first may come before the
            # loop looks at its sockets.
            loop.call_soon(loop.call_soon, self._end_suspects, loop, suspects)

    def _end_suspects(self, loop: IsolatedLoop, suspects: list[ServedConnection]) -> None:
        now = loop.time()
        for conn in self._connections.intersection(suspects):
            end = conn.sweep(now)
            if end is not None:
                try:
                    end()
                except Exception:
                    # Broad: an observer's, for example. The others are due as well.
                    guarded(app_log.error, "Exception while ending a connection", exc_info=True)

    async def close_all_connections(self) -> None:
        """Close all open connections at once and wait until they are gone.

        Like Tornado's, it leaves WebSockets and other detached streams alone.
        """
        self._cancel_handshakes()
        while self._connections:
            await next(iter(self._connections)).close()

    # Draining

    def begin_drain(self) -> None:
        """Stop accepting; close idle connections, and the others after their response.

        Repeating is safe. A request that is on its way is served: connections
        used within the last second stay open for the rest of that second.
        """
        if self._draining:
            return
        self._draining = True
        if not self._stopped:
            self._acceptor.take_queued()
            self.stop()
        if self._loop is not None:
            for conn in self._connections:
                conn.begin_drain()
            self._end_overdue(self._loop)
            # The next sweep would find those that were used just now, but up to a second later.
            grace = self.timeouts.drain_grace
            self._loop.call_later(grace + 0.01, self._end_overdue, self._loop)
            if self._establish_tasks:
                # No request can be on its way in a handshake that stalls.
                self._loop.call_later(grace, self._cancel_handshakes)

    def _cancel_handshakes(self) -> None:
        for task, conn in list(self._establish_tasks.items()):
            if not conn.was_made:  # else it is one of _connections; uvloop would lose it
                task.cancel()

    async def drained(self) -> None:
        """Return when no connection is left, HTTP or detached."""
        if self._connections or self._streams or self._establish_tasks:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drain_waiters.append(waiter)
            await waiter

    def _check_drained(self) -> None:
        if self._drain_waiters and not (
            self._connections or self._streams or self._establish_tasks
        ):
            waiters, self._drain_waiters = self._drain_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def cut_all(self) -> tuple[int, int]:
        """End every exchange now; return how many got a 503 and how many were cut."""
        self._cancel_handshakes()
        refused = aborted = 0
        for conn in list(self._connections):
            try:
                with_503, without = conn.cut()
            except Exception:
                # Broad: the application hears of it. The others, and its own end, come first.
                guarded(app_log.error, "Exception while ending a connection", exc_info=True)
                with_503, without = 0, 1
            refused += with_503
            aborted += without
        for stream in list(self._streams):
            aborted += 1
            try:
                stream.close()
            except Exception:
                guarded(app_log.error, "Exception while closing a stream", exc_info=True)
        return refused, aborted


def _reader_options(
    max_header_size: int, policy: PeerPolicy | None, given: dict[str, Any]
) -> ReaderOptions:
    """Return what a server's reader enforces, by the arguments `given`.

    Raises TypeError for a name that no option has.
    """
    for name in given:
        if name not in READER_SETTINGS:
            raise TypeError(
                f"unexpected argument {name!r} of HTTPServer: expected one of Tornado's, of its"
                f" own, or {', '.join((*READER_SETTINGS, *HTTP2_SETTINGS))}"
            )
    # A line may fill the head, unless something else is said.
    for name in ("limit_request_line", "limit_request_field_size"):
        if given.get(name) is None:
            given[name] = max_header_size
    return ReaderOptions(
        **given,
        max_header_size=max_header_size,
        special_names=frozenset() if policy is None else policy.special_names,
    )
