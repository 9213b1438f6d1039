"""The atoms of `access_log_format`, each made when a line asks for it.

Gunicorn makes all atoms for each line (45 us); here a line pays for those its format
uses. Reads an exchange, and Gunicorn's logger for the rest.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from typing import Any

from gunicorn.glogging import SafeAtoms
from gunicorn.util import unquote_to_wsgi_str

from tornado_worker.connection.fields import field_values
from tornado_worker.reporting.hook_views import ExchangeFacts, RequestView, ResponseView

__all__ = ["Atoms"]

_now = (0, "")


def _date() -> str:
    """Return the time in Apache's format, made anew once a second."""
    global _now
    second = int(time.time())
    if second != _now[0]:
        _now = (second, time.strftime("[%d/%b/%Y:%H:%M:%S %z]", time.localtime(second)))
    return _now[1]


def _escape(value: str) -> str:
    if not value.isprintable():
        # Unlike Gunicorn's: %0A in a path must not begin a line of the log.
        value = value.encode("unicode_escape").decode("ascii")
    if '"' in value:  # last, for the other would escape the backslash
        value = value.replace('"', '\\"')
    return value


# Atoms that Gunicorn takes from an environ, which the application may have changed.
_FROM_ENVIRON = {
    "h": ("REMOTE_ADDR",),
    "r": ("REQUEST_METHOD", "RAW_URI", "SERVER_PROTOCOL"),
    "f": ("HTTP_REFERER",),
    "a": ("HTTP_USER_AGENT",),
    "m": ("REQUEST_METHOD",),
    "U": ("PATH_INFO",),
    "q": ("QUERY_STRING",),
    "H": ("SERVER_PROTOCOL",),
}


class Atoms(dict[str, Any]):
    """The atoms of one line, each made when it is asked for.

    `environ` is the application's, if it got one; `make_environ` returns one in any
    case. As in Gunicorn's SafeAtoms, quotes are escaped, `{...}` names are
    case-insensitive and missing values are "-". A value stays on one line. Looking
    at all of them makes all of them.
    """

    __slots__ = ("_environ", "_exchange", "_log", "_make_environ", "_seconds", "_status", "_whole")

    def __init__(
        self,
        log: Any,
        make_environ: Callable[[ExchangeFacts], dict[str, Any]],
        environ: dict[str, Any] | None,
        exchange: ExchangeFacts,
        status: int,
        seconds: float,
    ) -> None:
        self._log = log
        self._make_environ = make_environ
        self._environ = environ
        self._exchange = exchange
        self._status = status
        self._seconds = seconds
        self._whole = False
        # The usual ones at once: 3 us instead of 9 through __missing__. Also,
        # logging takes a mapping for the arguments only if it is not empty.
        headers = exchange.headers
        self["l"] = "-"
        self["t"] = _date()
        self["s"] = str(status)
        self["b"] = str(exchange.body_sent)
        if environ is None:
            address = exchange.context.address
            self["h"] = address[0] if type(address) is tuple else str(address)
            method, _, version = exchange.start_line
            line = f"{method} {exchange.raw_target} {version}"
            self["r"] = line.replace('"', '\\"') if '"' in line else line
            values = field_values(headers, "Referer")
            self["f"] = _escape(",".join(values)) if values else "-"
            values = field_values(headers, "User-Agent")
            self["a"] = _escape(",".join(values)) if values else "-"
        if not field_values(headers, "Authorization"):
            self["u"] = "-"

    def __missing__(self, name: str) -> Any:
        environ = self._environ
        keys = None if environ is None else _FROM_ENVIRON.get(name)
        make = _ATOMS.get(name)
        if environ is not None and keys is not None:
            value: Any = " ".join([str(environ.get(key, "-")) for key in keys])
        elif make is not None:
            value = make(self._exchange, self)
        elif name[:1] == "{":
            lower = name.lower()
            if lower != name:
                return self[lower]
            value = self._named(lower[1:-2], lower[-2:])
        else:
            value = None
        if value is None:
            value = None if name == "B" else "-"
        elif type(value) is str:
            value = _escape(value)
        self[name] = value
        return value

    def _named(self, name: str, kind: str) -> str | None:
        exchange = self._exchange
        if kind == "}e":
            environ = self._make_environ(exchange)
            for key, value in environ.items():
                if key.lower() == name:
                    return str(value) if not isinstance(value, str) else value
            return None
        headers = exchange.headers if kind == "}i" else exchange.response_headers
        values = None if headers is None else headers.get_list(name)
        return values[-1] if values else None

    # For filters and formatters that look at the arguments of a record.

    def _fill(self) -> None:
        if self._whole:
            return
        self._whole = True
        exchange = self._exchange
        atoms = SafeAtoms(
            self._log.atoms(
                ResponseView(exchange, self._status, exchange.body_sent),
                RequestView(exchange),
                self._make_environ(exchange),
                datetime.timedelta(seconds=self._seconds),
            )
        )
        self.update(atoms)

    def get(self, name: str, default: Any = None) -> Any:
        self._fill()
        return dict.get(self, name, default)

    def __contains__(self, name: object) -> bool:
        self._fill()
        return dict.__contains__(self, name)

    def keys(self) -> Any:
        self._fill()
        return dict.keys(self)

    def values(self) -> Any:
        self._fill()
        return dict.values(self)

    def items(self) -> Any:
        self._fill()
        return dict.items(self)

    def __iter__(self) -> Any:
        self._fill()
        return dict.__iter__(self)


def _user(exchange: ExchangeFacts, atoms: Atoms) -> Any:
    value = ",".join(field_values(exchange.headers, "Authorization"))
    return atoms._log._get_user({"HTTP_AUTHORIZATION": value}) or "-"


def _path(exchange: ExchangeFacts, atoms: Atoms) -> Any:
    path = exchange.start_line[1].partition("?")[0]
    return unquote_to_wsgi_str(path) if "%" in path else path


# The atoms of Gunicorn's Logger.atoms, each with its function.
_ATOMS: dict[str, Callable[[ExchangeFacts, Atoms], Any]] = {
    "u": _user,
    "m": lambda exchange, atoms: exchange.start_line[0],
    "U": _path,
    "q": lambda exchange, atoms: exchange.start_line[1].partition("?")[2],
    "H": lambda exchange, atoms: exchange.start_line[2],
    "B": lambda exchange, atoms: exchange.body_sent,
    "T": lambda exchange, atoms: int(atoms._seconds),
    "D": lambda exchange, atoms: int(atoms._seconds * 1e6),
    "M": lambda exchange, atoms: int(atoms._seconds * 1e3),
    "L": lambda exchange, atoms: f"{atoms._seconds:.6f}",
    "p": lambda exchange, atoms: f"<{os.getpid()}>",
}
