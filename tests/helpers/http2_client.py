"""A blocking HTTP/2 client that sends whatever it is told to, right or wrong.

`helpers.http2_connection` checks what comes back; what must follow is for the tests to say.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from helpers.http2_connection import Http2Connection, Response, Stream
from helpers.http2_fields import Field, request_fields
from helpers.http2_frames import (
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    PREFACE,
    Code,
    Flag,
    Kind,
    Setting,
    frame_bytes,
    settings_payload,
)

__all__ = ["Http2Client"]


class Http2Client(Http2Connection):
    """One connection, with all that a test may want to send and to wait for."""

    # -- sending -------------------------------------------------------------

    def preface(self, settings: Iterable[tuple[int, int]] = ()) -> bytes:
        """Return the preface, which is then to be sent."""
        return PREFACE + self._settings_bytes(settings)

    def start(self, settings: Iterable[tuple[int, int]] = ()) -> None:
        """Exchange the connection prefaces, and wait until both sides have acknowledged."""
        self.send(self.preface(settings))
        self.wait_for(lambda: not self.unacknowledged, "acknowledgement of our settings")
        self.sync()

    def send_settings(self, pairs: Iterable[tuple[int, int]]) -> None:
        self.send(self._settings_bytes(pairs))

    def _settings_bytes(self, pairs: Iterable[tuple[int, int]]) -> bytes:
        pairs = list(pairs)
        self.unacknowledged.append(pairs)
        # Sizes may be used from the moment that the server knows them.
        sizes = [value for key, value in pairs if key == Setting.MAX_FRAME_SIZE]
        self.largest_frame = max([self.largest_frame, *sizes])
        return frame_bytes(Kind.SETTINGS, 0, 0, settings_payload(pairs))

    def change_settings(self, *pairs: tuple[int, int]) -> None:
        """Send settings and return when the server applies them."""
        self.send_settings(pairs)
        self.wait_for(lambda: not self.unacknowledged, "acknowledgement of our settings")

    def open(self, stream_id: int | None = None, method: bytes = b"GET") -> int:
        """Keep books of a stream from here; for those who send its HEADERS themselves."""
        if stream_id is None:
            stream_id = self.highest_stream_id + (1 if self.highest_stream_id % 2 == 0 else 2)
        window = self.server_settings.get(Setting.INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)
        self.streams[stream_id] = Stream(method, self.initial_credit, window)
        self.highest_stream_id = max(self.highest_stream_id, stream_id)
        return stream_id

    def request(
        self,
        path: str = "/echo",
        *fields: tuple[str | bytes, str | bytes],
        method: str = "GET",
        end: bool | None = None,
        stream_id: int | None = None,
    ) -> int:
        """Send the head of a well-formed request; `end` unless it is one that has a body."""
        if end is None:
            end = method not in ("POST", "PUT", "PATCH", "CONNECT")
        return self.send_request(request_fields(path, *fields, method=method), end, stream_id)

    def send_request(
        self, fields: Iterable[Field], end: bool = True, stream_id: int | None = None
    ) -> int:
        """Send these fields as the head of a request; return the stream's identifier."""
        fields = list(fields)
        methods = [value for name, value in fields if name == b":method"]
        stream_id = self.open(stream_id, methods[0] if methods else b"GET")
        self.send_block(stream_id, self.encoder.encode(fields), end=end)
        return stream_id

    def send_block(self, stream_id: int, block: bytes, *, end: bool) -> None:
        """Send a field block in as many frames as it takes."""
        parts = [block[i : i + 16384] for i in range(0, len(block), 16384)] or [b""]
        kind, flags = Kind.HEADERS, Flag.END_STREAM if end else Flag.NONE
        for i, part in enumerate(parts, 1):
            last = Flag.END_HEADERS if i == len(parts) else Flag.NONE
            self.send_frame(kind, flags | last, stream_id, part)
            kind, flags = Kind.CONTINUATION, Flag.NONE

    def send_trailers(self, stream_id: int, fields: Iterable[Field], *, end: bool = True) -> None:
        self.send_block(stream_id, self.encoder.encode(list(fields)), end=end)

    def send_data(
        self, stream_id: int, data: bytes = b"", *, end: bool = False, padding: int | None = None
    ) -> None:
        """Send one DATA frame, whatever the windows say; `padding` bytes of padding if any."""
        flags = Flag.END_STREAM if end else Flag.NONE
        if padding is not None:
            flags |= Flag.PADDED
            data = bytes([padding]) + data + bytes(padding)
        self.window -= len(data)
        if stream_id in self.streams:
            self.streams[stream_id].window -= len(data)
        self.send_frame(Kind.DATA, flags, stream_id, data)

    def upload(self, stream_id: int, data: bytes, *, end: bool = True) -> None:
        """Send a body as the windows let it."""
        stream = self.streams[stream_id]
        rest = memoryview(data)
        while rest:
            self.wait_for(lambda: min(self.window, stream.window) > 0, "credit for an upload")
            size = min(self.window, stream.window, DEFAULT_FRAME_SIZE)
            self.send_data(stream_id, bytes(rest[:size]), end=end and size >= len(rest))
            rest = rest[size:]
        if end and not data:
            self.send_data(stream_id, end=True)

    def reset(self, stream_id: int, code: int = Code.CANCEL) -> None:
        self.send_frame(Kind.RST_STREAM, 0, stream_id, struct.pack(">L", code))

    def go_away(self, last_stream_id: int = 0, code: int = Code.NO_ERROR) -> None:
        self.send_frame(Kind.GOAWAY, payload=struct.pack(">LL", last_stream_id, code))

    # -- waiting -------------------------------------------------------------

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Take frames until `condition()` is true."""
        while not condition():
            if self.take() is None:
                raise AssertionError(f"connection ended before {what}; {self.summary()}")

    def sync(self) -> None:
        """Return when all frames sent so far have been read by the server, and none closed it."""
        payload = struct.pack(">Q", len(self.ping_answers) + 1)
        self.send_frame(Kind.PING, payload=payload)
        self.wait_for(lambda: payload in self.ping_answers, "the answer to our PING")

    def response(self, stream_id: int) -> Response:
        stream = self.streams[stream_id]
        self.wait_for(lambda: stream.closed, f"the response on stream {stream_id}")
        assert stream.ended, f"stream {stream_id} was reset: {stream.reset}"
        return self.response_on(stream)

    def answer(self, stream_id: int) -> Any:
        """Return what `/echo` or `/upload` has understood of the request on this stream."""
        response = self.response(stream_id)
        assert response.status == 200, response
        return json.loads(response.body)

    def get(self, path: str = "/echo", *fields: tuple[str | bytes, str | bytes]) -> Response:
        return self.response(self.request(path, *fields))

    def expect_stream_error(self, stream_id: int, *codes: Code) -> None:
        """The server resets the stream with one of these codes, and nothing else happens.

        A malformed request may be answered first, RFC 9113 section 8.1.1.
        """
        stream = self.streams[stream_id]
        self.wait_for(lambda: stream.reset is not None, f"a reset of stream {stream_id}")
        assert stream.reset in codes, f"{Code(stream.reset or 0)!r}; expected {codes}"
        if stream.fields is not None and Code.PROTOCOL_ERROR in codes:
            assert 400 <= self.response_on(stream).status < 500
        self.sync()

    def expect_refusal(self, stream_id: int) -> None:
        """The request has a client's error for an answer, or is malformed; the connection lives."""
        stream = self.streams[stream_id]
        self.wait_for(lambda: stream.closed, f"an answer on stream {stream_id}")
        if stream.ended:
            assert 400 <= self.response_on(stream).status < 500
        else:
            assert stream.reset == Code.PROTOCOL_ERROR
        self.sync()

    def expect_connection_error(self, *codes: Code, goaway_may_be_missing: bool = False) -> None:
        """The server says GOAWAY with one of these codes and closes."""
        while not self._has_failed() and self.take() is not None:
            pass
        if not (goaway_may_be_missing and not self.goaways):
            assert self.goaways, f"closed without GOAWAY; {self.summary()}"
            code = self.goaways[-1].code
            assert code in codes, f"{self.goaways[-1]}; expected {codes}"
        self.expect_end()

    def _has_failed(self) -> bool:
        return bool(self.goaways) and self.goaways[-1].code != Code.NO_ERROR

    def expect_end(self) -> None:
        """Say that we have nothing more to send, and read to the end.

        A server cannot close one half of TLS, and may wait a while for us to close ours.
        """
        if not self.closed and isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while self.sock.recv(1 << 16):
                    pass
            self.closed = True
        while self.take() is not None:
            pass

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """What happens in the block must not touch the streams beside it.

        An upload is under way meanwhile and comes to its end after; another request follows,
        whose fields refer to what was added to the header table.
        """
        beside = self.request("/echo", ("x-beside", "before and after"), method="POST")
        self.send_data(beside, b"before, ")
        yield
        self.send_data(beside, b"after", end=True)
        response = self.response(beside)
        assert response.status == 200
        assert b"before, after" in response.body
        assert b"before and after" in self.get("/echo", ("x-beside", "before and after")).body
