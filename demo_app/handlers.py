"""The chat's HTTP side: pages, posting, and three ways to listen.

`PollHandler` is the one to copy: a long poll that survives restarts. These
handlers know `Chat` and Tornado, never which store is behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import time
from collections.abc import Awaitable
from typing import Any

import tornado.web
import tornado.websocket
from tornado.iostream import StreamClosedError

from demo_app.chat import Chat, Refusal, User
from demo_app.feed import Listener, Update, dump
from demo_app.negotiation import PAGE_WORDS, prefers_page
from demo_app.safety import SAFE_HEADERS
from demo_app.store import StoreUnavailable
from tornado_worker import draining

__all__ = ["routes"]

POLL_S = 25.0  # shorter than the idle timeouts of proxies (nginx: 60 s)
PING_S = 15.0
USER_COOKIE = "chat_user"
USER_DAYS = 365
HISTORY_LIMIT = 100
MAX_BODY_BYTES = 64 * 1024


def set_safe_headers(handler: tornado.web.RequestHandler) -> None:
    for name, value in SAFE_HEADERS.items():
        handler.set_header(name, value)


class AnyHandler(tornado.web.RequestHandler):
    """What refusals and failures look like, of pages, programs' answers and files alike."""

    def set_default_headers(self) -> None:
        # Of errors, too.
        set_safe_headers(self)
        self.set_header("Cache-Control", "no-store")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        code, message, retry_after = "error", self._reason, None
        if isinstance(error, Refusal):
            code, message, retry_after = error.code, error.message, error.retry_after_s
        elif isinstance(error, StoreUnavailable):
            code, message, retry_after = "unavailable", "the store does not answer", 1.0
        elif (
            isinstance(error, tornado.web.HTTPError) and "xsrf" in (error.log_message or "").lower()
        ):
            code, message = "xsrf", "the page is out of date or the request is not from it"
        elif isinstance(error, tornado.web.MissingArgumentError):
            code, message = "missing_argument", str(error.log_message)
        if retry_after is not None:
            self.set_header("Retry-After", str(math.ceil(retry_after)))
        self.set_header("Vary", "Accept")
        if prefers_page(self.request.headers.get("Accept")):
            if code == "error":
                message = PAGE_WORDS.get(status_code, message)
            self.render("error.html", status=status_code, message=message)
        else:
            self.set_header("Content-Type", "application/json; charset=utf-8")
            self.finish(dump({"error": {"code": code, "message": message}}))


@tornado.web.stream_request_body
class BaseHandler(AnyHandler):
    """Who is asking, what is no error, and small bodies.

    Bodies are streamed so that a large one is refused before it is read.
    """

    chat: Chat

    def initialize(self, chat: Chat) -> None:
        self.chat = chat

    def prepare(self) -> Awaitable[None] | None:
        declared = self.request.headers.get("Content-Length", "0")
        if int(declared) > MAX_BODY_BYTES:
            raise Refusal(
                413, "body_too_large", f"expected at most {MAX_BODY_BYTES} bytes; got {declared}"
            )
        # One without a declared length the server cuts off when it has grown so far.
        connection: Any = self.request.connection
        connection.set_max_body_size(MAX_BODY_BYTES)
        self._pieces: list[bytes] = []
        return None

    def data_received(self, chunk: bytes) -> None:
        self._pieces.append(chunk)

    def json_body(self) -> dict[str, Any]:
        try:
            body = json.loads(b"".join(self._pieces))
        except (ValueError, RecursionError):
            raise Refusal(400, "bad_json", "expected a JSON object") from None
        if not isinstance(body, dict):
            raise Refusal(400, "bad_json", "expected a JSON object")
        return body

    def get_current_user(self) -> User:
        cookie = self.get_signed_cookie(USER_COOKIE, max_age_days=USER_DAYS)
        if cookie is not None:
            return User(**json.loads(cookie))
        user = User.new()
        self.remember(user)
        return user

    def remember(self, user: User) -> None:
        value = json.dumps({"id": user.id, "name": user.name})
        self.set_signed_cookie(
            USER_COOKIE,
            value,
            expires_days=USER_DAYS,
            httponly=True,
            samesite="Lax",
            secure=self.request.protocol == "https",
        )

    def compute_etag(self) -> None:
        return None  # nothing here is fetched twice

    def write_json(self, body: Any) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(body if isinstance(body, str) else dump(body))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        # A refusal is an answer, not an error of the application.
        if not isinstance(value, (Refusal, StoreUnavailable)):
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, Refusal):
            status_code = error.status
        elif isinstance(error, StoreUnavailable):
            status_code = 503
        super().send_error(status_code, **kwargs)


class HomeHandler(BaseHandler):
    def get(self) -> None:
        self.redirect("/rooms/lobby")


