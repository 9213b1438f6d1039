"""The options of a worker class: the table, and the checks and docs that follow from it.

Class attributes, and the entries of SERVER_OPTIONS. One that is new needs a line
here and nothing else. Reads classes; makes and changes nothing.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from gunicorn.config import KNOWN_SETTINGS
from gunicorn.workers.base import Worker

from tornado_worker.config.server_arguments import SAME_NAMES, SETTINGS_FOR

__all__ = [
    "ATTRIBUTES",
    "SERVER_OPTIONS",
    "Option",
    "class_name",
    "find_errors",
    "find_strangers",
    "markdown_tables",
]

# Names that resemble each other as much as SLOW_HANDLER and SLOW_HANDLERS, or more.
_RESEMBLANCE = 0.75


class Option(NamedTuple):
    #: Returns the expectation, in words, if a value is wrong; None if it is right.
    check: Callable[[Any], str | None]
    default: str
    doc: str


# -- checks ----------------------------------------------------------------------


def _number(least: float, unit: str, *, none: bool = False, above: bool = False) -> Any:
    expected = f"a number of {unit} {'>' if above else '>='} {least:g}{', or None' * none}"

    def check(value: Any) -> str | None:
        if value is None:
            return None if none else expected
        right = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (value > least if above else value >= least)
        )
        return None if right else expected

    return check


def _integer(least: int, unit: str, *, none: bool = False) -> Any:
    expected = f"an integer of {unit} >= {least}{', or None' * none}"

    def check(value: Any) -> str | None:
        if value is None:
            return None if none else expected
        right = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return None if right else expected

    return check


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _scheme(value: Any) -> str | None:
    return None if value in ("http", "https", None) else "'http', 'https' or None"


def _addresses(value: Any) -> str | None:
    right = value is None or (
        isinstance(value, Collection)
        and not isinstance(value, str | bytes)
        and all(isinstance(address, str) for address in value)
    )
    return None if right else "a list of addresses, each a string, or None"


def _close_code(value: Any) -> str | None:
    # RFC 6455 section 7.4: 1004 to 1006 and 1015 are never sent.
    right = (
        isinstance(value, int)
        and not isinstance(value, bool)
        and (1000 <= value <= 1003 or 1007 <= value <= 1014 or 3000 <= value <= 4999)
    )
    return None if right else "a code that a close frame may have: 1000 to 1014 or 3000 to 4999"


def _options(value: Any) -> str | None:
    return None if isinstance(value, Mapping) else "a dict of HTTPServer arguments"


# -- the tables ------------------------------------------------------------------

ATTRIBUTES: dict[str, Option] = {
    "SERVER_OPTIONS": Option(_options, "{}", "arguments of the server, see below"),
    "RECYCLE_TIMEOUT": Option(
        _number(0, "seconds"),
        "60.0",
        "seconds that a worker at `max_requests` waits for its replacement, at most",
    ),
    "WEBSOCKET_CLOSE_CODE": Option(
        _close_code, "1001", "what WebSockets are closed with when the worker leaves"
    ),
    "WEBSOCKET_CLOSE_SPREAD": Option(
        _number(0, "seconds"),
        "2.0",
        "seconds over which that is spread; at most half of `graceful_timeout`",
    ),
    "WEBSOCKET_PING_INTERVAL": Option(
        _number(0, "seconds"),
        "30.0",
        "seconds between pings, unless the application sets `websocket_ping_interval`; 0: none",
    ),
    "SLOW_HANDLER": Option(
        _number(0, "seconds"),
        "1.0",
        "seconds after which a handler that keeps the loop is named in the error log; 0: never",
    ),
}

SERVER_OPTIONS: dict[str, Option] = {
    "body_timeout": Option(
        _number(0, "seconds", none=True, above=True),
        "None",
        "seconds for one request body to arrive",
    ),
    "chunk_size": Option(
        _integer(1, "bytes", none=True),
        "None",
        "bytes handed to a `@stream_request_body` handler at once; None: what arrives",
    ),
    "decompress_request": Option(_boolean, "False", "decode `Content-Encoding: gzip` in requests"),
    "header_timeout": Option(
        _number(0, "seconds", none=True, above=True),
        "60.0",
        "seconds for one header section to arrive; then 408",
    ),
    "max_body_size": Option(
        _integer(0, "bytes", none=True),
        "None",
        "bytes of one request body; None: `max_buffer_size`, and no limit for WSGI",
    ),
    "max_buffer_size": Option(
        _integer(1, "bytes", none=True),
        "100 MiB",
        "bytes that a detached connection may hold unread",
    ),
    "max_spool_size": Option(
        _integer(0, "bytes", none=True),
        "256 MiB",
        "bytes that the WSGI request bodies of a process may have on disk; others wait",
    ),
    "protocol": Option(_scheme, "None", "`request.protocol`, whatever the connection is"),
    "stall_timeout": Option(
        _number(0, "seconds", above=True),
        "60.0",
        "seconds without a byte of progress after which a client is cut off",
    ),
    "trusted_downstream": Option(
        _addresses, "None", "proxies to skip in `X-Forwarded-For`, as in Tornado"
    ),
    "xheaders": Option(
        _boolean, "False", "believe `X-Real-Ip` and the like, from `forwarded_allow_ips` only"
    ),
}


# -- what is wrong ---------------------------------------------------------------


def find_errors(worker: Any) -> dict[str, str]:
    """Return a sentence for each attribute of `worker`, a class or one of it, that is wrong.

    By the attribute's name; one that exists under no such name is among them
    if it looks like a slip of the pen.
    """
    cls = worker if isinstance(worker, type) else type(worker)
    ours = cls.__module__.partition(".")[0] == "tornado_worker"
    where = "" if ours else f" of {class_name(cls)}"
    errors = {}
    for name, option in ATTRIBUTES.items():
        value = getattr(worker, name)
        if isinstance(value, property):
            continue  # asked again of the instance
        if expected := option.check(value):
            errors[name] = f"invalid {name}{where}: expected {expected}; got {_shown(value)}"
        elif name == "SERVER_OPTIONS" and (error := _option_error(value)):
            errors[name] = f"invalid {name}{where}: {error}"
    for name, known in _own_names(cls).items():
        if known:
            errors[name] = f"unknown attribute {name}{where}: did you mean {known}?"
    return errors


def find_strangers(cls: type) -> list[str]:
    """Return a sentence for each constant of a subclass that means nothing to the worker."""
    return [
        f"unknown attribute {name} of {class_name(cls)}: it means nothing to the worker, which"
        f" knows {', '.join(ATTRIBUTES)}; call it _{name} if it is your own"
        for name, known in _own_names(cls).items()
        if not known
    ]


def class_name(cls: type) -> str:
    """Return module and class; of one in a configuration file, that file and the class."""
    module = cls.__module__
    if module == "__config__":
        file = getattr(sys.modules.get(module), "__file__", None)
        return f"{os.path.basename(file) if file else module}:{cls.__qualname__}"
    return f"{module}.{cls.__qualname__}"


def _option_error(options: Mapping[Any, Any]) -> str | None:
    for name, value in options.items():
        option = SERVER_OPTIONS.get(name)
        if option is not None:
            if expected := option.check(value):
                return f"{name!r}: expected {expected}; got {_shown(value)}"
            continue
        setting = name if name in SAME_NAMES else SETTINGS_FOR.get(name)
        if setting is not None:
            return f"{name!r} is Gunicorn's to set: use {setting}"
        near = _nearest(str(name), SERVER_OPTIONS)
        return (
            f"unknown name {name!r}{f' (did you mean {near!r}?)' if near else ''}; expected some"
            f" of {', '.join(SERVER_OPTIONS)}"
        )
    return None


def _own_names(cls: type) -> dict[str, str | None]:
    """Return the constants that `cls` adds, and for each the name that was probably meant."""
    names: dict[str, str | None] = {}
    for base in cls.__mro__:
        if base is Worker:
            break
        for name in vars(base):
            if name in ATTRIBUTES or hasattr(Worker, name):
                continue
            if name.upper() in ATTRIBUTES:
                names[name] = name.upper()
            elif name.isupper() and not name.startswith("_"):
                names[name] = _meant(name)
    return names


def _meant(name: str) -> str | None:
    lower = name.lower()
    if lower in SERVER_OPTIONS:
        return f'SERVER_OPTIONS["{lower}"]'
    if lower in {setting.name for setting in KNOWN_SETTINGS}:
        return f"Gunicorn's setting {lower}"
    return _nearest(name, ATTRIBUTES)


def _nearest(name: str, names: Collection[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, names, 1, _RESEMBLANCE)), None)


def _shown(value: Any) -> str:
    # A type alone, of a container, says enough; its contents may be long.
    if isinstance(value, str | bytes | int | float | None):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    return type(value).__name__


def markdown_tables() -> str:
    """Return the tables of docs/settings.md."""
    lines = []
    for title, options in (("attribute", ATTRIBUTES), ("argument", SERVER_OPTIONS)):
        lines += [f"| {title} | default | meaning |", "|---|---|---|"]
        lines += [f"| `{name}` | {one.default} | {one.doc} |" for name, one in options.items()]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
