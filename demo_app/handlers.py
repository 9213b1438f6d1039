"""The chat's HTTP side: the pages, what programs ask for, and every route.

Knows `Chat` and Tornado, never which store is behind it. Listening is in `listening.py`.
"""

from __future__ import annotations

import os
import time
from typing import Any

import tornado.web

from demo_app.base_handler import AnyHandler, BaseHandler
from demo_app.chat import Chat, Refusal, User
from demo_app.listening import EventsHandler, PollHandler, SocketHandler

__all__ = ["AssetHandler", "NotFoundHandler", "routes"]

HISTORY_LIMIT = 100


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
                "protocols": report.protocols,
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
