"""WSGI environs, key by key those of Gunicorn's own workers.

`EnvironBuilder` makes an environ of a start line, header fields and the two ends of a
connection. Only reads its arguments; never touches bodies, responses or threads.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Any
from urllib.parse import unquote_to_bytes

import gunicorn
from gunicorn.http.wsgi import FileWrapper, WSGIErrorsWrapper
from gunicorn.util import split_request_uri
from tornado import httputil
from tornado.httputil import split_host_and_port

from tornado_worker.drain import draining
from tornado_worker.logs.failures import note_lost
from tornado_worker.wsgi.connections import PeerContext, RequestSource

__all__ = ["EnvironBuilder", "ErrorStream", "FileWrapper"]

# Clients choose the names, so the cache must not grow without bound.
_KEYS_MAX = 1000
# Tornado's stand-in for peers without an IP address.
_NO_IP = "0.0.0.0"


class ErrorStream(io.TextIOBase):
    """`wsgi.errors`: Gunicorn's error log, or standard error without a Gunicorn.

    Looks its target up at every write, so that it follows a log that was
    reopened (SIGUSR1). Any thread.
    """

    def __init__(self, cfg: Any = None) -> None:
        self._cfg = cfg

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._cfg is None:
            sys.stderr.write(text)
            return len(text)
        try:
            WSGIErrorsWrapper(self._cfg).write(text)
        except (OSError, ValueError, AttributeError) as error:
            # A full disk, or a file that could not be reopened (its stream is
            # None), is not the application's to handle.
            for handler in logging.getLogger("gunicorn.error").handlers:
                if hasattr(handler, "stream"):
                    note_lost(handler, error)
        return len(text)

    def flush(self) -> None:
        if self._cfg is None:
            sys.stderr.flush()

    def close(self) -> None:
        """Do nothing: all requests share the stream."""


class _Keys(dict[str | bytes, str]):
    """Maps field names to environ keys; "" for a field that is dropped."""

    def __init__(self, drop_underscores: bool) -> None:
        self._drop_underscores = drop_underscores

    def __missing__(self, name: str | bytes) -> str:
        upper = (name if isinstance(name, str) else name.decode("latin-1")).upper()
        if upper in ("CONTENT-TYPE", "CONTENT-LENGTH"):
            key = upper.replace("-", "_")
        elif "_" in upper and self._drop_underscores:
            key = ""
        else:
            key = "HTTP_" + upper.replace("-", "_")
        if len(self) < _KEYS_MAX:
            self[name] = key
        return key


class EnvironBuilder:
    """Builds environs for one application; make it where `os.environ` is final.

    Differences from Gunicorn's sync worker, and why:

    - `gunicorn.socket` is left out. The socket belongs to the loop: an
      application that read from or wrote to it would corrupt the connection.
    - `root_path`, which Gunicorn uses for ASGI only, is SCRIPT_NAME unless the
      environment variable or the header of that name says otherwise.
    - `tornado_worker.draining` is added: a `threading.Event`, set when the worker
      begins to stop.

    Fields with an underscore in their name are dropped unless told otherwise:
    `X_A` and `X-A` become the same key, and SCRIPT_NAME moves the application.
    The worker's server has already dropped the fields that its settings forbid.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        workers: int = 1,
        root_path: str = "",
        drop_underscores: bool = True,
        errors: ErrorStream | None = None,
    ) -> None:
        self._base: dict[str, Any] = {
            "wsgi.errors": errors or ErrorStream(),
            "wsgi.version": (1, 0),
            "wsgi.multithread": threads > 1,
            "wsgi.multiprocess": workers > 1,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
            "SERVER_SOFTWARE": gunicorn.SERVER_SOFTWARE,
            "tornado_worker.draining": draining.event,
        }
        self._script_name = os.environ.get("SCRIPT_NAME", "")
        self._root_path = root_path.rstrip("/")
        self._keys = _Keys(drop_underscores)

    def build(
        self,
        start_line: httputil.RequestStartLine,
        headers: httputil.HTTPHeaders,
        connection: RequestSource,
        remote_ip: str,
        protocol: str,
    ) -> dict[str, Any]:
        """Return an environ without `wsgi.input` and `wsgi.early_hints`.

        `remote_ip` and `protocol` are those of `connection.context` when the
        request arrived (`xheaders` changes them for one request at a time).
        Raises ValueError for a target that SCRIPT_NAME is not a prefix of.
        """
        method, target, version = start_line
        environ = self._fields(headers)
        environ.update(self._base)
        # As received: our server makes origin-form of the absolute form.
        raw = connection.raw_target or target
        if raw[0] == "/":
            # The same as urlsplit's result, for a fortieth of the price (10 us).
            path, _, query = raw.partition("#")[0].partition("?")
        else:
            parts = split_request_uri(raw)
            path, query = parts.path, parts.query
        environ["REQUEST_METHOD"] = method
        environ["RAW_URI"] = raw
        environ["QUERY_STRING"] = query
        environ["SERVER_PROTOCOL"] = version
        environ["wsgi.url_scheme"] = protocol
        self._add_addresses(environ, connection.context, remote_ip, protocol)

        script_name = self._script_name
        # Not the field Script-Name, which has the same key.
        if "HTTP_SCRIPT_NAME" in environ and "Script_Name" in headers and self._keys["Script_Name"]:
            script_name = headers.get_list("Script_Name")[-1]
        if script_name:
            if not path.startswith(script_name):
                raise ValueError(
                    f"request path {path!r} does not start with SCRIPT_NAME {script_name!r}"
                )
            path = path[len(script_name) :]
        elif self._root_path:
            # Some proxies strip the prefix and some do not: both must work.
            script_name = self._root_path
            if path.startswith(script_name + "/") or path == script_name:
                path = path[len(script_name) :]
        environ["SCRIPT_NAME"] = script_name
        if "%" in path:
            path = unquote_to_bytes(path.encode("latin-1")).decode("latin-1")
        environ["PATH_INFO"] = path
        return environ

    def _fields(self, headers: httputil.HTTPHeaders) -> dict[str, Any]:
        """Return the environ entries of the header fields, repeated fields joined."""
        keys = self._keys
        # Our server's headers decode their fields when asked; this takes them
        # from the bytes instead: 3 us for a browser's 16 fields, not 9.
        wire_fields: dict[bytes, bytes] | None = getattr(headers, "wire_fields", None)
        if wire_fields is not None:
            entries = {keys[name]: str(value, "latin-1") for name, value in wire_fields.items()}
            if len(entries) == len(wire_fields):  # else two names have one key
                entries.pop("", None)
                return entries
        entries = {}
        for name, value in headers.get_all():
            key = keys[name]
            entries[key] = f"{entries[key]},{value}" if key in entries else value
        entries.pop("", None)
        return entries

    def _add_addresses(
        self, environ: dict[str, Any], context: PeerContext, remote_ip: str, protocol: str
    ) -> None:
        address = context.address
        if type(address) is tuple:
            environ["REMOTE_ADDR"] = remote_ip
            environ["REMOTE_PORT"] = str(address[1])
        elif remote_ip not in ("", _NO_IP):
            # A Unix socket, with a proxy behind it that names its client.
            environ["REMOTE_ADDR"] = remote_ip
        else:
            environ["REMOTE_ADDR"] = address if isinstance(address, str) else ""

        # Where the listener is bound, as Gunicorn has it; without that (stock
        # Tornado), the address the client reached.
        server = context.server_address
        if type(server) is tuple:
            environ["SERVER_NAME"] = server[0]
            environ["SERVER_PORT"] = str(server[1])
        else:
            # A Unix socket: fall back on the name that the client uses.
            host = environ.get("HTTP_HOST")
            name, port = split_host_and_port(host) if host else (server, "")
            if port is None:
                port = {"http": 80, "https": 443}.get(protocol, "")
            environ["SERVER_NAME"] = name
            environ["SERVER_PORT"] = str(port)

        proxy = context.proxy_protocol_info
        if proxy:
            environ["PROXY_PROTOCOL"] = proxy["proxy_protocol"]
            # The client is `context.address` already. A proxy that checks our
            # health names none, where Gunicorn makes environ values of None.
            if proxy["proxy_addr"] is not None:
                environ["PROXY_ADDR"] = proxy["proxy_addr"]
                environ["PROXY_PORT"] = str(proxy["proxy_port"])
