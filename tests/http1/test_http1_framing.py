"""What is a message and what is not: every case whole, byte by byte, and with more behind it.

The application echoes what it was given, so each case pins the request's
meaning and the exact bytes of the answer. Mirrors `tornado_worker.http1.connection` and
`tornado_worker.http1.reader` where they meet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from helpers.server_thread import Client, Messages, Serve

FEEDS = ["whole", "bytes", "trailing"]

NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"


def echo(text: str | bytes, *fields: str) -> bytes:
    """Return the echo's response; `fields` stand behind Content-Length."""
    body = text.encode("latin-1") if isinstance(text, str) else text
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n"
    return (head + "".join(f"{field}\r\n" for field in fields) + "\r\n").encode() + body


NEXT_ANSWER = echo("GET /next HTTP/1.1 next ")


class Case(NamedTuple):
    request: bytes
    answer: bytes
    closes: bool = False
    #: Whether the bytes behind are another request; after CONNECT they are not.
    pipelines: bool = True


def get(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


VALID = {
    "get": Case(get("/", "Host: a"), echo("GET / HTTP/1.1 a ")),
    "query": Case(get("/p?q=1&r=%20", "Host: a"), echo("GET /p?q=1&r=%20 HTTP/1.1 a ")),
    "one empty line before": Case(
        b"\r\n" + get("/", "Host: a"),
        echo("GET / HTTP/1.1 a "),
    ),
    "field names in any case": Case(get("/", "hOST: a"), echo("GET / HTTP/1.1 a ")),
    "space around a value": Case(get("/", "Host: \t a \t "), echo("GET / HTTP/1.1 a ")),
    "no space before a value": Case(get("/", "Host:a"), echo("GET / HTTP/1.1 a ")),
    "empty value": Case(get("/", "Host: a", "X:", "Y: "), echo("GET / HTTP/1.1 a ")),
    "latin-1 value": Case(get("/", "Host: a", "X: \xe9"), echo("GET / HTTP/1.1 a ")),
    "content-length": Case(
        get("/", "Host: a", "Content-Length: 5", method="POST") + b"hello",
        echo("POST / HTTP/1.1 a hello"),
    ),
    "content-length 0": Case(
        get("/", "Host: a", "Content-Length: 0", method="POST"),
        echo("POST / HTTP/1.1 a "),
    ),
    "content-length with leading zeros": Case(
        get("/", "Host: a", "Content-Length: 0005", method="POST") + b"hello",
        echo("POST / HTTP/1.1 a hello"),
    ),
    "body of a GET": Case(
        get("/", "Host: a", "Content-Length: 2") + b"hi",
        echo("GET / HTTP/1.1 a hi"),
    ),
    "body with line breaks": Case(
        get("/", "Host: a", "Content-Length: 8", method="PUT") + b"\r\n\r\n\n\0\r\n",
        echo(b"PUT / HTTP/1.1 a \r\n\r\n\n\0\r\n"),
    ),
    "chunked": Case(
        get("/", "Host: a", "Transfer-Encoding: chunked", method="POST")
        + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
        echo("POST / HTTP/1.1 a hello!"),
    ),
    "chunked without a chunk": Case(
        get("/", "Host: a", "Transfer-Encoding: chunked", method="POST") + b"0\r\n\r\n",
        echo("POST / HTTP/1.1 a "),
    ),
    "chunk sizes in any case and with zeros": Case(
        get("/", "Host: a", "Transfer-Encoding: Chunked", method="POST")
        + b"0A\r\n0123456789\r\n00b\r\n0123456789a\r\n000\r\n\r\n",
        echo("POST / HTTP/1.1 a 01234567890123456789a"),
    ),
    "chunk extensions": Case(
        get("/", "Host: a", "Transfer-Encoding: chunked", method="POST")
        + b'5;a=b;c;d="e f"\r\nhello\r\n0;last\r\n\r\n',
        echo("POST / HTTP/1.1 a hello"),
    ),
    "trailers": Case(
        get("/", "Host: a", "Transfer-Encoding: chunked", "Trailer: X", method="POST")
        + b"5\r\nhello\r\n0\r\nX: y\r\nZ: w\r\n\r\n",
        echo("POST / HTTP/1.1 a hello"),
    ),
    "head": Case(
        get("/", "Host: a", method="HEAD"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    "connection close": Case(
        get("/", "Host: a", "Connection: close"),
        echo("GET / HTTP/1.1 a ", "Connection: close"),
        closes=True,
    ),
    "connection close among others": Case(
        get("/", "Host: a", "Connection: x, Close"),
        echo("GET / HTTP/1.1 a ", "Connection: close"),
        closes=True,
    ),
    "http/1.2": Case(get("/", "Host: a", version="1.2"), echo("GET / HTTP/1.1 a ")),
    "chunked in http/1.9": Case(
        get("/", "Host: a", "Transfer-Encoding: chunked", method="POST", version="1.9")
        + b"5\r\nhello\r\n0\r\n\r\n",
        echo("POST / HTTP/1.1 a hello"),
    ),
    **{
        f"host {host!r}": Case(get("/", f"Host: {host}"), echo(f"GET / HTTP/1.1 {host} "))
        for host in (
            *("", "a.b", "a.b:80", "a:", "192.0.2.1:8000", "[::1]", "[2001:db8::1]:443", "a_b"),
            *("a%20b", "x-y.z~", "!$&'()*+;=", ":80"),
        )
    },
    "http/1.0": Case(
        get("/", version="1.0"), echo("GET / HTTP/1.0 - ", "Connection: close"), closes=True
    ),
    "http/1.0 keep-alive": Case(
        get("/", "Connection: keep-alive", version="1.0"),
        echo("GET / HTTP/1.0 - ", "Connection: Keep-Alive"),
    ),
    "http/1.0 body": Case(
        get("/", "Content-Length: 2", method="POST", version="1.0") + b"hi",
        echo("POST / HTTP/1.0 - hi", "Connection: close"),
        closes=True,
    ),
    "absolute form": Case(
        get("http://b/p?q", "Host: a"),
        echo("GET /p?q HTTP/1.1 b "),
    ),
    "absolute form without a path": Case(
        get("http://b", "Host: a"),
        echo("GET / HTTP/1.1 b "),
    ),
    "absolute form with a query and no path": Case(
        get("http://b:81?q", "Host: a"),
        echo("GET /?q HTTP/1.1 b:81 "),
    ),
    "absolute form of another scheme": Case(
        get("HTTPS://b/p", "Host: a"),
        echo("GET /p HTTP/1.1 b "),
    ),
    "options *": Case(
        get("*", "Host: a", method="OPTIONS"),
        echo("OPTIONS * HTTP/1.1 a "),
    ),
    "connect": Case(
        get("b:443", "Host: b:443", method="CONNECT"),
        echo("CONNECT b:443 HTTP/1.1 b:443 ", "Connection: close"),
        closes=True,
        pipelines=False,
    ),
    "upgrade nobody takes": Case(
        get("/", "Host: a", "Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMA"),
        echo("GET / HTTP/1.1 a "),
    ),
    "method nobody knows": Case(
        get("/", "Host: a", method="M-SEARCH"),
        echo("M-SEARCH / HTTP/1.1 a "),
    ),
    "te field": Case(get("/", "Host: a", "TE: gzip, trailers"), echo("GET / HTTP/1.1 a ")),
    "expect something else": Case(
        get("/", "Host: a", "Content-Length: 0", method="POST"),
        echo("POST / HTTP/1.1 a "),
    ),
    "expect 100-continue in http/1.0": Case(
        get("/", "Expect: 100-continue", "Content-Length: 2", method="POST", version="1.0") + b"hi",
        echo("POST / HTTP/1.0 - hi", "Connection: close"),
        closes=True,
    ),
}


def feed(client: Client, data: bytes, how: str) -> None:
    if how == "bytes":
        client.send_slowly(data)
    else:
        client.send(data)


@pytest.mark.parametrize("how", FEEDS)
@pytest.mark.parametrize("name", VALID)
def test_valid_request_is_understood_and_answered(serve: Serve, name: str, how: str) -> None:
    case = VALID[name]
    client = serve(Messages()).connect()
    feed(client, case.request + (NEXT if how == "trailing" else b""), how)
    client.expect(case.answer)
    if case.closes:
        client.shutdown()
        client.expect_close()
        return
    if how != "trailing":
        client.send(NEXT)
    client.expect(NEXT_ANSWER)


# -- what is refused -----------------------------------------------------------


class Refusal(NamedTuple):
    request: bytes
    status: int = 400
    #: Whether the application may have heard of the request: its head was right.
    head_is_valid: bool = False


REASONS = {
    400: "Bad Request",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
}


def post(*fields: str, body: bytes = b"", version: str = "1.1") -> bytes:
    return get("/", "Host: a", *fields, method="POST", version=version) + body


def chunked(body: bytes) -> bytes:
    return post("Transfer-Encoding: chunked", body=body)


MALFORMED = {
    # Start lines.
    "garbage": Refusal(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "no version": Refusal(b"GET /\r\nHost: a\r\n\r\n"),
    "http/0.9": Refusal(b"GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
    "http/2.0": Refusal(get("/", "Host: a", version="2.0")),
    "http/3.1": Refusal(get("/", "Host: a", version="3.1")),
    "http/2 preface": Refusal(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "version in lower case": Refusal(b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "version with a letter": Refusal(b"GET / HTTP/1.x\r\nHost: a\r\n\r\n"),
    "version too long": Refusal(b"GET / HTTP/1.11\r\nHost: a\r\n\r\n"),
    "method in lower case": Refusal(get("/", "Host: a", method="get")),
    "method with a space": Refusal(b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "method with a control": Refusal(b"GE\x01T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two spaces before the target": Refusal(b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two spaces before the version": Refusal(b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space behind the version": Refusal(b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "tab in the start line": Refusal(b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space in the target": Refusal(b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "non-ascii target": Refusal("GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode()),
    "latin-1 target": Refusal(b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "nul in the target": Refusal(b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "del in the target": Refusal(b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n"),
    "relative target": Refusal(get("p", "Host: a")),
    "relative target with a scheme mark": Refusal(get("?://p", "Host: a")),
    "authority form of a GET": Refusal(get("b:80", "Host: b:80")),
    "asterisk form of a GET": Refusal(get("*", "Host: a")),
    "absolute form without a host": Refusal(get("http:///p", "Host: a")),
    "absolute form with half an IPv6 address": Refusal(get("http://[::1/p", "Host: a")),
    "absolute form with a user": Refusal(get("http://u@b/p", "Host: a")),
    "connect without a target": Refusal(b"CONNECT  HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two empty lines before": Refusal(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bare cr before": Refusal(b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "asterisk form of a POST": Refusal(get("*", "Host: a", method="POST")),
    # Hosts.
    "no host": Refusal(get("/")),
    "no host in http/1.2": Refusal(get("/", version="1.2")),
    "no host beside an absolute form": Refusal(get("http://b/p")),
    "no host of options *": Refusal(get("*", method="OPTIONS")),
    **{
        f"host {host!r}": Refusal(get("/", f"Host: {host}"))
        for host in (
            *("user@a", "a/path", "a, b", "a b", "a,b", "a?b", "a#b", "a:b", "a:80:80", "a:-1"),
            *("[::1", "::1]", "[::1]x", "[a]b", "http://a", "a%", "a%4", "a\\b", "a\xe4"),
            *("a\tb", '"a"', "<a>", "[", "[]"),
        )
    },
    "a wrong host in http/1.0": Refusal(get("/", "Host: a b", version="1.0")),
    "two hosts in http/1.0": Refusal(get("/", "Host: a", "Host: a", version="1.0")),
    # Fields.
    "two hosts": Refusal(get("/", "Host: a", "Host: b")),
    "two hosts, one value": Refusal(get("/", "Host: a", "host: a")),
    "bare lf behind the start line": Refusal(b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    "bare lf behind a field": Refusal(b"GET / HTTP/1.1\r\nHost: a\n\r\n"),
    "bare lf ends the head": Refusal(b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    "only bare lf": Refusal(b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare cr in a value": Refusal(get("/", "Host: a", "X: a\rb")),
    "cr lf cr without lf": Refusal(b"GET / HTTP/1.1\r\nHost: a\r\n\rX: y\r\n\r\n"),
    "nul in a value": Refusal(get("/", "Host: a", "X: a\0b")),
    "control in a value": Refusal(get("/", "Host: a", "X: a\x01b")),
    "del in a value": Refusal(get("/", "Host: a", "X: a\x7fb")),
    "nul in a name": Refusal(get("/", "Host: a", "X\0: b")),
    "folded field": Refusal(get("/", "Host: a", "X: a", " b")),
    "field folded by a tab": Refusal(get("/", "Host: a", "X: a", "\tb")),
    "space before the first field": Refusal(get("/", " Host: a")),
    "space before the colon": Refusal(get("/", "Host : a")),
    "tab before the colon": Refusal(get("/", "Host\t: a")),
    "field without a colon": Refusal(get("/", "Host: a", "X")),
    "field without a name": Refusal(get("/", "Host: a", ": x")),
    "name with a space": Refusal(get("/", "Host: a", "X Y: z")),
    "name with a delimiter": Refusal(get("/", "Host: a", "X(Y): z")),
    "non-ascii name": Refusal(get("/", "Host: a", "X\xe9: z")),
    # Lengths.
    "length and transfer coding": Refusal(
        post("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n")
    ),
    "transfer coding and length": Refusal(
        post("Transfer-Encoding: chunked", "Content-Length: 5", body=b"0\r\n\r\n")
    ),
    "two lengths": Refusal(post("Content-Length: 5", "Content-Length: 6", body=b"hello!")),
    "one length twice": Refusal(post("Content-Length: 5", "Content-Length: 5", body=b"hello")),
    "list of lengths": Refusal(post("Content-Length: 5, 5", body=b"hello")),
    "length with a plus": Refusal(post("Content-Length: +5", body=b"hello")),
    "length with a minus": Refusal(post("Content-Length: -5", body=b"hello")),
    "length with an underscore": Refusal(post("Content-Length: 1_0", body=b"hello")),
    "length in hexadecimal": Refusal(post("Content-Length: 0x5", body=b"hello")),
    "length with a fraction": Refusal(post("Content-Length: 5.0", body=b"hello")),
    "length with a space inside": Refusal(post("Content-Length: 5 5", body=b"hello")),
    "length in other digits": Refusal(post("Content-Length: \xb2", body=b"he")),
    "empty length": Refusal(post("Content-Length:", body=b"hello")),
    "length of 400 digits": Refusal(post("Content-Length: " + "9" * 400), 400, True),
    "length of 5000 digits": Refusal(post("Content-Length: " + "9" * 5000), 400, True),
    "length of 2**64": Refusal(post("Content-Length: 18446744073709551616"), 400, True),
    "length of 2**64 and 5": Refusal(
        post("Content-Length: 18446744073709551621", body=b"hello"), 400, True
    ),
    # Codings.
    "gzip alone": Refusal(post("Transfer-Encoding: gzip")),
    "gzip, chunked": Refusal(post("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
    "gzip, chunked in two fields": Refusal(
        post("Transfer-Encoding: gzip", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 501
    ),
    "unknown coding, chunked": Refusal(
        post("Transfer-Encoding: x, chunked", body=b"0\r\n\r\n"), 501
    ),
    "chunked, gzip": Refusal(post("Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n")),
    "identity": Refusal(post("Transfer-Encoding: identity")),
    "identity, chunked": Refusal(
        post("Transfer-Encoding: identity, chunked", body=b"0\r\n\r\n"), 501
    ),
    "chunked twice in one field": Refusal(
        post("Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n")
    ),
    "chunked twice in two fields": Refusal(
        post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n")
    ),
    "unknown coding": Refusal(post("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 501),
    "chunked and an unknown coding": Refusal(
        post("Transfer-Encoding: chunked, x", body=b"0\r\n\r\n"), 501
    ),
    "coding in quotes": Refusal(post('Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 501),
    "coding with a no-break space": Refusal(
        post("Transfer-Encoding: \xa0chunked", body=b"0\r\n\r\n")
    ),
    "empty coding": Refusal(post("Transfer-Encoding:", body=b"0\r\n\r\n"), 501),
    "chunked in http/1.0": Refusal(
        post("Transfer-Encoding: chunked", body=b"0\r\n\r\n", version="1.0")
    ),
    # Chunks.
    "chunk without a size": Refusal(chunked(b"\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk size with a plus": Refusal(chunked(b"+5\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk size with a minus": Refusal(chunked(b"-5\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk size with an underscore": Refusal(chunked(b"1_0\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk size with 0x": Refusal(chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk size with a space before": Refusal(chunked(b" 5\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk size with a space behind": Refusal(chunked(b"5 \r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk size of 2**64": Refusal(chunked(b"10000000000000000\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk size of 2**64 and 5": Refusal(
        chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"), 400, True
    ),
    "chunk size of 100 digits": Refusal(chunked(b"f" * 100 + b"\r\nhello"), 400, True),
    "chunk size line with bare lf": Refusal(chunked(b"5\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk extension with bare cr": Refusal(chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk extension with bare lf": Refusal(chunked(b"5;a\nb\r\nhello\r\n0\r\n\r\n"), 400, True),
    "chunk extension with nul": Refusal(chunked(b"5;a\0\r\nhello\r\n0\r\n\r\n"), 400, True),
    **{
        f"chunk extension {extension!r}": Refusal(
            chunked(b"5" + extension + b"\r\nhello\r\n0\r\n\r\n"), 400, True
        )
        for extension in (
            *(b";", b"; ", b";;a", b";a=", b";a= ", b";=b", b";bad[=x", b";a=b[", b";a b"),
            *(b';a="b', b';a=b"', b';a="b"c', b';a="\x01"', b';a="b\\"', b";a=\xe4", b";a\x7f"),
        )
    },
    "extension of the last chunk": Refusal(chunked(b"0;\r\n\r\n"), 400, True),
    "trailer without a colon": Refusal(chunked(b"0\r\nbad\r\n\r\n"), 400, True),
    "trailer with a wrong name": Refusal(chunked(b"0\r\nb[d: 5\r\n\r\n"), 400, True),
    "trailer without a name": Refusal(chunked(b"0\r\n: 5\r\n\r\n"), 400, True),
    "trailer with a space before the colon": Refusal(chunked(b"0\r\na : 5\r\n\r\n"), 400, True),
    "folded trailer": Refusal(chunked(b"0\r\na: 5\r\n b\r\n\r\n"), 400, True),
    "trailer with nul": Refusal(chunked(b"0\r\na: 5\0\r\n\r\n"), 400, True),
    "trailer with bare cr": Refusal(chunked(b"0\r\na: 5\rb: 6\r\n\r\n"), 400, True),
    "trailer with del": Refusal(chunked(b"0\r\na: \x7f\r\n\r\n"), 400, True),
    "host as a trailer": Refusal(chunked(b"0\r\nHost: b\r\n\r\n"), 400, True),
    "chunk too long": Refusal(chunked(b"5\r\nhello!\r\n0\r\n\r\n"), 400, True),
    "chunk too short": Refusal(chunked(b"5\r\nhell\r\n0\r\n\r\n"), 400, True),
    "chunk ends with bare lf": Refusal(chunked(b"5\r\nhello\n0\r\n\r\n"), 400, True),
    "chunk ends with bare cr": Refusal(chunked(b"5\r\nhello\r0\r\n\r\n"), 400, True),
    "chunk ends with other bytes": Refusal(chunked(b"5\r\nhelloxx0\r\n\r\n"), 400, True),
    "trailer ends with bare lf": Refusal(chunked(b"0\r\nX: y\n\r\n"), 400, True),
    "length as a trailer": Refusal(chunked(b"0\r\nContent-Length: 5\r\n\r\n"), 400, True),
    "coding as a trailer": Refusal(chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400, True),
}


def refusal(status: int) -> bytes:
    head = f"HTTP/1.1 {status} {REASONS[status]}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    return head.encode()


@pytest.mark.parametrize("how", FEEDS)
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_is_refused(serve: Serve, name: str, how: str) -> None:
    case = MALFORMED[name]
    app = Messages()
    server = serve(app)
    other = server.connect()
    other.send(NEXT[:30])
    client = server.connect()

    feed(client, case.request + (NEXT if how == "trailing" else b""), how)
    assert client.receive_all() == refusal(case.status)
    client.close()
    serve.logs.expect(r"re:INFO tornado.general: Malformed HTTP message from 127.0.0.1: .+")

    assert not any(message.finished for message in app.messages)
    assert case.head_is_valid or app.messages == []
    other.send(NEXT[30:])
    other.expect(NEXT_ANSWER)


@pytest.mark.parametrize("how", FEEDS)
@pytest.mark.parametrize("second", ["no version", "chunk too long", "two lengths"])
def test_malformed_request_behind_a_valid_one_leaves_its_answer_alone(
    serve: Serve, second: str, how: str
) -> None:
    client = serve(Messages()).connect()
    data = VALID["chunked"].request + MALFORMED[second].request
    feed(client, data + (NEXT if how == "trailing" else b""), how)
    assert client.receive_all() == VALID["chunked"].answer + refusal(400)
    serve.logs.expect(r"re:INFO tornado.general: Malformed HTTP message from 127.0.0.1: .+")


# -- limits --------------------------------------------------------------------

LIMITS: dict[str, tuple[Any, ...]] = {
    "request line": (get("/" + "a" * 100, "Host: a"), {"limit_request_line": 100}, 414),
    "endless request line": (b"GET /" + b"a" * 200, {"limit_request_line": 100}, 414),
    "field": (get("/", "Host: a", "X: " + "a" * 100), {"limit_request_field_size": 100}, 431),
    "endless field": (
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200,
        {"limit_request_field_size": 100},
        431,
    ),
    "fields": (
        get("/", "Host: a", "X: 1", "X: 2", "X: 3"),
        {"limit_request_fields": 3},
        431,
    ),
    "default number of fields": (get("/", "Host: a", *["X: y"] * 100), {}, 431),
    "header section": (
        get("/", "Host: a", "X: " + "a" * 50, "X: " + "a" * 50),
        {"max_header_size": 100},
        431,
    ),
    "endless header section": (
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20,
        {"max_header_size": 100},
        431,
    ),
    "trailers": (
        chunked(b"0\r\nX: 1\r\nY: 2\r\n\r\n"),
        {"limit_request_fields": 3},
        431,
        True,
    ),
    "trailer": (
        chunked(b"0\r\nX: " + b"a" * 100 + b"\r\n\r\n"),
        {"limit_request_field_size": 100},
        431,
        True,
    ),
    "endless trailer": (
        chunked(b"0\r\nX: " + b"a" * 200),
        {"limit_request_field_size": 100},
        431,
        True,
    ),
    "header section and trailers": (
        chunked(b"0\r\nX: " + b"a" * 50 + b"\r\n\r\n"),
        {"max_header_size": 100},
        431,
        True,
    ),
    "default header section": (
        get("/", "Host: a", *["X: " + "a" * 8000] * 9),
        {},
        431,
    ),
}


@pytest.mark.parametrize("how", FEEDS)
@pytest.mark.parametrize("name", LIMITS)
def test_message_over_a_limit_is_refused(serve: Serve, name: str, how: str) -> None:
    request, options, status, *head_is_valid = LIMITS[name]
    if how == "bytes" and len(request) > 2000:
        pytest.skip("slow, and no different")
    if how == "trailing" and "endless" in name:
        pytest.skip("nothing is behind what has no end")
    app = Messages()
    client = serve(app, **options).connect()
    feed(client, request + (NEXT if how == "trailing" else b""), how)
    assert client.receive_all() == refusal(status)
    serve.logs.expect(r"re:INFO tornado.general: Malformed HTTP message from 127.0.0.1: .+")
    assert not any(message.finished for message in app.messages)
    assert head_is_valid or app.messages == []


@pytest.mark.parametrize("how", FEEDS)
def test_message_at_its_limits_is_answered(serve: Serve, how: str) -> None:
    # Gunicorn counts a field with its line break.
    request = get("/" + "a" * 86, "Host: a", "X: " + "a" * 95, "Y: z")
    client = serve(
        Messages(),
        limit_request_line=100,
        limit_request_field_size=100,
        limit_request_fields=3,
    ).connect()
    feed(client, request + NEXT, how)
    client.expect(echo(f"GET /{'a' * 86} HTTP/1.1 a ") + NEXT_ANSWER)


def test_limits_do_not_count_a_body(serve: Serve) -> None:
    client = serve(Messages(), max_header_size=100).connect()
    client.send(post("Content-Length: 1000", body=b"b" * 1000) + NEXT)
    client.expect(echo("POST / HTTP/1.1 a " + "b" * 1000) + NEXT_ANSWER)


@pytest.mark.parametrize(
    ("option", "request_line", "understood"),
    [
        ("permit_unconventional_http_method", b"get / HTTP/1.1", b"get / HTTP/1.1"),
        ("permit_unconventional_http_version", b"GET / HTTP/2.0", b"GET / HTTP/1.1"),
    ],
)
def test_unconventional_start_line_is_answered_when_permitted(
    serve: Serve, option: str, request_line: bytes, understood: bytes
) -> None:
    client = serve(Messages(), **{option: True}).connect()
    client.send(request_line + b"\r\nHost: a\r\nConnection: close\r\n\r\n")
    response = client.response()
    assert response.body == understood + b" a "
    client.expect_close()
