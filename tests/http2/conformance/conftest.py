"""The server under test, on each loop, over cleartext and over TLS.

The tests beside this ask one question of the RFCs each, in frames of their own; a docstring
names the section.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_server import Http2Serve
from helpers.server_thread import Serve


@pytest.fixture(params=["cleartext", "tls"])
def http2(request: pytest.FixtureRequest, serve: Serve, tls: Any) -> Iterator[Http2Serve]:
    """Start an HTTP/2 server: `http2(**options) -> Http2Server`."""
    yield Http2Serve(serve, tls if request.param == "tls" else None)
    # What a peer does wrong is worth a line at INFO at most.
    while serve.servers:
        serve.servers.pop().close()
    serve.logs.expect_only(r"re:INFO tornado\.\w+: .*", r"re:INFO tornado_worker[.\w]*: .*")


@pytest.fixture
def client(http2: Http2Serve) -> Http2Client:
    """Return a client whose connection is ready, of a server with the default settings."""
    return http2().start()
