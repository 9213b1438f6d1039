"""Chromium and our server over HTTP/2: one TCP connection for a whole page.

What only a browser does: it opens its WebSockets by extended CONNECT in the connection that it
has, ends its side with the close frame, and puts everything of a page in one connection. Counted
at the server. Here, and not beside the other tests of HTTP/2, because it needs a browser.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler

from helpers.demo_process import run_chromium
from helpers.http2_programs import Address, Http2Programs
from helpers.server_thread import Serve
from helpers.waiting import DEADLINE_S

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WEBSOCKETS = 50

PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<title>page</title>
<script>
// Resolves to an open WebSocket that keeps what comes, and how it was closed.
function open(path) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`wss://${location.host}${path}`);
    socket.received = [];
    socket.closed = new Promise((done) => {
      socket.onclose = (event) => done([event.code, event.reason, event.wasClean]);
    });
    socket.onmessage = (event) => {
      socket.received.push(event.data);
      if (socket.next) socket.next();
    };
    socket.onopen = () => resolve(socket);
    socket.onerror = () => reject(new Error(`no WebSocket ${path}`));
  });
}
async function receive(socket) {
  while (!socket.received.length) await new Promise((resolve) => { socket.next = resolve; });
  return socket.received.shift();
}
</script>
"""


class Start(RequestHandler):
    def get(self) -> None:
        self.write(PAGE)


class Asked(WebSocketHandler):
    """Echoes, closes when asked, and tells the test how it was closed."""

    def initialize(self, opened: queue.Queue[Asked], closed: queue.Queue[Any]) -> None:
        self.opened = opened
        self.closed = closed

    def get_compression_options(self) -> dict[str, Any]:
        return {}

    def open(self, *args: str, **kwargs: str) -> None:
        self.opened.put(self)

    async def on_message(self, message: str | bytes) -> None:
        if message == "close":
            self.close(4002, "asked")
        else:
            await self.write_message(message, binary=isinstance(message, bytes))

    def on_pong(self, data: bytes) -> None:
        self.settings["pongs"].put(data)

    def on_close(self) -> None:
        self.closed.put((self.close_code, self.close_reason))


class Served:
    """The server, and what its WebSockets tell."""

    def __init__(self, serve: Serve, tls: Any) -> None:
        self.opened: queue.Queue[Asked] = queue.Queue()
        self.closed: queue.Queue[Any] = queue.Queue()
        self.pongs: queue.Queue[bytes] = queue.Queue()
        queues = {"opened": self.opened, "closed": self.closed}
        self.server: Address = Http2Programs(serve, tls)(
            ("/", Start), ("/asked", Asked, queues), settings={"pongs": self.pongs}
        )
        self.thread = self.server.thread

    def how_closed(self) -> Any:
        return self.closed.get(timeout=DEADLINE_S)

    def versions(self) -> list[str]:
        """Return the classes of the connections that are open."""
        return [type(conn).__name__ for conn in self.thread.connections]


