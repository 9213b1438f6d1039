"""Defaults of Tornado's WebSockets in a worker: how long messages may be, and when to ping.

Changes two properties of Tornado's WebSocketHandler for the whole process.
"""

from __future__ import annotations

import sys

from tornado.websocket import WebSocketHandler

__all__ = ["limit_messages", "ping_by_default"]


def limit_messages(limit: int) -> None:
    """Make `limit` (bytes; 0: none) the default of the setting `websocket_max_message_size`.

    A handler class that overrides `max_message_size`, and the application's
    setting, come first, as in Tornado.
    """
    default = limit or sys.maxsize

    def max_message_size(self: WebSocketHandler) -> int:
        size: int = self.settings.get("websocket_max_message_size", default)
        return size

    WebSocketHandler.max_message_size = property(max_message_size)  # type: ignore[assignment]


def ping_by_default(interval: float) -> None:
    """Make `interval` (seconds; 0: no pings) the default of `websocket_ping_interval`.

    Tornado's is not to ping, so that a client that vanished without a word costs
    its place until TCP notices. A handler class that overrides `ping_interval`,
    and the application's setting, come first, as in Tornado.
    """

    if not interval:
        return

    def ping_interval(self: WebSocketHandler) -> float:
        settings = self.settings
        if "websocket_ping_interval" not in settings:
            # Tornado warns of a timeout that is longer than the interval.
            return max(interval, settings.get("websocket_ping_timeout") or 0)
        value: float = settings["websocket_ping_interval"]
        return value

    WebSocketHandler.ping_interval = property(ping_interval)  # type: ignore[assignment]
