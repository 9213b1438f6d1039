"""The phases of a connection, and which may follow which: a state table, as in h11.

Data alone. `Connection._enter` is the only place that changes a phase, and checks
the change here.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["CHANGES", "Phase"]


class Phase:
    """A state of a connection, named by the event for which it waits.

    Not an Enum: in Python 3.11 one costs twice as much to look up, and ten times as much to
    hash (1.1 us), several times for each request.
    """

    __slots__ = ("awaits_request", "is_ending", "is_reading", "name")

    NEW: ClassVar[Phase]  #: the first byte
    IDLE: ClassVar[Phase]  #: another request
    HEAD: ClassVar[Phase]  #: the rest of a header section
    BODY: ClassVar[Phase]  #: the rest of a body
    RESPONSE: ClassVar[Phase]  #: the application
    STREAMS: ClassVar[Phase]  #: what is due on some of its streams, of which HTTP/2 has many
    LINGER: ClassVar[Phase]  #: the peer to stop sending, after a last response
    CLOSING: ClassVar[Phase]  #: the last bytes to leave, or the TLS shutdown
    CLOSED: ClassVar[Phase]  #: nothing
    DETACHED: ClassVar[Phase]  #: nothing: a TransportStream has the transport

    def __init__(
        self,
        name: str,
        *,
        awaits_request: bool = False,
        is_reading: bool = False,
        is_ending: bool = False,
    ) -> None:
        self.name = name
        #: Whether nothing of a request has come: such a connection may end without a loss.
        self.awaits_request = awaits_request
        #: Whether the peer is to send something of a request.
        self.is_reading = is_reading
        #: Whether no exchange begins or goes on: the connection ends, or has ended.
        self.is_ending = is_ending

    def __repr__(self) -> str:
        return f"Phase.{self.name}"


NEW = Phase.NEW = Phase("NEW", awaits_request=True, is_reading=True)
IDLE = Phase.IDLE = Phase("IDLE", awaits_request=True, is_reading=True)
HEAD = Phase.HEAD = Phase("HEAD", is_reading=True)
BODY = Phase.BODY = Phase("BODY", is_reading=True)
RESPONSE = Phase.RESPONSE = Phase("RESPONSE")
STREAMS = Phase.STREAMS = Phase("STREAMS", is_reading=True)
LINGER = Phase.LINGER = Phase("LINGER", is_ending=True)
CLOSING = Phase.CLOSING = Phase("CLOSING", is_ending=True)
CLOSED = Phase.CLOSED = Phase("CLOSED", is_ending=True)
DETACHED = Phase.DETACHED = Phase("DETACHED")

# A connection may be lost in every phase, and be closed or aborted until it is. An exchange
# may detach it as long as no other exchange has begun, even while it ends.
_ALWAYS = {CLOSING, CLOSED, DETACHED}

#: The phases that may follow each phase.
CHANGES: dict[Phase, frozenset[Phase]] = {
    NEW: frozenset({HEAD, STREAMS, LINGER, *_ALWAYS}),
    IDLE: frozenset({HEAD, STREAMS, LINGER, *_ALWAYS}),
    # To NEW: it was the header of the PROXY protocol.
    HEAD: frozenset({NEW, BODY, LINGER, *_ALWAYS}),
    BODY: frozenset({RESPONSE, LINGER, *_ALWAYS}),
    RESPONSE: frozenset({IDLE, LINGER, *_ALWAYS}),
    STREAMS: frozenset({IDLE, LINGER, *_ALWAYS}),
    LINGER: frozenset(_ALWAYS),
    # To itself: what is closing is aborted.
    CLOSING: frozenset(_ALWAYS),
    CLOSED: frozenset(),
    DETACHED: frozenset(),
}
