"""The environ of each exchange: the one that the application got, or one like it.

Access log and hooks show its values. May know the environs of `wsgi`; never an application.
"""

from __future__ import annotations

from typing import Any

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.reporting.hook_views import ExchangeFacts
from tornado_worker.reporting.notes import notes_of
from tornado_worker.wsgi.environ import EnvironBuilder, ErrorStream

__all__ = ["EnvironNotes"]


class EnvironNotes:
    """An observer that keeps a WSGI application's environ for the others."""

    def __init__(self, cfg: Any) -> None:
        self._builder = EnvironBuilder(
            threads=cfg.threads,
            workers=cfg.workers,
            root_path=cfg.root_path,
            # The server's policy has dropped the fields that the peer may not send.
            drop_underscores=False,
            errors=ErrorStream(cfg),
        )

    def exchange_noted(self, exchange: RequestConnection, note: object) -> None:
        # The application may change it, and the access log tells of the changes.
        assert isinstance(note, dict)
        notes_of(exchange).environ = note

    def environ_of(self, exchange: ExchangeFacts) -> dict[str, Any]:
        """Return the application's environ; one like it, and from now on the same, if none came."""
        notes = notes_of(exchange)
        if notes.environ is not None:
            return notes.environ
        context = exchange.context
        address = context.address
        try:
            environ = self._builder.build(
                exchange.start_line,
                exchange.headers,
                exchange,
                address[0] if isinstance(address, tuple) else "",
                context.protocol,
            )
        except ValueError:
            # A target that does not begin with SCRIPT_NAME.
            method, _, version = exchange.start_line
            environ = {
                "REQUEST_METHOD": method,
                "PATH_INFO": exchange.raw_target,
                "QUERY_STRING": "",
                "SERVER_PROTOCOL": version,
                "REMOTE_ADDR": address[0] if isinstance(address, tuple) else "",
            }
        environ["RAW_URI"] = exchange.raw_target
        notes.environ = environ
        return environ
