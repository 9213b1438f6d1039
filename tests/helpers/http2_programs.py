"""What the tests of HTTP/2 with other people's programs share: servers, and programs run.

`Http2Programs` starts our server on a loop in a thread of this process, over TLS or in
cleartext; what a program prints is for the tests to judge.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

from helpers.http2_app import application
from helpers.server_thread import Serve, ServerThread

__all__ = ["Address", "Http2Programs", "run_program"]

# Much longer than any of them takes; a program that hangs is ended, and the test fails.
_LIMIT_S = 60.0


def run_program(*command: str | os.PathLike[str], stdin: bytes = b"") -> bytes:
    """Run a program to its end; return what it prints. Fail if it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=_LIMIT_S)
    if done.returncode != 0:
        raise AssertionError(
            f"{' '.join(map(str, command))}: exit code {done.returncode}\n"
            f"{done.stdout[-2000:].decode(errors='replace')}\n"
            f"{done.stderr[-2000:].decode(errors='replace')}"
        )
    return done.stdout


class Address:
    """A server, and where it is for a client: `url` without a path."""

    def __init__(self, thread: ServerThread, scheme: str) -> None:
        self.thread = thread
        self.scheme = scheme
        self.url = f"{scheme}://localhost:{thread.port}"


class Http2Programs:
    """Starts servers for one test; `tls` is the fixture of that name, None for cleartext."""

    def __init__(self, serve: Serve, tls: Any) -> None:
        self._serve = serve
        self.tls = tls

    def __call__(
        self, *handlers: tuple[Any, ...], settings: dict[str, Any] | None = None, **options: Any
    ) -> Address:
        """Serve `helpers.http2_app`, with handlers in front of its own."""
        options = {"http_protocols": "h2,h1", **options}
        if self.tls is None:
            options.setdefault("http2_cleartext", "both")
        else:
            options["ssl_options"] = self.tls.server_context()
        app: Any = application(**(settings or {}))
        if handlers:
            app.add_handlers(".*", list(handlers))
        return Address(self._serve(app, **options), "http" if self.tls is None else "https")
