"""The phases of a connection: the table of changes, and real connections that go through it."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tornado_worker
from helpers.detached import GET
from helpers.server_thread import Client, Message, Messages, Serve, eventually
from tornado_worker.connection.flow import Connection
from tornado_worker.connection.phase import CHANGES, Phase
from tornado_worker.http2.frames import PREFACE, data_frame, headers_frames, settings_frame
from tornado_worker.http2.hpack import Encoder

FOLDER = Path(tornado_worker.__file__).parent
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
PROXY = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
LAST = GET[:-2] + b"Connection: close\r\n\r\n"
#: Phases that may follow nearly every other one.
ALWAYS = {Phase.CLOSING, Phase.CLOSED, Phase.DETACHED}


class ProxyPolicy:
    """Believes every PROXY protocol header."""

    special_names: frozenset[bytes] = frozenset()
    proxy_protocol = "auto"

    def trusts(self, address: Any) -> bool:
        return True

    def trusts_proxy_protocol(self, address: Any) -> bool:
        return True


RESPOND: dict[str, Callable[[Message], Any]] = {"on_finish": lambda m: m.respond(b"x")}
RESPOND_EARLY = {"on_headers": lambda m: m.respond(b"no", 413)}
NO_RESPONSE = {"on_finish": lambda m: None}
NO_OPTIONS: dict[str, Any] = {}


class Case(NamedTuple):
    """What is sent to a server, and the phases that its connection enters."""

    sent: list[bytes]
    phases: str
    step: dict[str, Callable[[Message], Any]] = RESPOND
    options: dict[str, Any] = NO_OPTIONS
    #: Whether the client waits for the end instead of closing itself.
    waits: bool = False


def close_twice(message: Message) -> None:
    message.conn.stream.close()
    message.conn.close()


def detach(message: Message) -> None:
    message.conn.detach()


def respond_and_close(message: Message) -> None:
    message.conn.stream.close()
    message.respond(b"x")


WAIT = {"keepalive_timeout": 0.1, "header_timeout": 0.1}
CASES = {
    "two requests": Case([GET, GET], "HEAD BODY RESPONSE IDLE HEAD BODY RESPONSE IDLE CLOSED"),
    "a body": Case([POST, b"body"], "HEAD BODY RESPONSE IDLE CLOSED"),
    "the last request": Case([LAST], "HEAD BODY RESPONSE CLOSING CLOSED", waits=True),
    "the last request but one": Case([LAST + GET], "HEAD BODY RESPONSE LINGER CLOSED"),
    "a refused head": Case([b"bad\r\n\r\n"], "HEAD LINGER CLOSED"),
    "a response before the body": Case([POST], "HEAD BODY LINGER CLOSED", RESPOND_EARLY),
    "no first byte": Case([], "CLOSING CLOSED", options=WAIT, waits=True),
    "no second request": Case(
        [GET], "HEAD BODY RESPONSE IDLE CLOSING CLOSED", options=WAIT, waits=True
    ),
    "a slow client": Case(
        [POST], "HEAD BODY CLOSING CLOSED", NO_RESPONSE, {"stall_timeout": 0.1}, waits=True
    ),
    "a request without an answer": Case([GET], "HEAD BODY RESPONSE CLOSING CLOSED", NO_RESPONSE),
    "an application that closes": Case(
        [GET], "HEAD BODY CLOSING CLOSED", {"on_headers": lambda m: m.conn.close()}, waits=True
    ),
    "an application that closes twice": Case(
        [GET], "HEAD BODY RESPONSE CLOSING CLOSING CLOSED", {"on_finish": close_twice}, waits=True
    ),
    "an application that closes, with a request behind": Case(
        [GET + GET], "HEAD BODY CLOSING CLOSED", {"on_headers": respond_and_close}, waits=True
    ),
    "an application that detaches": Case([GET], "HEAD BODY DETACHED", {"on_headers": detach}),
    "a PROXY header alone": Case(
        [PROXY, GET], "HEAD NEW HEAD BODY RESPONSE IDLE CLOSED", options={"policy": ProxyPolicy()}
    ),
    "a PROXY header with a request": Case(
        [PROXY + GET], "HEAD NEW HEAD BODY RESPONSE IDLE CLOSED", options={"policy": ProxyPolicy()}
    ),
    "responses that are not read": Case(
        [GET + GET],
        "HEAD BODY RESPONSE IDLE LINGER CLOSED",
        {"on_finish": lambda m: m.respond(b"x" * (1 << 24))},
        {"keepalive_timeout": 0.1, "kernel_buffer": 32 * 1024},
    ),
}


HTTP2: dict[str, Any] = {"http_protocols": "h2", "http2_cleartext": "prior-knowledge"}
SETTINGS = PREFACE + settings_frame(())
FIELDS = ((b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a"))
STREAM = headers_frames(1, Encoder().encode(FIELDS), True, 16384)
# The connection of HTTP/1 hands its transport to another object, which is new.
CASES |= {
    "two streams": Case(
        [SETTINGS, STREAM, STREAM.replace(b"\0\0\0\1", b"\0\0\0\3", 1)],
        "DETACHED STREAMS IDLE STREAMS IDLE CLOSED",
        options=HTTP2,
    ),
    "no second stream": Case(
        [SETTINGS + STREAM],
        "DETACHED STREAMS IDLE LINGER CLOSED",
        options=HTTP2 | {"keepalive_timeout": 0.1},
    ),
    "a fault before all streams": Case(
        [SETTINGS, data_frame(1, b"", True)], "DETACHED LINGER CLOSED", options=HTTP2
    ),
    "a fault on a stream's connection": Case(
        [SETTINGS + STREAM, data_frame(3, b"", True)],
        "DETACHED STREAMS LINGER CLOSED",
        NO_RESPONSE,
        HTTP2,
    ),
}


def phases_of(case: Case) -> list[Phase]:
    return [getattr(Phase, name) for name in case.phases.split()]


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[Phase]:
    """The phases that connections enter from now on."""
    phases: list[Phase] = []
    enter = Connection._enter

    def note(self: Connection, phase: Phase) -> None:
        phases.append(phase)
        enter(self, phase)

    monkeypatch.setattr(Connection, "_enter", note)
    return phases


@pytest.mark.parametrize("name", CASES)
def test_connection_goes_through_its_phases(serve: Serve, entered: list[Phase], name: str) -> None:
    case = CASES[name]
    expected = phases_of(case)
    app = Messages(**case.step)
    server = serve(app, **case.options)
    client = server.connect(kernel_buffer=case.options.get("kernel_buffer"))
    for data in case.sent:
        client.send(data)
        server.turn(8)
    if case.waits:
        receive_until_end(client)
    else:
        before = [phase for phase in expected if phase not in (Phase.CLOSING, Phase.CLOSED)]
        eventually(lambda: entered == before, f"{before} but {entered}")
        client.close()
    eventually(lambda: entered == expected, f"{expected} but {entered}")
    eventually(lambda: not server.connections)
    if name in LOGGED:
        serve.logs.expect("re:.* (Malformed HTTP message|Timeout reading body|HTTP/2 error) .*")


#: Those of which the server tells.
LOGGED = {
    "a refused head",
    "a slow client",
    "a fault before all streams",
    "a fault on a stream's connection",
}


def receive_until_end(client: Client) -> None:
    try:
        client.receive_all()
    except ConnectionError:
        pass  # aborted


def test_every_change_of_the_table_has_a_case() -> None:
    seen = {
        change
        for case in CASES.values()
        for before, after in itertools.pairwise([Phase.NEW, *phases_of(case)])
        for change in [(Phase.NEW if before is Phase.DETACHED else before, after)]
    }
    assert {
        (phase, after)
        for phase, allowed in CHANGES.items()
        for after in allowed - ALWAYS
        if (phase, after) not in seen
    } == set()
    assert seen <= {(phase, after) for phase, allowed in CHANGES.items() for after in allowed}


def test_every_phase_is_in_the_table_and_can_end() -> None:
    phases = {value for value in vars(Phase).values() if isinstance(value, Phase)}
    assert set(CHANGES) == phases
    for phase, allowed in CHANGES.items():
        assert allowed >= ALWAYS or phase in (Phase.CLOSED, Phase.DETACHED)


def test_phase_and_time_change_in_one_place() -> None:
    changed = set()
    for package in ("connection", "http1", "server"):
        for path in (FOLDER / package).glob("*.py"):
            for function in ast.walk(ast.parse(path.read_text())):
                if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    continue
                for node in ast.walk(function):
                    if (
                        isinstance(node, ast.Attribute)
                        and isinstance(node.ctx, ast.Store)
                        and node.attr in ("phase", "since")
                    ):
                        changed.add((path.stem, function.name))
    assert changed == {("flow", "__init__"), ("flow", "_enter"), ("flow", "_renew")}
