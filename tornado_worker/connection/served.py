"""The connections of a server as it sees them, of any protocol. The interface alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tornado_worker.connection.exchange import RequestConnection
from tornado_worker.connection.isolation import IsolatedLoop

__all__ = ["ServedConnection"]


class ServedConnection(Protocol):
    """One of a server's connections: the server keeps it, and looks into none of its states."""

    loop: IsolatedLoop

    @property
    def was_made(self) -> bool:
        """Whether `connection_made` was called."""

    def exchanges(self) -> list[RequestConnection]:
        """Return the exchanges that are not over."""

    def sweep(self, now: float) -> Callable[[], None] | None:
        """Return what ends the connection, if it has waited too long at the loop time `now`."""

    def begin_drain(self) -> None:
        """Begin no exchange after those that there are. The sweep closes what is idle."""

    def cut(self) -> tuple[int, int]:
        """End now; return how many exchanges got a 503, and how many were cut off."""

    async def close(self) -> None:
        """Close at once, and return when the connection is gone."""
