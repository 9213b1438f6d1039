"""A close frame for every WebSocket of a worker that leaves.

Looks at the owners of streams only. Knows nothing of frames or signals, and does not decide
when a worker leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tornado.log import app_log
from tornado.websocket import WebSocketHandler

from tornado_worker.connection.stream import TransportStream
from tornado_worker.drain import draining
from tornado_worker.lifecycle.loop_calls import LoopCalls

__all__ = ["Farewell"]

# The shortest time between two groups (seconds). Few WebSockets are closed one by one, many
# in groups.
_STEP_S = 0.01


class Farewell:
    """Sends each WebSocket a close frame, spread over time; an observer for those yet to come.

    Ten thousand clients of a worker that leaves would otherwise all be back in one instant.
    The caller waits for them to go.
    """

    def __init__(self, calls: LoopCalls, code: int, reason: str) -> None:
        self._calls = calls
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
            self._close(waiting.pop())
        if waiting:
            self._calls.loop.call_later(_STEP_S, self._close_next, waiting, size)

    def exchange_detached(self, exchange: object, stream: TransportStream, data: bytes) -> None:
        """Close a WebSocket that is opened during the drain. An `ExchangeObserver`'s method."""
        if draining.is_set():
            # Not before its open() has been called.
            self._calls.soon(self._close, stream)

    def _close(self, stream: TransportStream) -> None:
        """Close `stream` if it is an open WebSocket; repeating is safe."""
        handler = stream.owner
        if isinstance(handler, WebSocketHandler) and not stream.closed():
            try:
                stream.call_aside(handler.close, self._code, self._reason)
            except Exception:
                # An application's own close(): the other WebSockets must be closed all the same.
                app_log.error("Exception while closing a WebSocket", exc_info=True)
