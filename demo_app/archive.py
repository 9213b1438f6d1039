"""The room archive, in Flask: search, and export of a whole room as a stream.

Ordinary synchronous code on ordinary threads, in the same process as the long
polls: a search may block its thread and an export may take minutes, and nobody
who waits for a message notices. Reads through `Archive` only.
"""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import flask
from werkzeug.exceptions import HTTPException, ServiceUnavailable

from demo_app.chat import DEFAULT_ROOMS, ROOM
from demo_app.negotiation import PAGE_WORDS, prefers_json
from demo_app.safety import SAFE_HEADERS
from demo_app.store import Archive, Message, StoreUnavailable, UnknownCursor

__all__ = ["make_archive"]

PAGE = 50
MAX_WORDS_CHARACTERS = 200
RETRY_EXPORT_S = 30
FORMATS = {
    "txt": "text/plain; charset=utf-8",
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
}


def when(message: Message) -> datetime:
    return datetime.fromtimestamp(message.sent_at / 1000, UTC)


def txt(messages: list[Message]) -> str:
    lines = []
    for message in messages:
        # Whatever ends a line to an editor or a terminal: what follows it must not
        # pass for a message of its own.
        text = "\n    ".join(message.text.splitlines())
        lines.append(f"[{when(message):%Y-%m-%d %H:%M:%S}] {message.name}: {text}\n")
    return "".join(lines)


def jsonl(messages: list[Message]) -> str:
    return "".join(json.dumps(message.public()) + "\n" for message in messages)


def rows(messages: list[Message]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    for message in messages:
        # A cell that begins like this is a formula to a spreadsheet.
        name, text = (
            "'" + cell if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
            for cell in (message.name, message.text)
        )
        writer.writerow([message.id, when(message).isoformat(), name, text])
    return buffer.getvalue()


WRITERS = {"txt": txt, "jsonl": jsonl, "csv": rows}


def make_archive(archive: Archive, template_folder: str, *, max_exports: int) -> flask.Flask:
    """Make the application. `max_exports` must be less than it has threads.

    An export holds its thread until the client has read all of it: more of them
    are refused, so that clients which stall cannot keep others from searching.
    """
    exports = threading.BoundedSemaphore(max_exports)
    app = flask.Flask(__name__, template_folder=template_folder, static_folder=None)
    app.jinja_env.filters["when"] = when

    @app.after_request
    def add_headers(response: flask.Response) -> flask.Response:
        response.headers.extend(SAFE_HEADERS)
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.errorhandler(HTTPException)
    def on_http_error(error: HTTPException) -> Any:
        status, message = error.code or 500, error.description or error.name
        if message == type(error).description:  # Werkzeug's own words
            message = PAGE_WORDS.get(status, message)
        response: Any = show_error(status, message)
        for name, value in error.get_response().headers:
            if name in ("Retry-After", "Allow", "Location"):
                response.headers[name] = value
        return response

    @app.errorhandler(StoreUnavailable)
    def on_unavailable(error: StoreUnavailable) -> flask.Response:
        return show_error(503, "the store does not answer")

    @app.errorhandler(UnknownCursor)
    def on_bad_cursor(error: UnknownCursor) -> flask.Response:
        return show_error(400, str(error))

    def show_error(status: int, message: str) -> flask.Response:
        if prefers_json(flask.request.headers.get("Accept")):
            response = flask.jsonify(error={"code": "error", "message": message})
        else:
            page = flask.render_template("archive/error.html", status=status, message=message)
            response = flask.Response(page)
        response.status_code = status
        response.headers["Vary"] = "Accept"
        return response

    def check_room(room: str) -> None:
        if not ROOM.fullmatch(room):
            flask.abort(404, "there is no such room")

    @app.get("/archive/")
    def index() -> str:
        found = archive.rooms()
        empty = [name for name in DEFAULT_ROOMS if name not in {room.name for room in found}]
        return flask.render_template("archive/index.html", rooms=found, empty=empty)

    @app.get("/archive/<room>")
    def search(room: str) -> str:
        check_room(room)
        words = flask.request.args.get("q", "").strip()
        if len(words) > MAX_WORDS_CHARACTERS:
            flask.abort(400, f"expected at most {MAX_WORDS_CHARACTERS} characters to search for")
        before = flask.request.args.get("before")
        messages, more = archive.search(room, words, before, PAGE)
        return flask.render_template(
            "archive/room.html",
            room=room,
            words=words,
            messages=messages,
            before=before,
            more=messages[-1].id if more else None,
            formats=FORMATS,
        )

    @app.get("/archive/<room>/export.<format>")
    def export(room: str, format: str) -> flask.Response:
        check_room(room)
        if format not in FORMATS:
            flask.abort(404, f"expected one of {', '.join(FORMATS)}")
        write: Any = WRITERS[format]
        if not exports.acquire(blocking=False):
            raise ServiceUnavailable(
                "other exports are under way; try again in a moment", retry_after=RETRY_EXPORT_S
            )

        def body() -> Iterator[str]:
            if format == "csv":
                yield "id,sent_at,name,text\r\n"
            for messages in archive.export(room):
                yield write(messages)

        response = flask.Response(body(), content_type=FORMATS[format])
        response.call_on_close(exports.release)
        response.headers["Content-Disposition"] = f'attachment; filename="{room}.{format}"'
        # nginx would collect the whole room before it passed it on.
        response.headers["X-Accel-Buffering"] = "no"
        return response

    return app
