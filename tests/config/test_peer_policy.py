"""What peers may say about themselves: peer_policy.py and proxy_protocol.py on real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from tornado.ioloop import IOLoop
from tornado.web import Application, RequestHandler

from helpers.gunicorn_process import GunicornProcess
from tornado_worker.config.peer_policy import GunicornPolicy
from tornado_worker.http1.proxy_protocol import header_length, read_header
from tornado_worker.server.server import HTTPServer

HEAD = b"GET /path HTTP/1.1\r\nHost: a\r\n"
LAST = HEAD + b"Connection: close\r\n\r\n"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4321 443\r\n"
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, addresses: bytes) -> bytes:
    head = bytes([0x20 | command, family]) + len(addresses).to_bytes(2, "big")
    return V2_SIGNATURE + head + addresses


V2_IPV4 = v2(
    1,
    0x11,
    socket.inet_aton("192.0.2.7") + socket.inet_aton("198.51.100.1") + b"\x10\xe1\x01\xbb",
)
V2_IPV6 = v2(
    1,
    0x21,
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + b"\x10\xe1\x01\xbb",
)
V2_LOCAL = v2(0, 0, b"")


class Echo(RequestHandler):
    """Answers who the server thinks the client is."""

    def get(self) -> None:
        connection = self.request.connection
        assert connection is not None
        context: Any = connection.context  # type: ignore[attr-defined]
        self.write(
            {
                "protocol": self.request.protocol,
                "remote_ip": self.request.remote_ip,
                "fields": sorted(self.request.headers.get_all()),
                "server_address": context.server_address,
                "proxy": context.proxy_protocol_info,
            }
        )


class Server:
    """An HTTPServer with Gunicorn's policy, and clients that send it bytes."""

    def __init__(self, options: dict[str, Any], settings: dict[str, Any]) -> None:
        cfg = Config()
        for name, value in settings.items():
            cfg.set(name, value)
        self.http = HTTPServer(Application([("/.*", Echo)]), policy=GunicornPolicy(cfg), **options)

    def listen(self, sock: socket.socket) -> None:
        self.address = sock.getsockname()
        self.http.add_sockets([sock])

    async def send(self, *parts: bytes) -> list[tuple[int, dict[str, Any]]]:
        """Send `parts` one after the other; return the responses until the server closes."""
        if isinstance(self.address, str):
            reader, writer = await asyncio.open_unix_connection(self.address)
        else:
            reader, writer = await asyncio.open_connection(*self.address[:2])
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        data = await reader.read()
        writer.close()
        responses = []
        while data:
            head, _, data = data.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines[1:])
            size = int(fields["Content-Length"])
            body, data = data[:size], data[size:]
            responses.append((int(lines[0].split()[1]), json.loads(body or b"{}")))
        return responses

    async def get(self, *lines: bytes) -> dict[str, Any]:
        [(status, echo)] = await self.send(
            HEAD + b"".join(line + b"\r\n" for line in lines) + b"Connection: close\r\n\r\n"
        )
        assert status == 200
        return echo

    async def status(self, *lines: bytes) -> int:
        [(status, _)] = await self.send(
            HEAD + b"".join(line + b"\r\n" for line in lines) + b"Connection: close\r\n\r\n"
        )
        return status


def names(echo: dict[str, Any]) -> set[str]:
    return {name for name, _ in echo["fields"]}


@pytest.fixture
def run(io_loop: IOLoop) -> Callable[..., None]:
    """Run a test coroutine, given a Server, on asyncio and on uvloop."""

    def run(
        test: Callable[[Server], Awaitable[None]],
        settings: dict[str, Any] | None = None,
        host: str = "127.0.0.1",
        **options: Any,
    ) -> None:
        async def main() -> None:
            server = Server(options, settings or {})
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            server.listen(
                socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::")
            )
            await test(server)
            server.http.stop()
            await server.http.close_all_connections()

        io_loop.run_sync(main, timeout=30)

    return run


