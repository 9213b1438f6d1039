"""Refuse an interpreter in which sockets, threads or asyncio have been replaced.

gevent's and eventlet's monkey patching make code that blocks wait for a hub, which
does not run here: views then hang without a word. Looks at modules that are loaded
already; imports none, changes nothing.
"""

from __future__ import annotations

import linecache
import re
import sys
import traceback
from typing import Any

__all__ = ["check_patches", "explain_nest_asyncio"]

# Modules that must be the system's own, for the loop or for the threads of WSGI.
_NEEDED = {"_thread", "os", "queue", "select", "selectors", "signal", "socket", "ssl"}
_NEEDED |= {"subprocess", "thread", "threading", "time"}
_CALL = re.compile(r"\b(patch_\w+|monkey_patch)\s*\(")
_PATCHERS = ("gevent", "eventlet")


def check_patches() -> None:
    """Raise RuntimeError, in one sentence, if gevent or eventlet has patched this process."""
    for patcher, names in (("gevent", _by_gevent()), ("eventlet", _by_eventlet())):
        if found := sorted(names & _NEEDED):
            raise RuntimeError(
                f"{patcher}'s monkey patching has replaced {', '.join(found)}"
                f"{_culprits(patcher)}: the loop and the threads of this worker would wait for"
                " ever. Delete the call; this worker needs none"
            )


def _by_gevent() -> set[str]:
    monkey: Any = sys.modules.get("gevent.monkey")
    return set(getattr(monkey, "saved", ()))


def _by_eventlet() -> set[str]:
    patcher: Any = sys.modules.get("eventlet.patcher")
    return set(getattr(patcher, "already_patched", ()))


def _culprits(patcher: str) -> str:
    """Return the lines that call the patcher, in the modules that know it."""
    places = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in _PATCHERS or not isinstance(file, str):
            continue
        if not any(_belongs_to(patcher, value) for value in list(vars(module).values())):
            continue
        for number, line in enumerate(linecache.getlines(file), 1):
            if _CALL.search(line) and not line.lstrip().startswith(("#", "def ")):
                places.append(f"{file}:{number}")
    return f" (at {', '.join(places)})" if places else ""


def _belongs_to(patcher: str, value: Any) -> bool:
    # Modules by their name, functions by their module's; not by isinstance(),
    # for any object may be found here.
    try:
        values = vars(value) if type(value) is type(sys) else {}
        owner = values.get("__name__") or value.__module__
        return isinstance(owner, str) and owner.partition(".")[0] == patcher
    except Exception:  # some objects answer like this when asked for anything
        return False


def explain_nest_asyncio(error: BaseException) -> None:
    """Add a note to `error` if nest_asyncio raised it because it cannot patch the loop."""
    if any(
        frame.f_globals.get("__name__") == "nest_asyncio"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ):
        error.add_note(
            "nest_asyncio cannot patch uvloop's loops: set asgi_loop = 'asyncio', or do without it"
            " (make the factory async and await in it)"
        )
