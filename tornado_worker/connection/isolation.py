"""Keeps requests apart: nothing of one ever runs in another's context (`contextvars`).

A loop calls everything in a copy of the context in which it was told to, and
transports of asyncio tell it by themselves: in `close`, `write`, `resume_reading`.
Applications call the connection layer from their contexts. So that layer gets no
loop and no transport but the two in here, and calls the application by `RequestTask`
only. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from asyncio.tasks import _enter_task, _leave_task  # see "Extending" in asyncio's documentation
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from tornado.ioloop import IOLoop

__all__ = ["IsolatedLoop", "IsolatedTransport", "RequestTask"]

P = ParamSpec("P")
T = TypeVar("T")


class IsolatedLoop:
    """The part of a loop that connections use; every callback runs in the server's context.

    More exactly in a copy of the context in which this object was made, a new one each
    time: what runs in one, a user's hook for instance, can leave nothing in the next.
    """

    def __init__(self, io_loop: IOLoop) -> None:
        loop: asyncio.AbstractEventLoop = io_loop.asyncio_loop  # type: ignore[attr-defined]
        self._io_loop = io_loop
        #: The loop itself.
        self.asyncio_loop = self._loop = loop
        self._context = contextvars.copy_context()
        #: Returns a copy of the context that no request has touched.
        self.new_context: Callable[[], contextvars.Context] = self._context.copy
        # Methods that call nothing back.
        self.time = loop.time
        self.create_future = loop.create_future
        self.remove_writer = loop.remove_writer
        self.remove_handler = io_loop.remove_handler

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` now, in a context of ours."""
        return self._context.copy().run(function, *args, **kwargs)

    def call_soon(self, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        return self._loop.call_soon(callback, *args, context=self._context.copy())

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, callback, *args, context=self._context.copy())

    def create_task(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self._loop.create_task(coroutine, context=self._context.copy())

    def add_done_callback(
        self, future: asyncio.Future[T], callback: Callable[[Any], object]
    ) -> None:
        future.add_done_callback(callback, context=self._context.copy())

    def break_cycles(self, fd: int) -> None:
        """Do what `IsolatedTransport.break_cycles` does, for one whose TLS handshake failed.

        `fd` was its socket's. Nobody but asyncio has seen it.
        """
        transport = getattr(self._loop, "_transports", {}).get(fd)
        # Another connection may have the number by now.
        if transport is not None and getattr(transport, "_sock", self) is None:
            _break_cycles(transport)

    def add_writer(self, fd: int, callback: Callable[..., object]) -> None:
        self.run(self._loop.add_writer, fd, callback)

    def add_handler(self, fd: Any, handler: Callable[[Any, int], None], events: int) -> None:
        """As Tornado's: `close(all_fds=True)` of its IOLoop finds `fd`."""
        self.run(self._io_loop.add_handler, fd, handler, events)


class IsolatedTransport:
    """A transport whose protocol is always called in contexts of its server's."""

    __slots__ = ("_socket_transport", "_transport", "is_closing", "loop", "write")

    def __init__(self, transport: Any, loop: IsolatedLoop) -> None:
        self._transport = transport
        self.loop = loop
        #: The transport's own method, where that will do: 0.12 us less for each write.
        self.write: Callable[[bytes | memoryview], None] = (
            transport.write
            if _keeps_context(transport)
            else functools.partial(_write_apart, loop.new_context, transport.write)
        )
        # Asked before every write.
        self.is_closing: Callable[[], bool] = transport.is_closing
        # Beneath asyncio's TLS is another transport, which cannot be found any more
        # when the connection is lost.
        protocol = getattr(transport, "_ssl_protocol", None)
        self._socket_transport: Any = getattr(protocol, "_transport", None) or transport

    # Methods after which the loop calls the protocol

    def write_eof(self) -> None:
        self.loop.run(self._transport.write_eof)

    def pause_reading(self) -> None:
        self.loop.run(self._transport.pause_reading)

    def resume_reading(self) -> None:
        self.loop.run(self._transport.resume_reading)

    def set_protocol(self, protocol: Any) -> None:
        self.loop.run(self._transport.set_protocol, protocol)

    def set_read_buffer_limits(self, high: int) -> None:
        """Set how much a transport over TLS holds of what it has read (bytes)."""
        self.loop.run(self._transport.set_read_buffer_limits, high=high)

    def set_write_buffer_limits(self, high: int) -> None:
        self.loop.run(self._transport.set_write_buffer_limits, high=high)

    def close(self) -> None:
        # Once: asyncio's transports over TLS forget their connection at a second close().
        if not self._transport.is_closing():
            self.loop.run(self._transport.close)

    def abort(self) -> None:
        self.loop.run(self._transport.abort)

    # Methods that only return something

    @property
    def carrier(self) -> IsolatedTransport:
        """The transport that has the socket: this one."""
        return self

    def get_extra_info(self, name: str) -> Any:
        return self._transport.get_extra_info(name)

    def get_write_buffer_size(self) -> int:
        size: int = self._transport.get_write_buffer_size()
        return size

    def can_write_eof(self) -> bool:
        """Tell whether it is a plain one: over TLS there are no half-closed connections."""
        return bool(self._transport.can_write_eof())

    def break_cycles(self) -> None:
        """Let a transport whose connection is lost be freed at once.

        asyncio's transports hold bound methods of their own, so that each closed
        connection would wait for the cyclic garbage collector. Fewer collections
        mean fewer pauses for everybody else.
        """
        _break_cycles(self._socket_transport)


def _keeps_context(transport: Any) -> bool:
    """Tell whether it calls its protocol in the context in which it was made, whoever writes.

    uvloop's do, of TCP and Unix sockets. asyncio's do not; the layers of TLS are not relied on.
    """
    kind = type(transport)
    return kind.__module__ == "uvloop.loop" and kind.__name__ in ("TCPTransport", "UnixTransport")


def _write_apart(
    new_context: Callable[[], contextvars.Context],
    write: Callable[[bytes | memoryview], None],
    data: bytes | memoryview,
) -> None:
    new_context().run(write, data)


def _break_cycles(transport: Any) -> None:
    state = getattr(transport, "__dict__", {})  # uvloop's have none, and no cycles
    for name in ("_read_ready_cb", "_write_ready"):
        if name in state:
            state[name] = None


class RequestTask:
    """One request's flow of control: the context and the current task of all that is called for it.

    A base class of what stands for a request; `start_task` comes first. Tornado's own
    server calls applications from a task, and there are agents that tell
    transactions apart by `asyncio.current_task()`. A real task would cost each request
    two turns of the loop. This one is no coroutine's and is not among
    `asyncio.all_tasks()`, but it has a task's methods, as far as they make sense.
    """

    __slots__ = ("_cancel_requests", "_loop", "_task_context", "_task_name")

    def start_task(self, loop: IsolatedLoop) -> None:
        """Begin, in a context that no other request has touched."""
        self._loop = loop
        self._task_context = loop.new_context()
        self._task_name = ""
        self._cancel_requests = 0

    # For the connection layer

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call the application; its calls share the context. Not from inside another call."""
        loop = self._loop.asyncio_loop
        task: Any = self
        outer = None
        try:
            _enter_task(loop, task)
        except RuntimeError:
            # Not from a callback of the loop, as nearly always, but from a task: of
            # TLS, a write may find room for what waits.
            outer = _swap_task(loop, task)
        try:
            return self._task_context.run(function, *args)
        finally:
            _leave_task(loop, task)
            if outer is not None:
                _enter_task(loop, outer)

    def call_aside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it in a copy of the context: also from inside another call of it."""
        loop = self._loop.asyncio_loop
        task: Any = self
        outer = _swap_task(loop, task)
        try:
            return self._task_context.copy().run(function, *args, **kwargs)
        finally:
            _leave_task(loop, task)
            if outer is not None:
                _enter_task(loop, outer)

    def ensure_future(self, awaitable: Awaitable[T]) -> asyncio.Future[T]:
        """Have the application's coroutine run in the context that its calls share."""
        if asyncio.iscoroutine(awaitable):
            loop = self._loop.asyncio_loop
            return loop.create_task(awaitable, context=self._task_context)
        return self.call_aside(asyncio.ensure_future, awaitable)

    def on_cancelled(self) -> None:
        """End the request, if it is not over: somebody has called `cancel`."""
        raise NotImplementedError

    # Of asyncio.Task

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop.asyncio_loop

    def get_context(self) -> contextvars.Context:
        return self._task_context

    def get_coro(self) -> None:
        return None

    def get_stack(self, *, limit: int | None = None) -> list[Any]:
        return []

    def get_name(self) -> str:
        return self._task_name or f"{type(self).__name__}-{id(self):x}"

    def set_name(self, value: object) -> None:
        self._task_name = str(value)

    def done(self) -> bool:
        """Tell whether the request is over."""
        raise NotImplementedError

    def cancel(self, msg: object = None) -> bool:
        """End the request in the next turn of the loop; False if it is over."""
        if self.done():
            return False
        self._cancel_requests += 1
        if self._cancel_requests == 1:
            self._loop.call_soon(self._end_if_cancelled)
        return True

    def cancelling(self) -> int:
        return self._cancel_requests

    def uncancel(self) -> int:
        """Take one call of `cancel` back."""
        self._cancel_requests = max(0, self._cancel_requests - 1)
        return self._cancel_requests

    def _end_if_cancelled(self) -> None:
        if self._cancel_requests:
            self.on_cancelled()


def _swap_task(loop: asyncio.AbstractEventLoop, task: Any) -> Any:
    """Make `task` the current one; return the one that was, or None."""
    outer = asyncio.current_task(loop)
    if outer is not None:
        _leave_task(loop, outer)
    _enter_task(loop, task)
    return outer