NOBODY = {"forwarded_allow_ips": "192.0.2.1", "proxy_allow_ips": "192.0.2.1"}

# -- schemes -------------------------------------------------------------------


def test_trusted_peer_sets_scheme_for_one_request(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        responses = await server.send(
            HEAD + b"X-Forwarded-Proto: https\r\n\r\n" + HEAD + b"\r\n" + LAST
        )
        assert [echo["protocol"] for _, echo in responses] == ["https", "http", "http"]

    run(test)


def test_untrusted_peer_cannot_set_scheme(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        echo = await server.get(b"X-Forwarded-Proto: https", b"x-forwarded-ssl: on")
        assert echo["protocol"] == "http"
        # What it says of itself stays readable, as in Gunicorn.
        assert "X-Forwarded-Proto" in names(echo)

    run(test, NOBODY)


def test_scheme_header_with_another_value_means_http(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        assert (await server.get(b"X-Forwarded-Proto: HTTPS"))["protocol"] == "http"

    run(test, protocol="https")


def test_contradicting_scheme_headers_are_refused(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        assert await server.status(b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: off") == 400
        assert await server.status(b"X-Forwarded-Proto: https", b"X-Forwarded-Proto: http") == 400
        assert await server.status(b"X-Forwarded-Proto: https", b"X-Forwarded-Ssl: on") == 200

    run(test)


def test_secure_scheme_headers_replace_the_defaults(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        assert (await server.get(b"x-scheme: tls"))["protocol"] == "https"
        assert (await server.get(b"X-Forwarded-Proto: https"))["protocol"] == "http"

    run(test, {"secure_scheme_headers": {"X-SCHEME": "tls"}})


def test_network_and_wildcard_in_forwarded_allow_ips(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        assert (await server.get(b"X-Forwarded-Proto: https"))["protocol"] == "https"

    run(test, {"forwarded_allow_ips": "127.0.0.0/8"})
    run(test, {"forwarded_allow_ips": "*"})


def test_ipv4_peer_of_dual_stack_listener_is_found_in_forwarded_allow_ips(
    run: Callable[..., None],
) -> None:
    async def test(server: Server) -> None:
        server.address = ("127.0.0.1", server.address[1])
        echo = await server.get(b"X-Forwarded-Proto: https")
        assert (echo["protocol"], echo["remote_ip"]) == ("https", "::ffff:127.0.0.1")

    run(test, {"forwarded_allow_ips": "127.0.0.1"}, host="::")


def test_unix_socket_peer_is_trusted(io_loop: IOLoop, tmp_path: Path) -> None:
    async def main() -> None:
        server = Server({}, NOBODY)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        server.listen(sock)
        echo = await server.get(b"X-Forwarded-Proto: https", b"Script_Name: /app")
        assert echo["protocol"] == "https"
        assert ["Script_name", "/app"] in echo["fields"]
        assert echo["server_address"] == str(tmp_path / "s")
        server.http.stop()
        await server.http.close_all_connections()

    io_loop.run_sync(main)


# -- underscores ---------------------------------------------------------------


def test_underscore_names_are_dropped(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        for _ in range(2):  # the second time with every name in the cache
            echo = await server.get(b"X_Real_Ip: 1", b"X-Real-Ip: 2", b"x_real_ip: 3")
            assert names(echo) == {"Host", "Connection", "X-Real-Ip"}

    run(test)


def test_underscore_names_are_refused(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        assert await server.status(b"X_Real_Ip: 1") == 400
        assert await server.status(b"X-Real-Ip: 1") == 200

    run(test, {"header_map": "refuse"})


def test_underscore_names_pass_when_dangerous(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        assert "X_real_ip" in names(await server.get(b"X_Real_Ip: 1"))

    run(test, {"header_map": "dangerous", **NOBODY})


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, {"Script_name", "Path_info"}),
        ({"forwarder_headers": "X_USER"}, {"X_user"}),
        ({"forwarder_headers": "*"}, {"Script_name", "Path_info", "X_user"}),
        ({"forwarder_headers": "*", **NOBODY}, set()),
        (NOBODY, set()),
    ],
)
def test_forwarder_headers_are_kept_from_trusted_peers(
    run: Callable[..., None], settings: dict[str, Any], kept: set[str]
) -> None:
    async def test(server: Server) -> None:
        echo = await server.get(b"Script_Name: /a", b"PATH_INFO: /b", b"x_user: root")
        assert names(echo) - {"Host", "Connection"} == kept

    run(test, settings)


def test_expectation_that_cannot_be_met_is_answered_417(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        assert await server.status(b"Expect: tea") == 417
        assert await server.status(b"Expect: 100-Continue") == 200

    run(test)


# -- xheaders ------------------------------------------------------------------


def test_xheaders_count_from_trusted_peers_only(run: Callable[..., None]) -> None:
    def expect(ip: str) -> Callable[[Server], Awaitable[None]]:
        async def test(server: Server) -> None:
            responses = await server.send(
                HEAD + b"X-Real-Ip: 203.0.113.9\r\n\r\n" + HEAD + b"\r\n" + LAST
            )
            ips = [echo["remote_ip"] for _, echo in responses]
            assert ips == [ip, "127.0.0.1", "127.0.0.1"]

        return test

    run(expect("203.0.113.9"), xheaders=True)
    run(expect("127.0.0.1"), NOBODY, xheaders=True)
    run(expect("127.0.0.1"))


# -- PROXY protocol ------------------------------------------------------------


@pytest.mark.parametrize("header", [V1, V2_IPV4, V2_IPV6])
@pytest.mark.parametrize("way", ["whole", "apart", "bytewise"])
def test_proxy_header_names_client_of_all_requests(
    run: Callable[..., None], header: bytes, way: str
) -> None:
    async def test(server: Server) -> None:
        data = header + HEAD + b"\r\n" + LAST
        parts = {
            "whole": [data],
            "apart": [header, data[len(header) :]],
            "bytewise": [data[i : i + 1] for i in range(len(data))],
        }[way]
        responses = await server.send(*parts)
        ip = "2001:db8::7" if header is V2_IPV6 else "192.0.2.7"
        assert [echo["remote_ip"] for _, echo in responses] == [ip, ip]
        assert responses[0][1]["proxy"] == {
            "proxy_protocol": "TCP6" if header is V2_IPV6 else "TCP4",
            "client_addr": ip,
            "client_port": 4321,
            "proxy_addr": "2001:db8::1" if header is V2_IPV6 else "198.51.100.1",
            "proxy_port": 443,
        }

    run(test, {"proxy_protocol": "auto"})


@pytest.mark.parametrize("header", [V2_LOCAL, b"PROXY UNKNOWN\r\n"])
def test_proxy_header_without_a_client_leaves_the_peer(
    run: Callable[..., None], header: bytes
) -> None:
    async def test(server: Server) -> None:
        [(status, echo)] = await server.send(header + LAST)
        assert (status, echo["remote_ip"]) == (200, "127.0.0.1")
        assert echo["proxy"]["client_addr"] is None

    run(test, {"proxy_protocol": "auto"})


def test_connection_with_only_a_proxy_header_is_idle(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        reader, writer = await asyncio.open_connection(*server.address[:2])
        writer.write(V1)
        while server.http.connection_count() != 1:
            await asyncio.sleep(0)
        server.http.begin_drain()
        async with asyncio.timeout(30):
            await server.http.drained()
            assert await reader.read() == b""
        writer.close()

    run(test, {"proxy_protocol": "auto"})


def test_connection_without_proxy_header_is_served(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        [(status, echo)] = await server.send(LAST)
        assert (status, echo["proxy"]) == (200, None)

    run(test, {"proxy_protocol": "auto"})
    run(test, {"proxy_protocol": "v1", **NOBODY})


def test_proxy_header_from_untrusted_peer_is_forbidden(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        for header in (V1, V2_IPV4, b"PROXY nonsense\r\n", b"PROXY " + 200 * b"x"):
            assert await server.send(header + LAST) == [(403, {})]

    run(test, {"proxy_protocol": "auto", "proxy_allow_ips": "192.0.2.1"})


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4321\r\n",
        b"PROXY TCP4 192.0.2.7 nonsense 4321 443\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4321 70000\r\n",
        b"PROXY SCTP 192.0.2.7 198.51.100.1 4321 443\r\n",
        b"PROXY " + 200 * b"x",
        v2(1, 0x12, 12 * b"\1"),
        v2(1, 0x11, b"\1"),
        v2(7, 0x11, 12 * b"\1"),
    ],
)
def test_malformed_proxy_header_is_refused(run: Callable[..., None], header: bytes) -> None:
    async def test(server: Server) -> None:
        assert await server.send(header + LAST) == [(400, {})]

    run(test, {"proxy_protocol": "auto"})


@pytest.mark.parametrize(("mode", "header"), [("v1", V2_IPV4), ("v2", V1), ("off", V1)])
def test_proxy_header_of_a_version_that_is_off_is_no_request(
    run: Callable[..., None], mode: str, header: bytes
) -> None:
    async def test(server: Server) -> None:
        assert await server.send(header + LAST) == [(400, {})]

    run(test, {"proxy_protocol": mode})


def test_second_proxy_header_is_no_request(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        responses = await server.send(V1 + V1 + LAST)
        assert responses == [(400, {})]
        [first, second] = await server.send(V1 + HEAD + b"\r\n" + V1 + LAST)
        assert first[1]["remote_ip"] == "192.0.2.7" and second == (400, {})

    run(test, {"proxy_protocol": "auto"})


def test_client_named_by_proxy_is_not_trusted_instead_of_the_peer(
    run: Callable[..., None],
) -> None:
    async def test(server: Server) -> None:
        # The address it gives is trusted; the peer, which sends this, is not.
        header = b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\r\n"
        [(_, echo)] = await server.send(
            header + HEAD + b"X-Forwarded-Proto: https\r\nScript_Name: /a\r\n"
            b"X-Real-Ip: 203.0.113.9\r\nConnection: close\r\n\r\n"
        )
        assert (echo["protocol"], echo["remote_ip"]) == ("http", "192.0.2.1")
        assert "Script_name" not in names(echo)

    run(test, {"proxy_protocol": "v1", "forwarded_allow_ips": "192.0.2.1"}, xheaders=True)


def test_proxy_header_that_never_ends_is_timed_out(run: Callable[..., None]) -> None:
    async def test(server: Server) -> None:
        assert await server.send(b"PROXY TCP4 192.0.2.7") == [(408, {})]

    run(test, {"proxy_protocol": "auto"}, header_timeout=0.05)


def test_header_length_needs_no_more_than_the_first_different_byte() -> None:
    assert header_length(b"P", "auto") is None
    assert header_length(b"PUT ", "auto") == 0
    assert header_length(b"\r\n\r\n", "auto") is None
    assert header_length(b"\r\nGET ", "auto") == 0
    assert header_length(V2_SIGNATURE, "v1") == 0
    assert header_length(V1, "v2") == 0
    assert header_length(V1 + LAST, "v1") == len(V1)
    assert header_length(V2_IPV4 + LAST, "v2") == len(V2_IPV4)


def test_incomplete_header_is_an_error() -> None:
    with pytest.raises(ValueError, match="incomplete"):
        read_header(V2_IPV4[:20])


def test_proxy_that_does_not_know_the_client_names_none() -> None:
    header = V2_SIGNATURE + b"\x21\x00\x00\x00"  # PROXY, family and protocol unspecified
    assert header_length(header + LAST, "v2") == len(header)
    info = read_header(header)
    assert (info["proxy_protocol"], info["client_addr"]) == ("UNSPEC", None)


# -- through Gunicorn, native and WSGI -----------------------------------------

MIXED = """
    import json
    from tornado.web import Application, RequestHandler, FallbackHandler
    from tornado_worker import WSGIContainer

    class Native(RequestHandler):
        def get(self):
            self.write({"scheme": self.request.protocol, "ip": self.request.remote_ip,
                        "names": sorted(self.request.headers)})

    def wsgi(environ, start_response):
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({
            "scheme": environ["wsgi.url_scheme"], "ip": environ["REMOTE_ADDR"],
            "script": environ["SCRIPT_NAME"], "port": environ["REMOTE_PORT"],
            "proxy": [environ.get(k) for k in
                      ("PROXY_PROTOCOL", "PROXY_ADDR", "PROXY_PORT")],
            "names": sorted(k for k in environ if k.startswith("HTTP_")),
        }).encode()]

    app = Application([
        ("/native", Native), ("/.*", FallbackHandler, {"fallback": WSGIContainer(wsgi)}),
    ])
"""


def test_gunicorn_settings_reach_native_and_wsgi(
    gunicorn: Callable[..., GunicornProcess],
) -> None:
    server = gunicorn(
        MIXED,
        config="""
            proxy_protocol = "auto"
            secure_scheme_headers = {"X-TLS": "1"}
            forwarder_headers = "SCRIPT_NAME,X_USER"
        """,
    )

    def get(target: str, prefix: bytes = b"", extra: bytes = b"") -> dict[str, Any]:
        with server.connect() as sock:
            sock.sendall(
                prefix + f"GET {target} HTTP/1.0\r\nHost: a\r\n".encode() + extra + b"\r\n"
            )
            data = b"".join(iter(lambda: sock.recv(65536), b""))
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        result: dict[str, Any] = json.loads(body)
        return result

    fields = b"X-TLS: 1\r\nX_User: root\r\nX_Evil: 1\r\nScript_Name: /w\r\n"
    native = get("/native", V1, fields)
    assert (native["scheme"], native["ip"]) == ("https", "192.0.2.7")
    assert "X_user" in native["names"] and "X_evil" not in native["names"]
    wsgi = get("/w/x", V2_IPV4, fields)
    assert (wsgi["scheme"], wsgi["ip"], wsgi["port"]) == ("https", "192.0.2.7", "4321")
    assert wsgi["proxy"] == ["TCP4", "198.51.100.1", "443"]
    assert wsgi["script"] == "/w"
    assert "HTTP_X_USER" in wsgi["names"] and "HTTP_X_EVIL" not in wsgi["names"]
    local = get("/w", V2_LOCAL)
    assert (local["ip"], local["proxy"]) == ("127.0.0.1", ["LOCAL", None, None])


def test_xheaders_in_server_options_count_from_trusted_peers_only(
    gunicorn: Callable[..., GunicornProcess],
) -> None:
    config = """
        from tornado_worker import TornadoWorker

        class worker_class(TornadoWorker):
            SERVER_OPTIONS = {"xheaders": True}

        bind = ["127.0.0.1:0", "unix:proxy.sock"]
        forwarded_allow_ips = "192.0.2.1"
    """
    server = gunicorn(MIXED, config=config, worker_class=None, bind=None)
    fields = {"X-Real-Ip": "203.0.113.9", "X-Scheme": "https"}
    for target in ("/native", "/wsgi"):
        # 127.0.0.1 is not in forwarded_allow_ips; a Unix socket need not be.
        forged = json.loads(server.request(target, headers=fields).body)
        assert (forged["ip"], forged["scheme"]) == ("127.0.0.1", "http")
    native = json.loads(server.request("/native", headers=fields, address="unix:proxy.sock").body)
    assert (native["ip"], native["scheme"]) == ("203.0.113.9", "https")
