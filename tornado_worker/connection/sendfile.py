"""Send a file over a plain connection without copying it through Python.

uvloop has no `loop.sendfile`, and both loops refuse to watch a descriptor that
a transport owns; a duplicate of it serves on both.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from tornado.iostream import StreamClosedError

from tornado_worker.connection.flow import Connection

__all__ = ["send_file"]

# Bytes given to the kernel at once, before other connections get their turn.
_BLOCK = 512 * 1024


async def send_file(
    conn: Connection, is_wanted: Callable[[], bool], fd: int, offset: int, count: int
) -> None:
    """Send `count` bytes of the file `fd` from `offset`, after what is written already.

    `is_wanted` tells whether they still have somebody to go to.
    Raises OSError when the file is shorter or the connection breaks, and
    StreamClosedError when it is closed; the connection is then aborted, for a
    part of the body has left.
    """
    loop = conn.loop
    try:
        if is_wanted():
            await conn.wait_until_written()
        if not is_wanted():
            raise StreamClosedError()
        sock = os.dup(conn.transport.get_extra_info("socket").fileno())
        try:
            while count:
                try:
                    sent = os.sendfile(sock, fd, offset, min(count, _BLOCK))
                except (BlockingIOError, InterruptedError):
                    # As if the transport had said so: a peer that takes nothing
                    # is cut off in time, and a connection that is lost ends the
                    # wait, which nothing on our duplicate would.
                    conn.pause_writing()
                    loop.add_writer(sock, conn.resume_writing)
                    try:
                        await conn.write(b"")
                    finally:
                        loop.remove_writer(sock)
                else:
                    if sent == 0:
                        raise OSError(f"file ended {count} bytes before its announced length")
                    offset += sent
                    count -= sent
                    await asyncio.sleep(0)
                if not is_wanted():
                    raise StreamClosedError()
        finally:
            os.close(sock)
    except BaseException:
        conn.abort()
        raise
