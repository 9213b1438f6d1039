"""The aiohttp application, for aiohttp's own Gunicorn worker: hello, JSON and POST."""

from __future__ import annotations

import json

from aiohttp import web

from benchmarks.apps.content import HELLO, RECORDS, describe_process

__all__ = ["app"]


async def hello(request: web.Request) -> web.Response:
    return web.Response(body=HELLO)


async def records(request: web.Request) -> web.Response:
    return web.Response(body=json.dumps(RECORDS).encode(), content_type="application/json")


async def post(request: web.Request) -> web.Response:
    return web.Response(body=str(len(await request.read())).encode())


async def about(request: web.Request) -> web.Response:
    return web.Response(body=json.dumps(describe_process()).encode())


app = web.Application()
app.add_routes(
    [
        web.get("/", hello),
        web.get("/json", records),
        web.post("/post", post),
        web.get("/about", about),
    ]
)
