"""Gunicorn's settings and SERVER_OPTIONS as arguments of `HTTPServer`, and as a loop.

May read Gunicorn's configuration and its TLS code. Never touches a socket, a
running loop or a process: the results are passed on as they are.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gunicorn import sock

from tornado_worker.config.peer_policy import GunicornPolicy
from tornado_worker.http1.reader import READER_SETTINGS, ReaderOptions
from tornado_worker.http2.interfaces import HTTP2_SETTINGS

__all__ = [
    "SAME_NAMES",
    "SETTINGS_FOR",
    "http2_options",
    "loop_factory",
    "reader_options",
    "server_arguments",
    "ssl_context",
    "wsgi_arguments",
]

#: HTTPServer arguments, and the setting that has the same job: one place for each thing.
SETTINGS_FOR = {
    "idle_connection_timeout": "keepalive",
    "keepalive_timeout": "keepalive",
    "max_connections": "worker_connections",
    "max_header_size": "limit_request_line, limit_request_fields and limit_request_field_size",
    "no_keep_alive": "keepalive = 0",
    "ssl_options": "certfile and keyfile, or the ssl_context hook",
}
#: HTTPServer arguments that are called like the setting.
SAME_NAMES = (*READER_SETTINGS, "http_protocols", "http2_cleartext", *HTTP2_SETTINGS)
# Entries of SERVER_OPTIONS for WSGI containers alone.
_CONTAINER_OPTIONS = {"max_spool_size"}


class ServerSettings(Protocol):
    """Gunicorn's configuration, with the settings that have other names in HTTPServer."""

    http_protocols: list[str]
    http2_cleartext: str
    is_ssl: bool
    keepalive: int
    worker_connections: int


def server_arguments(cfg: ServerSettings, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of the HTTPServer for Gunicorn's `cfg`, and SERVER_OPTIONS.

    Loads the certificate, so it may raise exceptions of `ssl` and of the user's
    `ssl_context` hook.
    """
    arguments = reader_options(cfg)
    arguments["max_header_size"] = ReaderOptions(**arguments).limits_allow
    arguments["policy"] = GunicornPolicy(cfg)
    arguments["max_connections"] = cfg.worker_connections
    arguments["http_protocols"] = cfg.http_protocols
    arguments["http2_cleartext"] = cfg.http2_cleartext
    arguments.update(http2_options(cfg))
    arguments["no_keep_alive"] = cfg.keepalive == 0
    if cfg.keepalive:
        arguments["keepalive_timeout"] = float(cfg.keepalive)
    if cfg.is_ssl:
        arguments["ssl_options"] = ssl_context(cfg)
    for name, value in options.items():
        if name not in _CONTAINER_OPTIONS:
            arguments[name] = value
    return arguments


def wsgi_arguments(options: Mapping[str, Any], slow_s: float) -> dict[str, Any]:
    """Return the keyword arguments of WSGI containers for SERVER_OPTIONS and SLOW_HANDLER."""
    return {
        "max_body_size": options.get("max_body_size"),
        "max_spool_size": options.get("max_spool_size"),
        "slow_s": slow_s,
    }


def reader_options(cfg: Any) -> dict[str, Any]:
    """Return the arguments of `ReaderOptions`, which HTTPServer takes too."""
    return {name: getattr(cfg, name) for name in READER_SETTINGS}


def http2_options(cfg: Any) -> dict[str, int]:
    """Return the arguments of `HTTP2Options`, which HTTPServer takes too."""
    return {name: getattr(cfg, name) for name in HTTP2_SETTINGS}


def ssl_context(cfg: Any) -> ssl.SSLContext:
    """Return the TLS context of `cfg`; calls the user's `ssl_context` hook."""
    context: ssl.SSLContext = sock.ssl_context(cfg)
    if "h2" not in cfg.http_protocols:
        # HTTPServer advertises what it speaks beyond this.
        context.set_alpn_protocols(["http/1.1"])
    return context


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of the event loop that the setting `asgi_loop` names.

    Raises RuntimeError when it asks for uvloop and uvloop is not there.
    """
    if name != "asyncio":
        try:
            import uvloop
        except ImportError as e:
            if name == "uvloop":
                raise RuntimeError(
                    f"asgi_loop = 'uvloop' needs the package uvloop ({e}): install"
                    " tornado-worker[fast], or set asgi_loop to 'auto' or 'asyncio'"
                ) from None
        else:
            new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
            return new_loop
    return asyncio.new_event_loop
