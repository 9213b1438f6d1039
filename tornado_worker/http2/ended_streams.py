"""What a connection remembers of streams that are over: frames for them may be on their way.

Numbers only; what a late frame means is the connection's to say (RFC 9113 section 5.1).
"""

from __future__ import annotations

__all__ = ["EndedStreams"]

_REMEMBERED_MAX = 200


class EndedStreams:
    """How the latest streams ended, by id."""

    __slots__ = ("_was_reset",)

    def __init__(self) -> None:
        self._was_reset: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self._was_reset)

    def __contains__(self, stream_id: int) -> bool:
        return stream_id in self._was_reset

    def was_reset(self, stream_id: int) -> bool:
        """Tell whether we have reset it: the client may not know, so its frames are no fault."""
        return self._was_reset.get(stream_id, False)

    def add(self, stream_id: int, was_reset: bool = False) -> None:
        """Remember that it is over. That we have reset it stays true."""
        self._was_reset[stream_id] = was_reset or self.was_reset(stream_id)
        if len(self._was_reset) > _REMEMBERED_MAX:
            del self._was_reset[next(iter(self._was_reset))]

    def keep_resets(self) -> None:
        """Forget the others: of those only faults can come."""
        self._was_reset = {number: True for number, reset in self._was_reset.items() if reset}
