"""What a connection that speaks HTTP/2 needs of its server. The interface alone."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from tornado_worker.connection.delivery import ExchangeServer
from tornado_worker.connection.stream import TransportStream
from tornado_worker.http2.head import HeadRules

__all__ = ["HTTP2_SETTINGS", "HTTP2Options", "HTTP2Server"]


@dataclasses.dataclass(frozen=True)
class HTTP2Options:
    """What the server tells its clients in SETTINGS: Gunicorn's settings of the same names.

    A new option needs a field here, and nothing else to come from Gunicorn's configuration
    or from an argument of HTTPServer.
    """

    #: Streams that a client may have open at a time, on each connection.
    http2_max_concurrent_streams: int = 100
    #: Bytes of a body that a client may send ahead of the application, on each stream.
    http2_initial_window_size: int = 65535
    #: Bytes of a frame's payload.
    http2_max_frame_size: int = 16384
    #: Bytes of a head's fields, each with 32 more; 0: a megabyte.
    http2_max_header_list_size: int = 65536

    @property
    def header_list_max(self) -> int:
        """Bytes of a head's fields. Unlimited is a megabyte, as it is for a line of HTTP/1."""
        return self.http2_max_header_list_size or 1024 * 1024

    def __post_init__(self) -> None:
        for name, least, most in (
            ("http2_max_concurrent_streams", 1, 2**31 - 1),
            ("http2_initial_window_size", 1, 2**31 - 1),
            ("http2_max_frame_size", 16384, 2**24 - 1),
            ("http2_max_header_list_size", 0, 2**32 - 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name}: expected {least} to {most}; got {value!r}")


#: Names of the options, which are Gunicorn's settings, and arguments of HTTPServer.
HTTP2_SETTINGS = tuple(field.name for field in dataclasses.fields(HTTP2Options))


class HTTP2Server(ExchangeServer, Protocol):
    """The server of a connection that speaks HTTP/2."""

    http2: HTTP2Options

    @property
    def rules(self) -> HeadRules:
        """What heads must keep."""

    def on_stream_detached(self, stream: TransportStream) -> None:
        """Note that an application has one of the connection's streams to itself."""
