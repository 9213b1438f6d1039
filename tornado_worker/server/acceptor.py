"""Accepting: from listening sockets to connected ones, as many as there is room for.

Watches listening sockets on the loop, and stops watching them while the server
is full or the process is out of descriptors: the kernel's queue, and other
processes that share the socket, take over. Knows nothing of what is served.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, Protocol

from tornado.ioloop import IOLoop
from tornado.log import gen_log

from tornado_worker.connection.isolation import IsolatedLoop

__all__ = ["Acceptor", "LoadShare"]

# Connections taken per turn of the loop and listener: enough for a burst, few
# enough that open connections and other workers get their turn.
_BATCH = 64
# Connections taken from one queue at the end: more than it holds, fewer than a
# flood of new ones.
_QUEUE_MAX = 4096
# Out of descriptors or memory: how long not to accept (seconds).
_PAUSE_S = 1.0
# How long a process that has more than its share leaves new connections to the others.
_YIELD_S = 0.005
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# A peer that vanished without a word is found by TCP itself after about two
# minutes of silence: seconds of quiet, between probes, and unanswered probes.
_TCP_KEEPALIVE = (
    ("TCP_KEEPIDLE", 60),
    ("TCP_KEEPALIVE", 60),
    ("TCP_KEEPINTVL", 15),
    ("TCP_KEEPCNT", 4),
)


class LoadShare(Protocol):
    """How much of the load is ours, of several processes that accept on one socket."""

    def allowance(self) -> int:
        """Return how many connections to accept at once; 0 when others should."""

    def publish(self) -> None:
        """Tell the others how many connections are open here."""


class Acceptor:
    """Accepts on any number of listening sockets while `has_room()`.

    `on_accepted(connection, peer_address, listener_address)` gets each
    non-blocking connected socket. `room_made()` is to be called when a
    connection has gone.
    """

    def __init__(
        self,
        on_accepted: Callable[[socket.socket, Any, Any], None],
        has_room: Callable[[], bool],
    ) -> None:
        self._on_accepted = on_accepted
        self._has_room = has_room
        self._loop: IsolatedLoop | None = None
        self._listeners: dict[socket.socket, Any] = {}
        self._paused = False
        self._out_of_resources = False
        #: The setting that limits the room and its value, for the log.
        self.limit = ""
        #: None: there is nobody to share with.
        self.share: LoadShare | None = None
        self._yielding = False
        self._turn = False
        # Said once each, not at every turn.
        self._said_full = False
        self._said_out = False

    def add(self, loop: IsolatedLoop, listener: socket.socket) -> None:
        """Accept on `listener`, which listens already."""
        self._loop = loop
        listener.setblocking(False)
        self._listeners[listener] = listener.getsockname()
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            # Set here, inherited by every connection: no call for each.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _TCP_KEEPALIVE:
                if hasattr(socket, name):
                    listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        # Not loop.create_server: it calls listen() again, and so replaces the
        # backlog that was chosen when the socket was made.
        if not self._paused:
            loop.add_handler(listener, self._on_readable, IOLoop.READ)

    def remove(self, listener: socket.socket) -> None:
        """Accept no more on `listener`; repeating is safe."""
        if self._listeners.pop(listener, None) is not None:
            assert self._loop is not None
            self._loop.remove_handler(listener)

    def take_queued(self) -> None:
        """Accept what waits in queues that nobody else would serve, room or not.

        Before the listeners are closed: with SO_REUSEPORT each has a queue of
        its own, and closing it resets the clients in it. (New clients may come
        between the last accept and the close; Linux hands those on to another
        listener if net.ipv4.tcp_migrate_req is set.)
        """
        if not hasattr(socket, "SO_REUSEPORT"):
            return
        for listener, address in list(self._listeners.items()):
            if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
                continue
            for _ in range(_QUEUE_MAX):
                try:
                    conn, peer = listener.accept()
                except ConnectionAbortedError:
                    continue
                except OSError:
                    break  # the queue is empty, or there is nothing to accept with
                conn.setblocking(False)
                self._on_accepted(conn, peer, address)

    def room_made(self) -> None:
        """A connection has gone: accept again if only room was missing."""
        if self.share is not None:
            self.share.publish()
        self._resume_if_possible()

    def _on_readable(self, listener: socket.socket, events: int) -> None:
        share = self.share
        if share is None:
            self._accept_batch(listener, _BATCH)
            return
        # One at least after each pause, whatever the others do or fail to do.
        allowance = max(share.allowance(), self._turn)
        self._turn = False
        if allowance:
            self._accept_batch(listener, allowance)
            share.publish()
        else:
            self._yielding = True
            self._pause()
            assert self._loop is not None
            self._loop.call_later(_YIELD_S, self._take_turn)

    def _accept_batch(self, listener: socket.socket, size: int) -> None:
        for _ in range(size):
            if not self._has_room():
                if not self._said_full:
                    self._said_full = True
                    gen_log.warning(
                        "connection limit reached (%s): accepting again when one closes", self.limit
                    )
                self._pause()
                return
            try:
                conn, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue  # that client gave up in the queue
            except OSError as e:
                if e.errno not in _OUT_OF_RESOURCES:
                    raise
                if not self._said_out:
                    self._said_out = True
                    gen_log.error("cannot accept connections for now: %s", e)
                # The listener stays readable: without a pause the loop would spin.
                self._out_of_resources = True
                self._pause()
                assert self._loop is not None
                self._loop.call_later(_PAUSE_S, self._try_again)
                return
            conn.setblocking(False)
            self._on_accepted(conn, address, self._listeners[listener])
            if listener not in self._listeners:
                return  # stopped by what was accepted

    def _pause(self) -> None:
        self._paused = True
        assert self._loop is not None
        for listener in self._listeners:
            self._loop.remove_handler(listener)

    def _resume(self) -> None:
        self._paused = False
        assert self._loop is not None
        for listener in self._listeners:
            self._loop.add_handler(listener, self._on_readable, IOLoop.READ)

    def _resume_if_possible(self) -> None:
        if self._paused and not self._out_of_resources and not self._yielding and self._has_room():
            self._resume()

    def _try_again(self) -> None:
        self._out_of_resources = False
        self._resume_if_possible()

    def _take_turn(self) -> None:
        self._yielding = False
        self._turn = True
        self._resume_if_possible()
