"""Workarounds for gaps in asyncio's and uvloop's transports.

For connections and for the streams that take them over. Knows nothing of either.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import sys
import termios
from typing import Any

__all__ = [
    "abort",
    "forget_frames",
    "hang_up",
    "reset_when_closed",
    "resets_when_closed",
    "sending_state",
]


# Whether this process may have children with copies of its sockets.
_has_forked = False


def _note_fork(has_forked: bool) -> None:
    global _has_forked
    _has_forked = has_forked


# A child starts afresh: it serves only connections that it has accepted itself.
os.register_at_fork(
    after_in_parent=lambda: _note_fork(True), after_in_child=lambda: _note_fork(False)
)


# The value of SO_LINGER with which close() sends a reset.
_RESET = struct.pack("ii", 1, 0)
_NO_RESET = struct.pack("ii", 0, 0)


def reset_when_closed(transport: Any, wanted: bool) -> None:
    """Have the end of the connection reach the peer as a reset, however it comes.

    Wanted while a body without an end of its own is under way: the peer would take an orderly
    end of the connection for the end of the body. The kernel keeps to it even when this process
    is killed. Unix sockets have no resets.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        # A connection that has gone needs neither.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET if wanted else _NO_RESET)


def resets_when_closed(transport: Any) -> bool:
    """Tell whether `reset_when_closed` is in force."""
    sock = transport.get_extra_info("socket")
    try:
        return sock is not None and _resets(sock)
    except OSError:
        return False


def _resets(sock: Any) -> bool:
    option = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RESET))
    return bool(option[:4] != _NO_RESET[:4] and option[4:] == _RESET[4:])


def _disconnect(fd: int) -> None:
    """Reset a TCP connection, even if other processes have its socket too (Linux only)."""
    if sys.platform == "linux":
        # connect() to an address of no family, which Python's does not offer.
        ctypes.CDLL(None).connect(fd, bytes(16), 16)


def hang_up(transport: Any) -> None:
    """Tell the peer that nothing more comes, when the transport is about to close its socket.

    Closing alone does not while a child that the application has forked, as
    `multiprocessing` does, has the socket too. Costs nothing where nobody forks.
    """
    if not _has_forked:
        return
    sock = transport.get_extra_info("socket")
    fd = -1 if sock is None else sock.fileno()
    if fd < 0:
        return
    with socket.socket(sock.family, sock.type, sock.proto, fd) as same:
        # A peer that has gone is no news.
        with contextlib.suppress(OSError):
            if _resets(same):
                _disconnect(fd)
            else:
                same.shutdown(socket.SHUT_WR)
        same.detach()


def forget_frames(error: BaseException | None) -> None:
    """Let an error that is kept with a connection not keep the frames that it was raised in.

    They are of the application's calls, and refer to the connection, so that all of it
    would wait for the cyclic garbage collector.
    """
    if error is not None:
        error.__traceback__ = None


def abort(transport: Any) -> None:
    """Abort a transport, and let the peer know: with a reset if it does not get all."""
    if transport.get_write_buffer_size():
        reset_when_closed(transport, True)
    if not transport.can_write_eof():
        # TLS: its layers call connection_lost when the socket has been closed.
        hang_up(transport)
    transport.abort()


# Where `struct tcp_info` of Linux has tcpi_bytes_acked, a 64-bit counter.
_BYTES_ACKED_AT = 120


def sending_state(transport: Any) -> tuple[int, int]:
    """Return how many bytes the peer has not got, and a number that changes when it gets some.

    Both are exact where the transport or Linux can tell; over TLS elsewhere the
    second may stand still while the peer reads.
    """
    left: int = transport.get_write_buffer_size()
    if transport.get_extra_info("ssl_object") is None:
        return left, left
    # Beneath TLS is another transport, whose buffer cannot be seen. When there
    # is something in it, then there is in the kernel's as well.
    sock = transport.get_extra_info("socket")
    try:
        data = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
        left += struct.unpack("i", data)[0]
        size = _BYTES_ACKED_AT + 8
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        return left, struct.unpack_from("Q", info, _BYTES_ACKED_AT)[0]
    except (AttributeError, OSError, ValueError, struct.error):
        return left, left  # closed, or not a TCP socket, or not Linux
