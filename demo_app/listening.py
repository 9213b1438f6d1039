"""Three ways to listen: long poll, server-sent events, WebSocket.

`PollHandler` is the one to copy: a long poll that survives restarts. All three end, or
answer, when `draining` is set; what a client misses meanwhile stays in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import tornado.web
import tornado.websocket
from tornado.iostream import StreamClosedError

from demo_app.base_handler import BaseHandler
from demo_app.chat import Chat, Refusal, User
from demo_app.feed import Listener, Update, dump
from demo_app.store import StoreUnavailable
from tornado_worker import draining

__all__ = ["EventsHandler", "PollHandler", "SocketHandler"]

POLL_S = 25.0  # shorter than the idle timeouts of proxies (nginx: 60 s)
PING_S = 15.0


class ListenHandler(BaseHandler):
    """What the three ways to listen share."""

    _waiting: asyncio.Future[Any] | None = None
    _gone = False

    async def place(self, room: str) -> tuple[str, User, str, str]:
        """Return what `Chat.listen` needs to know of this client."""
        # A browser that reconnects an EventSource sends where it was.
        cursor = self.request.headers.get("Last-Event-ID") or self.get_argument("after")
        version = self.get_argument("version", "")
        user = self.current_user
        await self.chat.check_place(room, cursor, version)
        return room, user, cursor, version

    @contextlib.contextmanager
    def listen(self, kind: str, place: tuple[str, User, str, str]) -> Iterator[Listener]:
        """Be counted, with the connection that this came on; see `Chat.listen`."""
        request = self.request
        with (
            self.chat.listen(kind, *place) as listener,
            # Of HTTP/2 many requests have the same.
            self.chat.meter.connected(request.version, request.server_connection),
        ):
            yield listener

    async def wait_for(self, update: Any, timeout_s: float) -> Update | None:
        """Wait for an update, until the time is up, the worker drains, or the client goes."""
        if self.has_gone():
            update.close()
            return None
        self._waiting = asyncio.ensure_future(update)
        try:
            return await draining.race(self._waiting, timeout=timeout_s)
        except asyncio.CancelledError:
            if self.has_gone():
                return None
            raise
        finally:
            self._waiting = None

    def has_gone(self) -> bool:
        return self._gone

    def leave(self) -> None:
        self._gone = True
        if self._waiting is not None:
            self._waiting.cancel()

    def count(self, update: Update) -> None:
        self.chat.meter.delivered += update.messages


class PollHandler(ListenHandler):
    """Answer with what lies behind the client's cursor, as soon as there is something.

    When the worker stops the answer comes at once and empty, and the client
    asks again, with the same cursor, wherever it is connected next.
    """

    async def get(self, room: str) -> None:
        place = await self.place(room)
        try:
            wait_s = float(self.get_argument("wait", "inf"))
            if math.isnan(wait_s):  # which min() and max() let through
                raise ValueError
        except ValueError:
            raise Refusal(400, "bad_wait", "expected seconds as wait") from None
        wait_s = min(max(wait_s, 0.0), POLL_S)
        with self.listen("poll", place) as listener:
            update = await self.wait_for(listener.next(), wait_s)
        self.set_header("X-Worker", str(os.getpid()))
        if update is None:
            cursor = place[2]
            self.write_json(
                {
                    "after": cursor,
                    "cursor": cursor,
                    "messages": [],
                    "stopping": draining.is_set(),
                }
            )
        else:
            self.count(update)
            self.write_json(update.body)

    def on_connection_close(self) -> None:
        self.leave()


class EventsHandler(ListenHandler):
    """Server-sent events: one per update, its id the cursor behind it."""

    async def get(self, room: str) -> None:
        place = await self.place(room)
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("X-Accel-Buffering", "no")  # nginx must pass each event on
        hello = f"event: hello\ndata: {dump({'pid': os.getpid()})}\n\n"
        self.write("retry: 500\n" + hello)
        with self.listen("sse", place) as listener:
            try:
                await self.flush()
                while not (self.has_gone() or draining.is_set()):
                    update = await self.wait_for(listener.next(), PING_S)
                    if update is None:
                        self.write(hello)
                    else:
                        self.count(update)
                        self.write(f"id: {update.cursor}\ndata: {update.body}\n\n")
                    # Waits while the client does not read: what it misses stays
                    # in the store, not in our memory.
                    await self.flush()
            except (StreamClosedError, StoreUnavailable):
                return  # the client comes back, and is told what is the matter

    def on_connection_close(self) -> None:
        self.leave()


class SocketHandler(tornado.websocket.WebSocketHandler, ListenHandler):
    """The same updates as WebSocket messages. Messages are posted by POST here, too.

    When the worker stops it closes its WebSockets by itself, with 1001.
    """

    _task: asyncio.Task[None] | None = None

    def initialize(self, chat: Chat) -> None:
        super().initialize(chat)
        self._listening = contextlib.ExitStack()

    async def prepare(self) -> None:
        super().prepare()
        # Before the upgrade, so that a refusal is an HTTP answer.
        if "Upgrade" in self.request.headers:
            place = await self.place(self.path_args[0])
            if self.has_gone():
                raise tornado.web.Finish
            self._listener = self._listening.enter_context(self.listen("websocket", place))
        else:
            raise Refusal(400, "no_websocket", "expected a WebSocket; this is a plain request")

    def open(self, room: str) -> None:
        self.set_nodelay(True)
        self._task = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        try:
            await self._pass_on(self._listener)
        except (tornado.websocket.WebSocketClosedError, StoreUnavailable):
            pass
        finally:
            self._listening.close()
            # Whatever has ended this, the client must learn of it and come back.
            self.close(1011)

    async def _pass_on(self, listener: Listener) -> None:
        hello = dump({"pid": os.getpid()})
        await self.write_message(hello)
        while True:
            try:
                async with asyncio.timeout(PING_S):
                    update = await listener.next()
            except TimeoutError:
                await self.write_message(hello)  # browsers do not show pings to scripts
            else:
                self.count(update)
                await self.write_message(update.body)

    def on_message(self, message: str | bytes) -> None:
        self.close(1003, "this socket only listens")

    def on_finish(self) -> None:
        if self.get_status() != 101:  # no upgrade, so on_close() will not be called
            self._listening.close()

    def on_close(self) -> None:
        self.leave()
        self._listening.close()
        if self._task is not None:
            self._task.cancel()