@pytest.fixture
def served(serve: Serve, tls: Any) -> Served:
    return Served(serve, tls)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # A certificate of our own is ignored for WebSockets only if all are.
    with run_chromium("--ignore-certificate-errors") as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Iterator[Callable[[], Page]]:
    contexts = []

    def open_page() -> Page:
        context = browser.new_context(ignore_https_errors=True)
        context.set_default_timeout(1000 * DEADLINE_S)
        contexts.append(context)
        page = context.new_page()
        page.goto(served.server.url + "/")
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_page_with_fifty_websockets_has_one_connection(
    served: Served, open_page: Callable[[], Page]
) -> None:
    page = open_page()
    result = page.evaluate(
        """async (count) => {
          const paths = Array.from({ length: 30 }, (_, i) => `/download/${i * 1000}`);
          const polls = [..."abcdefgh"].map((key) => fetch(`/wait/${key}`));
          const opening = Array.from({ length: count }, () => open("/asked"));
          const sockets = await Promise.all(opening);
          sockets.forEach((socket, i) => socket.send(`hello ${i} ` + "x".repeat(1000)));
          const echoes = await Promise.all(sockets.map(receive));
          const sizes = await Promise.all(paths.map(async (path) =>
            (await (await fetch(path)).arrayBuffer()).byteLength));
          const large = await (await fetch("/download/20000000")).arrayBuffer();
          const upload = await fetch("/upload", { method: "POST", body: large });
          const entries = performance.getEntriesByType("resource");
          window.sockets = sockets;
          for (const key of "abcdefgh") await fetch(`/release/${key}`);
          const released = await Promise.all(polls.map(async (poll) => (await poll).text()));
          return {
            echoes: echoes.every((text, i) => text === `hello ${i} ` + "x".repeat(1000)),
            deflate: sockets.every((socket) => socket.extensions.startsWith("permessage-deflate")),
            sizes, large: large.byteLength, uploaded: (await upload.json()).size, released,
            protocols: [...new Set(entries.map((entry) => entry.nextHopProtocol))],
          };
        }""",
        WEBSOCKETS,
    )
    assert result["echoes"]
    assert result["deflate"]
    assert result["sizes"] == [i * 1000 for i in range(30)]
    assert result["large"] == result["uploaded"] == 20_000_000
    assert result["released"] == ["released"] * 8
    assert result["protocols"] == ["h2"]
    # At the server: one TCP connection, in which all the WebSockets are.
    assert served.versions() == ["HTTP2Connection"]
    assert len(served.thread.streams) == WEBSOCKETS
    handlers = [served.opened.get(timeout=DEADLINE_S) for _ in range(WEBSOCKETS)]
    assert {handler.request.version for handler in handlers} == {"HTTP/2.0"}

    # The browser answers pings.
    served.thread.run(handlers[0].ping, b"are you there")
    assert served.pongs.get(timeout=DEADLINE_S) == b"are you there"

    # The server leaves: every WebSocket is told 1001.
    def say_goodbye() -> None:
        served.thread.http.begin_drain()
        for handler in handlers:
            handler.close(1001, "leaving")

    served.thread.run(say_goodbye)
    closes = page.evaluate("() => Promise.all(window.sockets.map((socket) => socket.closed))")
    assert closes == [[1001, "leaving", True]] * WEBSOCKETS
    assert [served.how_closed() for _ in range(WEBSOCKETS)] == [(1001, "leaving")] * WEBSOCKETS
    served.thread.run(served.thread.http.drained)


def test_close_codes_both_ways(served: Served, open_page: Callable[[], Page]) -> None:
    """Chromium puts END_STREAM on its close frame, and expects ours all the same."""
    page = open_page()
    for code, reason in [(1000, ""), (4001, "bye"), (1000, "done")]:
        close = page.evaluate(
            """async ([code, reason]) => {
              const socket = await open("/asked");
              socket.send("last words");
              socket.close(code, reason);
              return await socket.closed;
            }""",
            [code, reason],
        )
        assert close[0] == code
        assert close[2] is True
        assert served.how_closed() == (code, reason or None)
    # The handler's close.
    close = page.evaluate(
        """async () => {
          const socket = await open("/asked");
          socket.send("close");
          return await socket.closed;
        }"""
    )
    assert close == [4002, "asked", True]
    assert served.how_closed() == (4002, "asked")
    assert served.versions() == ["HTTP2Connection"]


def test_large_messages_and_closed_pages(served: Served, open_page: Callable[[], Page]) -> None:
    page = open_page()
    result = page.evaluate(
        """async () => {
          const socket = await open("/asked");
          socket.binaryType = "arraybuffer";
          const sent = new Uint8Array(3000000);
          for (let i = 0; i < sent.length; i += 65536) {
            crypto.getRandomValues(sent.subarray(i, i + 65536));
          }
          socket.send(sent);
          const received = new Uint8Array(await receive(socket));
          return received.length === sent.length && received.every((byte, i) => byte === sent[i]);
        }"""
    )
    assert result is True
    # A page that goes away while it waits: the handler hears of both.
    page.evaluate("() => { fetch('/wait/key').catch(() => {}); }")
    page.evaluate("async () => { await fetch('/status/200'); }")
    page.close()
    assert served.how_closed()[0] in (1001, None)
    other = open_page()
    gone = other.evaluate("async () => (await fetch('/gone/key')).text()")
    assert gone == "gone"
    other.evaluate("async () => { await fetch('/release/key'); }")
