"""Bounds how often a client may do what costs it nothing and the server something.

CVE-2019-9512 and its kin (control frames), CVE-2023-44487 and CVE-2025-8671 (streams that are
reset, by either side). Counts; knows nothing of frames.
"""

from __future__ import annotations

from tornado_worker.http2.errors import ConnectionFault, ErrorCode

__all__ = ["CONTROL_FRAMES_MAX", "RESETS_MAX", "FloodGuard"]

# As many in so long (seconds). Browsers that cancel all that a page loads stay far below.
_PERIOD_S = 10.0
#: Streams that are reset: those that the client resets, and those that it makes us reset.
RESETS_MAX = 200
#: Frames that carry nothing of a request.
CONTROL_FRAMES_MAX = 1000


class FloodGuard:
    """Counts one connection's events by period."""

    __slots__ = ("_control_frames", "_resets", "_since")

    def __init__(self) -> None:
        self._since = 0.0
        self._resets = 0
        self._control_frames = 0

    def count_reset(self, now: float) -> None:
        """Count a stream that was reset. Raises ConnectionFault."""
        self._renew(now)
        self._resets += 1
        if self._resets > RESETS_MAX:
            raise _too_many("streams reset", RESETS_MAX)

    def count_control_frame(self, now: float) -> None:
        """Count a frame that carries nothing of a request. Raises ConnectionFault."""
        self._renew(now)
        self._control_frames += 1
        if self._control_frames > CONTROL_FRAMES_MAX:
            raise _too_many("control frames", CONTROL_FRAMES_MAX)

    def _renew(self, now: float) -> None:
        if now - self._since > _PERIOD_S:
            self._since = now
            self._resets = self._control_frames = 0


def _too_many(what: str, most: int) -> ConnectionFault:
    return ConnectionFault(
        ErrorCode.ENHANCE_YOUR_CALM, f"more than {most} {what} in {_PERIOD_S:g} seconds"
    )
