"""Put the chat together: store, rules, Tornado handlers, Flask archive.

`chat` is what Gunicorn serves (`wsgi_app = "demo_app.app:chat"`): an async
context manager that yields the application. It runs in each worker, after the
fork and on the loop that serves, so nothing here is shared between processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import tornado.web
from tornado.routing import AnyMatches, PathMatches, Rule, RuleRouter

from demo_app.archive import make_archive
from demo_app.chat import DEFAULT_ROOMS, Chat, Limits, patiently
from demo_app.handlers import AssetHandler, NotFoundHandler, routes
from demo_app.store import Store
from tornado_worker import WSGIContainer, draining

__all__ = ["chat", "make_store"]

HERE = Path(__file__).resolve().parent
TEMPLATES = HERE / "templates"
ARCHIVE_THREADS = 4


def make_store(environ: Mapping[str, str], limits: Limits) -> Store:
    """Choose the store: Redis when CHAT_REDIS_URL is set, else SQLite."""
    if url := environ.get("CHAT_REDIS_URL"):
        # Only here: SQLite users need no Redis client.
        from demo_app.redis_store import RedisStore

        return RedisStore(url, max_rooms=limits.max_rooms, default_rooms=DEFAULT_ROOMS)
    from demo_app.sqlite_store import SqliteStore

    directory = Path(environ.get("CHAT_DATA") or HERE / "data")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return SqliteStore(
        directory / "chat.db", max_rooms=limits.max_rooms, default_rooms=DEFAULT_ROOMS
    )


@contextlib.asynccontextmanager
async def chat() -> AsyncIterator[RuleRouter]:
    """Run the chat of one worker and yield its application."""
    limits = Limits.from_environ(os.environ)
    store = make_store(os.environ, limits)
    room = Chat(store, limits)
    async with room.running():
        # Any worker must understand the cookies that another one made, also
        # after a restart.
        secret = await patiently(lambda: store.shared_value("cookie_secret", secrets.token_hex(32)))
        pages = tornado.web.Application(
            routes(room),
            default_handler_class=NotFoundHandler,
            default_handler_args={"chat": room},
            cookie_secret=secret,
            xsrf_cookies=True,
            xsrf_cookie_kwargs={"samesite": "Strict"},
            template_path=TEMPLATES,
            static_path=HERE / "static",
            static_handler_class=AssetHandler,
            websocket_ping_interval=20,
            websocket_ping_timeout=15,
            websocket_max_message_size=4096,
            compress_response=False,
        )
        stopping = asyncio.create_task(on_draining(room))
        try:
            # Flask and Tornado side by side: each request goes to one of them as
            # it arrives, and Flask's run on threads.
            flask = make_archive(store.archive, str(TEMPLATES), max_exports=ARCHIVE_THREADS - 2)
            archive = WSGIContainer(flask, threads=ARCHIVE_THREADS)
            yield RuleRouter(
                [Rule(PathMatches(r"/archive/.*"), archive), Rule(AnyMatches(), pages)]
            )
        finally:
            stopping.cancel()


async def on_draining(room: Chat) -> None:
    await draining.wait()
    room.drain()
