"""Which connections a WSGI request uses as they are, and what it makes of the others."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPConnection

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.wsgi.connections import (
    OFFERED,
    RequestSource,
    StockConnection,
    WSGIConnection,
    wsgi_connection,
)


def as_offered(connection: RequestConnection, stock: StockConnection) -> list[WSGIConnection]:
    """Have mypy compare both with the interface."""
    return [connection, stock]


def test_a_connection_of_our_server_is_used_as_it_is() -> None:
    connection = RequestConnection.__new__(RequestConnection)
    assert wsgi_connection(connection) is connection


@pytest.mark.parametrize("kind", [HTTP1Connection, HTTPConnection, object])
def test_any_other_gets_an_adapter(kind: type[Any]) -> None:
    connection: Any = object.__new__(kind)
    assert isinstance(wsgi_connection(connection), StockConnection)


def test_what_is_asked_for_is_the_interface_without_tornados_own() -> None:
    members = {
        name
        for protocol in (WSGIConnection, RequestSource)
        for name in (*vars(protocol), *inspect.get_annotations(protocol))
        if not name.startswith("_")
    }
    tornados = {"close", "finish", "set_close_callback", "write", "write_headers"}
    assert members == {*OFFERED, *tornados}


def test_a_connection_that_tells_nothing_of_its_peer_has_a_context() -> None:
    stock = wsgi_connection(SimpleNamespace())
    context = stock.context
    assert (context.remote_ip, context.protocol) == ("", "http")
    assert (context.address, context.server_address) == (None, "")
    assert context.proxy_protocol_info is stock.params is None


def test_the_context_is_read_when_it_is_asked_for() -> None:
    """Tornado's `xheaders` changes it between `start_request` and `headers_received`."""
    connection: Any = SimpleNamespace(context=SimpleNamespace(remote_ip="192.0.2.1"))
    stock = wsgi_connection(connection)
    connection.context.remote_ip = "192.0.2.2"
    assert stock.context.remote_ip == "192.0.2.2"


@pytest.mark.parametrize(("keep_alive", "expected"), [(True, ["finish"]), (False, ["close"])])
def test_a_stock_connection_ends_its_response(keep_alive: bool, expected: list[str]) -> None:
    calls: list[str] = []
    stock = wsgi_connection(
        SimpleNamespace(finish=lambda: calls.append("finish"), close=lambda: calls.append("close"))
    )
    stock.keep_alive = keep_alive
    stock.finish()
    assert calls == expected
