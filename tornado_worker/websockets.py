"""Tornado's WebSockets in a worker: limited, pinged while they are open, told when it leaves.

May call Tornado's WebSocketHandler; knows streams only by what owns them, and
nothing of frames, of signals or of when a worker leaves.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Iterable

from tornado.log import app_log
from tornado.websocket import WebSocketHandler

from tornado_worker.stream import TransportStream

__all__ = ["Farewell", "limit_messages", "ping_by_default"]

# At the shortest between two groups (seconds): one by one a few, in groups many.
_STEP_S = 0.01


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


class Farewell:
    """Sends each WebSocket a close frame, spread over time.

    For who leaves with ten thousand clients, which would otherwise all be back
    in one instant. Waiting for them to go is the caller's.
    """

    def __init__(self, code: int, reason: str) -> None:
        self._code = code
        self._reason = reason

    def begin(self, streams: Iterable[TransportStream], spread_s: float) -> None:
        """Close those of `streams` that are WebSockets, the last in `spread_s` seconds at most.

        Without a spread all of them are closed when this returns.
        """
        waiting = [stream for stream in streams if isinstance(stream.owner, WebSocketHandler)]
        size = math.ceil(len(waiting) * _STEP_S / spread_s) if spread_s > 0 else len(waiting)
        self._close_next(waiting, size)

    def _close_next(self, waiting: list[TransportStream], size: int) -> None:
        for _ in range(min(size, len(waiting))):
            self.close(waiting.pop())
        if waiting:
            loop = asyncio.get_running_loop()
            loop.call_later(_STEP_S, self._close_next, waiting, size)

    def close(self, stream: TransportStream) -> None:
        """Close `stream` if it is an open WebSocket; repeating is safe."""
        handler = stream.owner
        if isinstance(handler, WebSocketHandler) and not stream.closed():
            try:
                stream.call_aside(handler.close, self._code, self._reason)
            except Exception:
                # An application's own close(): the other WebSockets come first.
                app_log.error("Exception while closing a WebSocket", exc_info=True)
