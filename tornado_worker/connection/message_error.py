"""The refusal of a message, in every protocol. Knows nothing else."""

from __future__ import annotations

__all__ = ["MessageError"]


class MessageError(Exception):
    """A message that is refused; `status` answers it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
