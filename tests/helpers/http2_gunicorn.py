"""HTTP/2 connections to a real Gunicorn, whose peers are trusted to begin with its preface."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator

from helpers.gunicorn_process import GunicornProcess
from helpers.http2_client import Field, Http2Client
from helpers.http2_fields import request_fields

__all__ = ["PRIOR_KNOWLEDGE", "connect", "open_websocket"]

#: Arguments of a Gunicorn that speaks HTTP/2 without TLS.
PRIOR_KNOWLEDGE = ["--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge"]


@contextlib.contextmanager
def connect(
    server: GunicornProcess, *, ssl_context: ssl.SSLContext | None = None
) -> Iterator[Http2Client]:
    """Yield a connection on which both sides have acknowledged each other's settings."""
    sock = server.connect()
    if ssl_context is not None:
        ssl_context.set_alpn_protocols(["h2"])
        sock = ssl_context.wrap_socket(sock, server_hostname="localhost")
    with sock:
        client = Http2Client(sock)
        client.start()
        yield client


def open_websocket(client: Http2Client, path: str) -> int:
    """Open a WebSocket by extended CONNECT (RFC 8441); return its stream when it is open."""
    fields: list[Field] = [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        *request_fields(path, ("sec-websocket-version", "13"))[1:],
    ]
    stream_id = client.send_request(fields, end=False)
    stream = client.streams[stream_id]
    client.wait_for(lambda: stream.fields or stream.closed, "the answer to CONNECT")
    assert stream.fields is not None
    assert stream.fields[0] == (b":status", b"200"), stream.fields
    return stream_id
