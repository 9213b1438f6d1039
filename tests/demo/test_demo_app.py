"""The chat over HTTP: its rules, its refusals, and what a restart looks like.

A real Gunicorn with the shipped configuration; sees the wire only. What needs a
browser is in test_demo_browser.py, what needs many clients in test_demo_consistency.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import re
import signal
import socket
import sqlite3
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo_app.chat import Limits
from demo_app.sqlite_store import SqliteStore
from demo_app.store import Draft
from helpers.demo_client import WAYS, ChatClient
from helpers.demo_process import CONFIG, free_port, need_module, run_redis, start_chat
from helpers.gunicorn_process import GunicornProcess
from helpers.waiting import eventually, read_all

TIMEOUT_S = 40.0
LONG_ENOUGH = "client-id-"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GunicornProcess]:
    """One chat for all tests that do not restart it; each takes a room of its own."""
    directory = tmp_path_factory.mktemp("chat")
    started: list[GunicornProcess] = []

    def start(**kwargs: Any) -> GunicornProcess:
        started.append(GunicornProcess(directory, **kwargs).start())
        return started[-1]

    try:
        yield start_chat(start, directory / "data", env={"CHAT_MAX_LISTENING": "12"})
    finally:
        for process in started:
            process.close()
            print(process.log)


@pytest.fixture
def room(request: pytest.FixtureRequest) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_"))
    return f"{name[:22].strip('-')}-{abs(hash(request.node.name)) % 10**6}"


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await coroutine

    asyncio.run(main())


@contextlib.asynccontextmanager
async def joined(
    server: GunicornProcess, room: str = "lobby", count: int = 1
) -> AsyncIterator[list[ChatClient]]:
    clients = [ChatClient(server.url, room) for _ in range(count)]
    try:
        await asyncio.gather(*(client.join() for client in clients))
        yield clients
    finally:
        for client in clients:
            await client.close()


@contextlib.asynccontextmanager
async def listening(client: ChatClient, way: str) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(client.listen(way))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def texts(client: ChatClient) -> list[str]:
    return [message["text"] for message in client.messages]


# -- pages ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/rooms/lobby",
        "/status",
        "/archive/",
        "/archive/lobby",
        "/archive/NO",
        "/api/me",
        "/nowhere",
        "/static/nowhere",
    ],
)
def test_every_answer_has_the_safe_headers(server: GunicornProcess, path: str) -> None:
    response = server.request(path)
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"


def test_home_leads_to_the_lobby(server: GunicornProcess) -> None:
    response = server.request("/")
    assert (response.status, response.headers["Location"]) == (302, "/rooms/lobby")


def test_page_has_nothing_inline(server: GunicornProcess) -> None:
    page = server.request("/rooms/lobby").text
    assert re.findall(r"<script(?![^>]* src=)|\son\w+=|\sstyle=|javascript:", page) == []
    for address in re.findall(r'(?:src|href)="(/static/[^"#]+)', page):
        assert server.request(address).status == 200


def test_bad_room_is_refused_in_words(server: GunicornProcess) -> None:
    response = server.request("/rooms/%3Cscript%3E")
    assert response.status == 400
    assert json.loads(response.body)["error"]["code"] == "bad_room"


# What browsers say when they open an address, and what scripts and programs say.
ACCEPT_PAGE = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
ACCEPT_OTHER = (
    None,
    "*/*",
    "application/json",
    "text/event-stream",
    "text/html;q=0.5, application/json",
    ";;,",
)
ERRORS = [
    ("GET", "/nowhere", 404, "there is no such page"),
    ("GET", "/api/nowhere", 404, "there is no such page"),
    ("GET", "/static/nowhere", 404, "there is no such page"),
    ("GET", "/static/../app.py", 403, "this is not allowed from here"),
    ("GET", "/rooms/NO", 400, "a room's name has"),
    ("GET", "/api/rooms/lobby/history?before=x", 400, "cursor"),
    ("GET", "/api/rooms/lobby/socket?after=0", 400, "expected a WebSocket"),
    ("GET", "/api/rooms/lobby/poll?after=x", 410, "cursor"),
    ("POST", "/api/me", 403, "the page is out of date"),
    ("POST", "/rooms/lobby", 403, "the page is out of date"),
    ("PUT", "/static/chat.js", 403, "the page is out of date"),
    ("DELETE", "/status", 403, "the page is out of date"),
    ("GET", "/api/rooms/lobby/messages", 405, "cannot be used like that"),
]


@pytest.mark.parametrize(("method", "path", "status", "words"), ERRORS)
def test_error_is_a_page_for_people_and_json_for_programs(
    server: GunicornProcess, method: str, path: str, status: int, words: str
) -> None:
    response = server.request(path, method, headers={"Accept": ACCEPT_PAGE})
    assert response.status == status
    assert response.headers["Content-Type"] == "text/html; charset=UTF-8"
    assert f"<h1>{status}</h1>" in response.text
    text = html.unescape(response.text)
    assert words in text or words[:1].upper() + words[1:] in text
    assert 'href="/rooms/lobby"' in response.text
    assert "Accept" in response.headers["Vary"]
    for accept in ACCEPT_OTHER:
        fields = {} if accept is None else {"Accept": accept}
        response = server.request(path, method, headers=fields)
        assert response.status == status
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        assert json.loads(response.body)["error"]["message"]
        assert "Accept" in response.headers["Vary"]


def test_error_of_the_archive_is_json_for_those_who_ask_for_it(server: GunicornProcess) -> None:
    for path, status in (("/archive/NO", 404), ("/archive/a/b", 404), ("/archive/lobby", 405)):
        method = "PUT" if status == 405 else "GET"
        for accept in (ACCEPT_PAGE, "*/*", "text/plain"):
            response = server.request(path, method, headers={"Accept": accept})
            assert response.status == status
            assert response.headers["Content-Type"].startswith("text/html")
            assert f"<h1>{status}</h1>" in response.text
        response = server.request(path, method, headers={"Accept": "application/json"})
        assert response.status == status
        assert json.loads(response.body)["error"]["message"]
        assert response.headers["Vary"] == "Accept"
    assert "GET" in response.headers["Allow"]


BREAK = """
def post_worker_init(worker):
    from demo_app import handlers

    def fail(self):
        raise ZeroDivisionError

    handlers.StatusHandler.get = handlers.StatusDataHandler.get = fail
