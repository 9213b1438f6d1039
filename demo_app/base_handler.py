"""What all of the chat's handlers share: refusals, cookies, and bounds on bodies.

Knows `Chat` only as what refuses and who its users are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable
from typing import Any

import tornado.web

from demo_app.chat import Chat, Refusal, User
from demo_app.feed import dump
from demo_app.negotiation import PAGE_WORDS, prefers_page
from demo_app.safety import SAFE_HEADERS
from demo_app.store import StoreUnavailable

__all__ = ["AnyHandler", "BaseHandler"]

USER_COOKIE = "chat_user"
USER_DAYS = 365
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
