from __future__ import annotations

import asyncio
import re

import pytest
from tornado.ioloop import IOLoop

from helpers.waiting import eventually
from tornado_worker.connection.isolation import IsolatedLoop
from tornado_worker.logs.counted_line import CountedLine


@pytest.mark.gen_test
async def test_first_is_told_at_once_and_the_rest_in_one_line(io_loop):
    lines = asyncio.Queue()
    line = CountedLine(lambda message, *args: lines.put_nowait(message % args), interval_s=0.2)
    loop = IsolatedLoop(IOLoop.current())
    for number in range(1000):
        line.tell(loop, "bad client %d", number)
    assert lines.qsize() == 1
    assert lines.get_nowait() == "bad client 0"
    assert await asyncio.wait_for(lines.get(), 30) == "bad client 999 (the last of 999 in 0.2 s)"


@pytest.mark.gen_test
async def test_one_alone_is_told_as_it_is(io_loop):
    lines = []
    line = CountedLine(lambda message, *args: lines.append(message % args), interval_s=0.01)
    loop = IsolatedLoop(IOLoop.current())
    line.tell(loop, "bad client %d", 1)
    while line._timer is not None:
        await asyncio.sleep(0.01)
    line.tell(loop, "bad client %d", 2)
    assert lines == ["bad client 1", "bad client 2"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_bad_tls_hellos_are_counted(gunicorn, tls, loop):
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server = gunicorn(
        "import tornado.web; app = tornado.web.Application([])",
        args=["--certfile", str(tls.certfile), "--keyfile", str(tls.keyfile)],
        config=f"asgi_loop = '{loop}'",
    )
    for number in range(200):
        with server.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n" if number % 2 else b"\0" * 100)
            try:
                while client.recv(1000):
                    pass
            except ConnectionResetError:
                pass

    def told():
        lines = [line for line in server.log.splitlines() if "SSL Error" in line]
        counts = [re.search(r"the last of (\d+) in 10 s", line) for line in lines]
        return len(lines), sum(int(match[1]) if match else 1 for match in counts)

    eventually(lambda: told()[1] == 200, timeout_s=60)
    assert told()[0] <= 20
    assert server.count_log("Traceback|Fatal error|ERROR") == 0