"""


def test_failure_is_a_page_for_people_and_json_for_programs(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    config = tmp_path / "broken.py"
    config.write_text(CONFIG.read_text().replace("__file__", repr(str(CONFIG))) + BREAK)
    server = start_chat(gunicorn, tmp_path / "data", workers=1, args=["-c", str(config)])
    for path in ("/status", "/api/status"):
        page = server.request(path, headers={"Accept": ACCEPT_PAGE})
        assert page.status == 500
        assert "Something went wrong here" in page.text
        assert "ZeroDivisionError" not in page.text
        response = server.request(path)
        assert response.status == 500
        assert json.loads(response.body)["error"]["message"] == "Internal Server Error"


def test_cookies_are_closed_to_scripts_but_the_xsrf_token(server: GunicornProcess) -> None:
    cookies = server.request("/rooms/lobby").headers.get_all("Set-Cookie") or []
    by_name = {cookie.partition("=")[0]: cookie.lower() for cookie in cookies}
    assert "httponly" in by_name["chat_user"] and "samesite=lax" in by_name["chat_user"]
    assert "samesite=strict" in by_name["_xsrf"]


# -- posting -------------------------------------------------------------------


def test_post_is_acknowledged_with_what_was_stored(server: GunicornProcess, room: str) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,):
            text = "<img src=x onerror=alert(1)> & ünïcödé 👋\nsecond line"
            body = {"text": f"  {text}\r\n", "client_id": "client-id-1"}
            path = f"/api/rooms/{room}/messages"
            first = await client.fetch(path, body)
            assert first.status == 201
            message = first.json()
            assert message["text"] == text
            assert (message["author"], message["name"]) == (client.id, client.name)
            # Again, as after a lost answer: stored once.
            again = await client.fetch(path, body)
            assert (again.status, again.json()) == (200, message)
            history = await client.ask(f"/api/rooms/{room}/history")
            assert history["messages"] == [message]
            # The same id for something else is a mistake.
            other = await client.fetch(path, {**body, "text": "other"})
            assert (other.status, other.json()["error"]["code"]) == (409, "conflict")

    run(test())


@pytest.mark.parametrize("token", ["", "2|00000000|0|0", "made-up"])
def test_post_without_the_right_token_is_refused(
    server: GunicornProcess, room: str, token: str
) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,):
            client.xsrf = token
            for path in (f"/api/rooms/{room}/messages", f"/api/rooms/{room}/typing", "/api/me"):
                response = await client.fetch(path, {"text": "x", "client_id": "client-id-1"})
                assert (response.status, response.json()["error"]["code"]) == (403, "xsrf")
            assert (await client.ask(f"/api/rooms/{room}/history"))["messages"] == []

    run(test())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "bad_text"),
        ([], 400, "bad_json"),
        ({"text": 5}, 400, "bad_text"),
        ({"text": " \n "}, 400, "empty_text"),
        ({"text": "x" * 2001}, 413, "text_too_long"),
        ({"text": "a\x00b"}, 400, "bad_text"),
        ({"text": "a\x1b[31mb"}, 400, "bad_text"),
        ({"text": "a\x9b31mb"}, 400, "bad_text"),
        ({"text": "\u200b"}, 400, "empty_text"),
        ({"text": "\ufeff \u3164\u0301"}, 400, "empty_text"),
        ({"text": "\ud800"}, 400, "bad_text"),
        ({"text": "x"}, 400, "bad_client_id"),
        ({"text": "x", "client_id": "short"}, 400, "bad_client_id"),
        ({"text": "x", "client_id": "<client-id>"}, 400, "bad_client_id"),
        ({"text": "x" * 70_000}, 413, "body_too_large"),
    ],
)
def test_bad_post_is_refused_in_words(
    server: GunicornProcess, room: str, body: Any, status: int, code: str
) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,):
            response = await client.fetch(f"/api/rooms/{room}/messages", body)
            error = response.json()["error"]
            assert (response.status, error["code"]) == (status, code)
            assert len(error["message"]) > 10
            assert (await client.ask(f"/api/rooms/{room}/history"))["messages"] == []

    run(test())


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/me", 413),
        ("/rooms/lobby", 413),
        ("/status", 413),
        ("/api/rooms/lobby/poll", 413),
        ("/api/rooms/lobby/socket", 413),
        ("/nowhere", 404),
        ("/static/chat.js", 405),
        ("/archive/lobby", 405),
    ],
)
def test_large_body_is_refused_before_it_is_sent(
    server: GunicornProcess, path: str, status: int
) -> None:
    async def test() -> None:
        async with joined(server) as (client,):
            with server.connect() as sock:
                sock.sendall(
                    (
                        f"POST {path} HTTP/1.1\r\nHost: x\r\nCookie: {client.cookie}\r\n"
                        f"X-Xsrftoken: {client.xsrf}\r\nContent-Length: 100000000\r\n\r\n"
                    ).encode()
                )
                answer = sock.recv(65536)
                assert answer.startswith(f"HTTP/1.1 {status} ".encode())

    run(test())


def test_large_body_without_length_is_cut_off(server: GunicornProcess) -> None:
    async def test() -> None:
        async with joined(server) as (client,):
            with server.connect() as sock:
                sock.sendall(
                    (
                        f"POST /api/me HTTP/1.1\r\nHost: x\r\nCookie: {client.cookie}\r\n"
                        f"X-Xsrftoken: {client.xsrf}\r\nTransfer-Encoding: chunked\r\n\r\n"
                    ).encode()
                )
                with contextlib.suppress(OSError):
                    for _ in range(1000):
                        sock.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                answer = b""
                with contextlib.suppress(OSError):
                    while piece := sock.recv(65536):
                        answer += piece
                assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
        assert server.request("/health").status == 200

    run(test())


def test_name_is_changed_for_later_messages(server: GunicornProcess, room: str) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,):
            for name, code in [
                ("", "bad_name"),
                (7, "bad_name"),
                ("x" * 33, "name_too_long"),
                ("\u202etxt", "bad_name"),
                ("a\nb\x00", "bad_name"),
                ("a\x85b", "bad_name"),
                ("\u200d", "bad_name"),
                ("\ufe0f", "bad_name"),
                ("\u0301\u0301", "bad_name"),
                ("\u3164 \u2800", "bad_name"),
            ]:
                response = await client.fetch("/api/me", {"name": name})
                assert (response.status, response.json()["error"]["code"]) == (400, code)
            for name in ("נעמי", "Zoë", "Zoe\u0308", "👩\u200d💻", "1\ufe0f\u20e3", "नीता"):
                response = await client.fetch("/api/me", {"name": name})
                assert (response.status, response.json()["name"]) == (200, name)
            response = await client.fetch("/api/me", {"name": "  Ada \n Lovelace "})
            assert response.json() == {"id": client.id, "name": "Ada Lovelace"}
            cookie = response.headers["Set-Cookie"].partition(";")[0]
            client.cookie = "; ".join(
                [cookie, *(c for c in client.cookie.split("; ") if c.startswith("_xsrf"))]
            )
            assert (await client.post("x", "client-id-1"))["name"] == "Ada Lovelace"

    run(test())


# -- listening -----------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_message_reaches_a_waiting_client(server: GunicornProcess, room: str, way: str) -> None:
    async def test() -> None:
        async with joined(server, room, 2) as (one, two), listening(one, way):
            await until(lambda: one.state)
            sent = [await two.post(f"text {n}", f"{LONG_ENOUGH}{n}") for n in range(20)]
            await until(lambda: len(one.messages) == 20)
            assert one.messages == sent

    run(test())


@pytest.mark.parametrize("way", WAYS)
def test_client_far_behind_catches_up(server: GunicornProcess, room: str, way: str) -> None:
    async def test() -> None:
        async with joined(server, room, 2) as (late, writer):
            for n in range(250):
                await writer.post(f"text {n}", f"{LONG_ENOUGH}{n}")
            async with listening(late, way):
                await until(lambda: len(late.messages) >= 250)
            assert texts(late) == [f"text {n}" for n in range(250)]

    run(test())


def test_poll_waits_no_longer_than_asked(server: GunicornProcess, room: str) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,):
            await client.poll()  # learns the room's state
            began = time.monotonic()
            while True:
                response = await client.fetch(client.path("poll") + "&wait=0.2")
                body = response.json()
                client.accept(body)
                if "state" not in body:
                    break
            assert body == {
                "after": client.cursor,
                "cursor": client.cursor,
                "messages": [],
                "stopping": False,
            }
            assert time.monotonic() - began < 10

    run(test())


def test_last_event_id_counts_more_than_the_address(server: GunicornProcess, room: str) -> None:
    async def test() -> None:
        async with joined(server, room, 2) as (client, writer):
            one = await writer.post("one", "client-id-1")
            await writer.post("two", "client-id-2")
            path = f"/api/rooms/{room}/poll?after={client.cursor}"
            messages: list[dict[str, Any]] = []
            # A worker that has not heard of them yet tells of the room's state alone.
            while not messages:
                response = await client.fetch(path, Last_Event_ID=one["id"])
                messages = response.json()["messages"]
            assert [message["text"] for message in messages] == ["two"]

    run(test())


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "missing_argument"),
        ("after=x", 410, "unknown_cursor"),
        ("after=99999999", 410, "unknown_cursor"),
        ("after=1700000000000-0", 410, "unknown_cursor"),
        ("after=0&version=zzz", 400, "bad_version"),
        ("after=0&wait=x", 400, "bad_wait"),
        ("after=0&wait=nan", 400, "bad_wait"),
    ],
)
def test_listening_from_no_place_is_refused(
    server: GunicornProcess, query: str, status: int, code: str
) -> None:
    ways = ["poll", "events"] if code != "bad_wait" else ["poll"]
    for way in ways:
        response = server.request(f"/api/rooms/lobby/{way}?{query}")
        assert (response.status, json.loads(response.body)["error"]["code"]) == (status, code)


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_websocket_from_another_site_is_refused(server: GunicornProcess) -> None:
    headers = {**UPGRADE, "Origin": "https://evil.example"}
    assert server.request("/api/rooms/lobby/socket?after=0", headers=headers).status == 403


@pytest.mark.parametrize(
    ("way", "fields", "accepted"), [("events", {}, 200), ("socket", UPGRADE, 101)]
)
def test_one_person_cannot_take_all_connections(
    server: GunicornProcess, room: str, way: str, fields: dict[str, str], accepted: int
) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,):
            # Two workers, twelve each.
            streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(30)]
            statuses = await asyncio.gather(
                *(client._ask(pair, client.path(way), None, fields) for pair in streams)
            )
            counts = [status for status, _ in statuses]
            assert accepted in counts and 429 in counts
            assert counts.count(accepted) <= 24
            refused = next(headers for status, headers in statuses if status == 429)
            assert refused["Retry-After"] == "10"
            for _, writer in streams:
                writer.close()
                await writer.wait_closed()

    run(test())


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({**UPGRADE, "Origin": "https://evil.example"}, 403),
        ({**UPGRADE, "Sec-WebSocket-Version": "7"}, 426),
        (UPGRADE, 101),
    ],
)
def test_websocket_that_is_refused_or_lost_takes_no_place(
    server: GunicornProcess, room: str, fields: dict[str, str], status: int
) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,):
            # More than there is room for, in both workers; the next one comes
            # when the one before is forgotten.
            for _ in range(30):
                found = 429
                while found == 429:
                    pair = await client._open()
                    found, _ = await client._ask(pair, client.path("socket"), None, fields)
                    pair[1].close()
                    await pair[1].wait_closed()
                assert found == status

    run(test())


def test_request_to_a_socket_that_is_none_is_refused_without_a_trace(
    server: GunicornProcess, room: str
) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,):
            mark = server.mark()
            path = client.path("socket")
            assert (await client.fetch(path)).status == 400
            assert (await client.fetch(path, {"text": "x" * 70_000})).status == 413
            client.xsrf = ""
            assert (await client.fetch(path, {})).status == 403
            # On the same connection: what the others log is there by now.
            await client.ask("/health")
            assert server.count_log("Traceback", since=mark) == 0

    run(test())


def test_who_is_here_and_who_types_is_known_in_all_workers(
    server: GunicornProcess, room: str
) -> None:
    async def test() -> None:
        async with joined(server, room, 6) as clients, contextlib.AsyncExitStack() as stack:
            for number, client in enumerate(clients):
                await stack.enter_async_context(listening(client, WAYS[number % 3]))
            everybody = sorted(client.id for client in clients)
            for client in clients:
                await until(
                    lambda client=client: (
                        sorted(person["id"] for person in client.state.get("people", []))
                        == everybody
                    )
                )
            first = clients[0]
            response = await first.fetch(f"/api/rooms/{room}/typing", {})
            assert response.status == 204
            person = {"id": first.id, "name": first.name}
            for client in clients:
                await until(lambda client=client: client.state["typing"] == [person])
            # Until the message is there.
            await first.post("done", "client-id-1")
            for client in clients:
                await until(lambda client=client: client.state["typing"] == [])

    run(test())


def test_new_name_is_known_in_all_workers_while_they_listen(
    server: GunicornProcess, room: str
) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,), contextlib.AsyncExitStack() as stack:
            # As many connections of one person as it takes to be in both workers.
            places: list[ChatClient] = []
            while len({pid for place in places for pid in place.pids}) < 2:
                place = replace(client, idle=[], pids=[])
                await stack.enter_async_context(listening(place, "websocket"))
                await until(lambda place=place: place.pids)
                places.append(place)
            response = await client.fetch("/api/me", {"name": "Ada Lovelace"})
            assert response.status == 200
            renamed = [{"id": client.id, "name": "Ada Lovelace"}]
            for place in places:
                await until(lambda place=place: place.state.get("people") == renamed)
                assert len(place.pids) == 1  # by the connection that it had

    run(test())


# -- limits that are set low ---------------------------------------------------


def test_limits_come_from_the_environment(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    env = {
        "CHAT_POSTS_PER_S": "0.5",
        "CHAT_POSTS_AT_ONCE": "2",
        "CHAT_MAX_ROOMS": "1",
        "CHAT_MAX_TEXT": "5",
    }
    server = start_chat(gunicorn, tmp_path / "data", workers=1, env=env)

    async def test() -> None:
        async with joined(server, count=3) as (one, two, three):
            path = "/api/rooms/lobby/messages"
            for n in range(2):
                await one.post(f"{n}", f"{LONG_ENOUGH}{n}")
            response = await one.fetch(path, {"text": "3", "client_id": "client-id-3"})
            assert (response.status, response.json()["error"]["code"]) == (429, "too_fast")
            assert response.headers["Retry-After"] == "2"
            # Others may go on.
            await two.post("4", "client-id-4")
            response = await two.fetch(path, {"text": "123456", "client_id": "client-id-5"})
            assert response.json()["error"]["message"] == (
                "a message has at most 5 characters; this one has 6"
            )
            path = "/api/rooms/second/messages"
            response = await two.fetch(path, {"text": "6", "client_id": "client-id-6"})
            assert (response.status, response.json()["error"]["code"]) == (403, "too_many_rooms")
            # The rooms that everybody finds are not for those to close who come first.
            three.room = "random"
            await three.post("7", "client-id-7")

    run(test())


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("CHAT_POSTS_PER_S", "0", "a number"),
        ("CHAT_POSTS_PER_S", "nan", "a number"),
        ("CHAT_POSTS_PER_S", "inf", "a number"),
        ("CHAT_POSTS_AT_ONCE", "-1", "a whole number"),
        ("CHAT_MAX_TEXT", "2.5", "a whole number"),
        ("CHAT_MAX_ROOMS", "", "a whole number"),
    ],
)
def test_limit_that_is_no_positive_number_is_named(name: str, text: str, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        Limits.from_environ({name: text})
    assert str(caught.value) == f"invalid {name}: expected {expected} above 0; got {text!r}"


# -- archive and status --------------------------------------------------------


def test_archive_shows_searches_and_exports(server: GunicornProcess, room: str) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,):
            forged = "hi\r[2026-11-26 09:00:00] Alice: I\u2028resign"
            for n, text in enumerate(
                ["=1+1", "<b>Straße</b>", 'a "quoted", line\nand more', forged]
            ):
                await client.post(text, f"{LONG_ENOUGH}{n}")
            await asyncio.to_thread(check, client)

    def check(client: ChatClient) -> None:
        assert f'href="/archive/{room}"' in server.request("/archive/").text
        page = server.request(f"/archive/{room}?q=STRASSE").text
        assert "&lt;b&gt;Straße&lt;/b&gt;" in page and "<b>Straße" not in page
        assert "1 message found" in page and "quoted" not in page
        assert "Nothing found" in server.request(f"/archive/{room}?q=absent").text

        text = server.request(f"/archive/{room}/export.txt")
        assert text.headers["Content-Disposition"] == f'attachment; filename="{room}.txt"'
        assert f"{client.name}: =1+1\n" in text.text
        assert f'{client.name}: a "quoted", line\n    and more\n' in text.text
        assert text.text.endswith("hi\n    [2026-11-26 09:00:00] Alice: I\n    resign\n")
        lines = server.request(f"/archive/{room}/export.jsonl").text.splitlines()
        assert [json.loads(line)["text"] for line in lines][1] == "<b>Straße</b>"
        rows = server.request(f"/archive/{room}/export.csv").text
        assert rows.startswith("id,sent_at,name,text\r\n")
        assert ",'=1+1\r\n" in rows
        assert '"a ""quoted"", line\nand more"' in rows

        for path, status in [
            (f"/archive/{room}/export.exe", 404),
            ("/archive/NO", 404),
            (f"/archive/{room}?before=x", 400),
            (f"/archive/{room}?q={'x' * 201}", 400),
        ]:
            assert server.request(path).status == status

    run(test())


def test_archive_goes_back_page_by_page(server: GunicornProcess, room: str) -> None:
    async def test() -> None:
        async with joined(server, room) as (client,):
            for n in range(120):
                await client.post(f"number {n:03}", f"{LONG_ENOUGH}{n}")

    run(test())
    found: list[str] = []
    path = f"/archive/{room}?q=number"
    while path:
        page = server.request(path).text
        found += re.findall(r"number (\d+)</p>", page)
        older = re.search(r'<a href="([^"]+)">Older', page)
        path = older.group(1).replace("&amp;", "&") if older else ""
    assert found == [f"{n:03}" for n in reversed(range(120))]


def test_slow_export_holds_up_nobody(server: GunicornProcess, room: str) -> None:
    """A reader that stalls in the middle of a large file; polls go on at once."""

    async def fill() -> None:
        async with joined(server, room, 10) as clients:

            async def write(number: int, client: ChatClient) -> None:
                for n in range(400):
                    await client.post("x" * 2000, f"{LONG_ENOUGH}{number}-{n}")

            await asyncio.gather(*(write(*item) for item in enumerate(clients)))

    async def test() -> None:
        await fill()
        with server.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.sendall(
                f"GET /archive/{room}/export.jsonl HTTP/1.1\r\nHost: x\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
            async with joined(server, f"{room[:20]}-x", 2) as (one, two):
                for way in WAYS:
                    async with listening(one, way):
                        seen = len(one.messages)
                        await two.post(way, f"{LONG_ENOUGH}{way}")
                        await until(lambda seen=seen: len(one.messages) > seen)
            # And the file is whole in the end.
            received = await asyncio.to_thread(read_all, sock)
            assert received.count(b'"text": "xxx') >= 3990

    run(test())


def test_exports_that_stall_leave_threads_to_others(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()

    async def fill() -> None:
        store = SqliteStore(data / "chat.db")
        await store.open(lambda signal: None)
        # More than sockets hold.
        drafts = (Draft("lobby", "ann", "Ann", "x" * 2000, f"{n:08}") for n in range(8000))
        await asyncio.gather(*map(store.post, drafts))
        await store.close()

    run(fill())
    server = start_chat(gunicorn, data, workers=1)
    path = "/archive/lobby/export.jsonl"
    with contextlib.ExitStack() as stack:
        answers = []
        for _ in range(8):
            sock = stack.enter_context(server.connect())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answers.append(sock.recv(1000))
        assert [int(answer.split()[1]) for answer in answers] == [200] * 2 + [503] * 6
        refused = server.request(path)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "30")
        assert "Other exports are under way" in refused.text
        assert server.request("/archive/lobby").status == 200
    # More often than there are places: each is given back.
    for _ in range(5):
        eventually(lambda: server.request(path, "HEAD").status == 200)


def test_status_counts_listeners_by_kind(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=2)

    def status() -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = json.loads(server.request("/api/status").body)["workers"]
        return workers

    async def totals() -> dict[str, int]:
        workers = await asyncio.to_thread(status)
        return {
            kind: sum(worker["listening"][kind] for worker in workers)
            for kind in ("poll", "sse", "websocket")
        }

    async def connections() -> dict[str, int]:
        """Over HTTP/1 each listens on a connection of its own."""
        workers = await asyncio.to_thread(status)
        counts = [counts for worker in workers for counts in worker["protocols"].items()]
        assert {protocol for protocol, _ in counts} <= {"HTTP/1.1"}
        return {
            name: sum(numbers[name] for _, numbers in counts)
            for name in ("connections", "listening")
        }

    async def test() -> None:
        async with joined(server, count=6) as clients, contextlib.AsyncExitStack() as stack:
            for number, client in enumerate(clients):
                await stack.enter_async_context(listening(client, WAYS[number // 2 % 3]))
            while await totals() != {"poll": 2, "sse": 2, "websocket": 2}:
                await asyncio.sleep(0.1)
            # One of them may still be starting while the other has all the listeners.
            while len(workers := await asyncio.to_thread(status)) < 2:
                await asyncio.sleep(0.1)
            assert {worker["pid"] for worker in workers} == set(server.worker_pids())
            assert all(worker["state"] == "serving" for worker in workers)
            while await connections() != {"connections": 6, "listening": 6}:
                await asyncio.sleep(0.1)
            await clients[0].post("x", "client-id-1")
            while not any(worker["delivered_per_s"] for worker in await asyncio.to_thread(status)):
                await asyncio.sleep(0.1)
            # One that is killed is forgotten, and its successor appears.
            victim = workers[0]["pid"]
            server.signal_worker(victim, signal.SIGKILL)
            while True:
                pids = {worker["pid"] for worker in await asyncio.to_thread(status)}
                if len(pids) == 2 and victim not in pids:
                    break
                await asyncio.sleep(0.1)
            while await totals() != {"poll": 2, "sse": 2, "websocket": 2}:
                await asyncio.sleep(0.1)

    run(test())


# -- restarts ------------------------------------------------------------------


def test_reload_ends_each_way_politely(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    websockets = need_module("websockets.asyncio.client")
    server = start_chat(gunicorn, tmp_path / "data", workers=1)

    async def test() -> None:
        async with joined(server, count=3) as (poller, streamer, socketer):
            pair = await streamer._open()
            status, _ = await streamer._ask(pair, streamer.path("events"), None, {})
            assert status == 200
            url = server.url.replace("http", "ws", 1) + socketer.path("socket")
            async with websockets.connect(
                url, additional_headers={"Cookie": socketer.cookie}
            ) as ws:
                await ws.recv()
                polling = asyncio.create_task(poll_until_stopping(poller))
                async with asyncio.timeout(TIMEOUT_S):
                    while await listening(socketer) != {"poll": 1, "sse": 1, "websocket": 1}:
                        await asyncio.sleep(0.05)
                began = time.monotonic()
                server.signal(signal.SIGHUP)
                await ws.wait_closed()
                assert ws.close_code == 1001
            stream = await pair[0].read()
            assert stream.endswith(b"\r\n0\r\n\r\n")  # a whole body, not a cut one
            pair[1].close()
            await pair[1].wait_closed()
            assert (await polling)["messages"] == []
            # Long before any of them would have ended by itself.
            assert time.monotonic() - began < 12

    async def listening(client: ChatClient) -> Any:
        [worker] = (await client.ask("/api/status"))["workers"]
        return worker["listening"]

    async def poll_until_stopping(client: ChatClient) -> Any:
        while True:
            response = await client.fetch(client.path("poll"))
            body = response.json()
            if body.get("stopping"):
                assert response.headers["Connection"] == "close"
                return body
            client.accept(body)

    run(test())


@pytest.mark.parametrize("way", WAYS)
def test_upgrade_to_a_new_master_loses_nothing(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path, way: str
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=2)

    async def test() -> None:
        async with joined(server, count=4) as clients, contextlib.AsyncExitStack() as stack:
            writer, *others = clients
            for client in others:
                await stack.enter_async_context(listening(client, way))
            old = set(server.worker_pids())
            sent: list[dict[str, Any]] = []
            await write(writer, sent, 10)
            mark = server.mark()
            server.signal(signal.SIGUSR2)
            await write(writer, sent, 30)
            # The new master has workers; the old one leaves.
            await asyncio.to_thread(server.wait_log, r"Booting worker", since=mark)
            server.signal(signal.SIGTERM)
            await write(writer, sent, 60)
            for client in others:
                await until(lambda client=client: len(client.messages) == 60)
                assert client.messages == sent
            await asyncio.to_thread(server.wait_exit)
            sent.append(await writer.post("after", "client-id-after"))
            for client in others:
                await until(lambda client=client: len(client.messages) == 61)
                assert client.pids[-1] not in old

    async def write(writer: ChatClient, sent: list[dict[str, Any]], count: int) -> None:
        while len(sent) < count:
            sent.append(await writer.post("text", f"{LONG_ENOUGH}{len(sent)}"))
            await asyncio.sleep(0.05)

    run(test())


def test_worker_is_replaced_while_the_database_is_locked(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)

    async def test() -> None:
        async with joined(server) as (client,):
            sent = await client.post("before", "client-id-1")
            path = tmp_path / "data" / "chat.db"
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                posting = asyncio.create_task(client.post("during", "client-id-2"))
                old = server.worker_pids()
                server.signal_worker(old[0], signal.SIGKILL)
                await until(lambda: server.worker_pids() not in (old, []))
                # It has what was stored, and takes more when the lock is gone.
                history = await client.ask("/api/rooms/lobby/history")
                assert history["messages"] == [sent]
            assert (await posting)["text"] == "during"

    run(test())


def test_client_that_vanishes_is_forgotten(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)

    async def test() -> None:
        async with joined(server, count=2) as (watcher, ghost):
            pair = await ghost._open()
            await ghost._ask(pair, ghost.path("poll"), None, {})
            async with listening(watcher, "sse"):
                await until(lambda: watcher.state.get("here") == 2)
                # Reset, as by a device that lost its network.
                sock = pair[1].get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                pair[1].close()
                await until(lambda: watcher.state.get("here") == 1)

    run(test())


def test_redis_that_dies_and_comes_back_loses_nothing(
    gunicorn: Callable[..., GunicornProcess], tmp_path: Path
) -> None:
    directory = tmp_path / "redis"
    directory.mkdir()
    port = free_port()

    async def test() -> None:
        with contextlib.ExitStack() as redis:
            url = redis.enter_context(run_redis(directory, port, fsync="always"))
            server = await asyncio.to_thread(
                start_chat, gunicorn, tmp_path / "data", env={"CHAT_REDIS_URL": url}, workers=1
            )
            async with joined(server, count=4) as clients, contextlib.AsyncExitStack() as stack:
                writer, *others = clients
                for client, way in zip(others, WAYS, strict=True):
                    await stack.enter_async_context(listening(client, way))
                sent = [await writer.post("before", "client-id-1")]
                redis.close()
                response = await writer.fetch(
                    "/api/rooms/lobby/messages", {"text": "during", "client_id": "client-id-2"}
                )
                assert response.status == 503
                assert response.headers["Retry-After"] == "1"
                assert response.json()["error"] == {
                    "code": "unavailable",
                    "message": "the store does not answer",
                }
                archive = await asyncio.to_thread(server.request, "/archive/lobby")
                assert archive.status == 503 and "does not answer" in archive.text
                posting = asyncio.create_task(writer.post("during", "client-id-2"))
                await asyncio.to_thread(server.wait_log, "the store does not answer")
                # A worker that starts meanwhile waits, and does not stop Gunicorn.
                server.signal_worker(server.worker_pids()[0], signal.SIGKILL)
                await asyncio.to_thread(server.wait_log, "waiting for the store")
                redis.enter_context(run_redis(directory, port, fsync="always"))
                sent.append(await posting)
                sent.append(await writer.post("after", "client-id-3"))
                for client in others:
                    await until(lambda client=client: len(client.messages) == 3)
                    assert client.messages == sent
            assert server.count_log("Traceback") == 0
            server.close()

    run(test())
