"""How long a connection may wait, in each of its phases; one server, one `Timeouts`.

Numbers only; `HTTP1Channel.sweep` and `Connection.sweep` compare.
"""

from __future__ import annotations

import dataclasses

__all__ = ["Timeouts"]


@dataclasses.dataclass(slots=True)
class Timeouts:
    """All in seconds. Waiting for the application has no limit."""

    #: Between a connection and its first header section's end; and for each further section.
    header: float
    #: Between a response and the next request.
    idle: float
    #: Without a byte of progress, of a body that arrives or of a response that leaves.
    stall: float
    #: For a client that has got its last response, to stop sending (nginx: 5).
    linger: float = 5.0
    #: For the answer to the end of a TLS connection, which many clients never give.
    closing: float = 1.0
    #: In a drain, between a response and a request that may be on its way.
    drain_grace: float = 1.0

    def shortest(self) -> float:
        return min(self.header, self.idle, self.stall, self.linger, self.closing)