class PageHandler(BaseHandler):
    def get(self, room: str) -> None:
        self.chat.check_room(room)
        self.xsrf_token  # noqa: B018  # sets the cookie, which the script reads
        self.current_user  # noqa: B018  # likewise
        self.render("chat.html", room=room, limits=self.chat.limits)


class MeHandler(BaseHandler):
    """Who I am; a new name; and, for a page whose cookies are gone, new cookies."""

    def get(self) -> None:
        self.xsrf_token  # noqa: B018
        self.answer(self.current_user)

    def post(self) -> None:
        user = self.chat.rename(self.current_user, self.json_body().get("name"))
        self.remember(user)
        self.answer(user)

    def answer(self, user: User) -> None:
        self.write_json({"id": user.id, "name": user.name})


class RoomsHandler(BaseHandler):
    async def get(self) -> None:
        self.write_json({"rooms": await self.chat.rooms()})


class HistoryHandler(BaseHandler):
    async def get(self, room: str) -> None:
        try:
            limit = min(max(int(self.get_argument("limit", "50")), 1), HISTORY_LIMIT)
        except ValueError:
            raise Refusal(400, "bad_limit", "expected a number as limit") from None
        history = await self.chat.history(room, self.get_argument("before", None), limit)
        self.write_json(
            {
                "messages": [message.public() for message in history.messages],
                "cursor": history.cursor,
                "more": history.more,
            }
        )


class MessagesHandler(BaseHandler):
    async def post(self, room: str) -> None:
        body = self.json_body()
        posted = await self.chat.post(
            room, self.current_user, body.get("text"), body.get("client_id")
        )
        self.set_status(201 if posted.is_new else 200)
        self.write_json(posted.message.public())


class TypingHandler(BaseHandler):
    def post(self, room: str) -> None:
        self.chat.type(room, self.current_user)
        self.set_status(204)


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
        with self.chat.listen("poll", *place) as listener:
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
        with self.chat.listen("sse", *place) as listener:
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
            listener = self.chat.listen("websocket", *place)
            self._listener = self._listening.enter_context(listener)
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


class StatusHandler(BaseHandler):
    def get(self) -> None:
        self.render("status.html")


class StatusDataHandler(BaseHandler):
    def get(self) -> None:
        now = time.time()
        workers = [
            {
                "id": report.id,
                "pid": report.pid,
                "host": report.host,
                "state": report.state,
                "age_s": round(now - report.started_at, 1),
                "listening": report.listening,
                "posted_per_s": report.posted_per_s,
                "delivered_per_s": report.delivered_per_s,
                "loop_delay_ms": report.loop_delay_ms,
                "loop_delay_max_ms": report.loop_delay_max_ms,
                "people": sum(len(people) for people in report.people.values()),
            }
            for report in sorted(self.chat.reports, key=lambda r: (r.started_at, r.id))
        ]
        self.write_json({"pid": os.getpid(), "workers": workers})


class HealthHandler(BaseHandler):
    """200 when the store answers: for load balancers and container checks."""

    async def get(self) -> None:
        self.write_json({"head": await self.chat.store.head()})


@tornado.web.stream_request_body
class AssetHandler(AnyHandler, tornado.web.StaticFileHandler):
    def prepare(self) -> None:
        if self.request.method not in ("GET", "HEAD"):
            raise tornado.web.HTTPError(405)

    def data_received(self, chunk: bytes) -> None:
        pass  # of a GET that has a body, which means nothing

    def set_extra_headers(self, path: str) -> None:
        if "v" not in self.request.arguments:
            # A module that another one imports by its plain name: after an upgrade
            # the two must still fit together.
            self.set_header("Cache-Control", "no-cache")


class NotFoundHandler(BaseHandler):
    def prepare(self) -> None:
        raise tornado.web.HTTPError(404)

    def check_xsrf_cookie(self) -> None:
        pass  # a wrong address is 404, whoever asks


def routes(chat: Chat) -> list[Any]:
    with_chat = {"chat": chat}
    room = r"/api/rooms/([^/]+)"
    return [
        (r"/", HomeHandler, with_chat),
        (r"/rooms/([^/]+)", PageHandler, with_chat),
        (r"/api/me", MeHandler, with_chat),
        (r"/api/rooms", RoomsHandler, with_chat),
        (room + "/history", HistoryHandler, with_chat),
        (room + "/messages", MessagesHandler, with_chat),
        (room + "/typing", TypingHandler, with_chat),
        (room + "/poll", PollHandler, with_chat),
        (room + "/events", EventsHandler, with_chat),
        (room + "/socket", SocketHandler, with_chat),
        (r"/status", StatusHandler, with_chat),
        (r"/api/status", StatusDataHandler, with_chat),
        (r"/health", HealthHandler, with_chat),
    ]
