"""Files on their way to a client that does not take them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from helpers.waiting import eventually
from helpers.wsgi_server import ServeWSGI, request, serve_wsgi

__all__ = ["serve_wsgi"]


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_client_that_reads_no_more_of_a_file_holds_nothing(
    serve_wsgi: ServeWSGI, tmp_path: Path, half_closed: bool
) -> None:
    if serve_wsgi.stock:
        pytest.skip("the stock server waits for such clients")
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 1 << 30)  # sparse
    files = []

    def open_file() -> Any:
        files.append(path.open("rb"))
        return files[-1]

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](open_file())

    server = serve_wsgi(
        app,
        validate=False,
        server={"stall_timeout": 60 if half_closed else 0.5},
    )
    client = server.connect(kernel_buffer=65536)
    client.send(request())
    client.receive(100_000)
    if half_closed:
        client.shutdown()
    # The client is still there.
    eventually(lambda: files[0].closed, "the file is closed")
    eventually(lambda: not server.tasks(), "no task is left")
    eventually(lambda: not server.connections, "no connection is left")
    serve_wsgi.logs.expect(
        *([] if half_closed else ["INFO tornado.general: Timeout writing to 127.0.0.1"])
    )
