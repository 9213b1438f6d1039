"""`HTTPServer` without a worker: made by Tornado's name, and serving in a script."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tornado.httpserver
from tornado import web

import tornado_worker

APP = web.Application()


def test_configure_makes_tornados_name_ours() -> None:
    assert tornado.httpserver.HTTPServer.configured_class() is tornado_worker.HTTPServer
    made = tornado.httpserver.HTTPServer(APP)
    assert type(made) is tornado_worker.HTTPServer
    assert isinstance(made, tornado.httpserver.HTTPServer)


@pytest.mark.parametrize("how", ["listen", "bind and start", "add_socket", "app.listen"])
def test_it_serves_alone_in_a_script(tmp_path: Path, how: str) -> None:
    start = {
        "listen": "server = HTTPServer(app)\nserver.listen(0, '127.0.0.1')",
        "bind and start": "server = HTTPServer(app)\nserver.bind(0, '127.0.0.1')\nserver.start()",
        "add_socket": "server = HTTPServer(app)\nserver.add_socket(*bind_sockets(0, '127.0.0.1'))",
        "app.listen": "server = app.listen(0, '127.0.0.1')",
    }[how]
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """\
            import asyncio
            import urllib.request
            import tornado.httpserver, tornado.web
            from tornado.netutil import bind_sockets
            from tornado_worker import HTTPServer

            tornado.httpserver.HTTPServer.configure("tornado_worker.HTTPServer")

            class Hello(tornado.web.RequestHandler):
                def get(self):
                    self.write("hello")

            async def main():
                app = tornado.web.Application([("/", Hello)])
            """
        )
        + textwrap.indent(start, "    ")
        + textwrap.dedent(
            """
                assert type(server) is HTTPServer
                port = next(iter(server._sockets.values())).getsockname()[1]
                get = lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
                print((await asyncio.to_thread(get)).decode())
                server.stop()
                await server.close_all_connections()

            asyncio.run(main())
            """
        ).replace("\n    ", "\n    ")
    )
    result = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:tornado_worker", str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.stdout, result.stderr, result.returncode) == ("hello\n", "", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"http_parser": "slow"}, "http_parser: expected auto, fast or python; got 'slow'"),
    ],
)
def test_wrong_argument_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        tornado_worker.HTTPServer(APP, **options)
    with pytest.raises(TypeError):
        tornado_worker.HTTPServer(APP, unknown=1)
