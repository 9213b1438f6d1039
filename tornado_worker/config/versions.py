"""Refuse a Python, Gunicorn or Tornado that this package does not support; name versions.

Imported to refuse them, before anything that needs a newer version: so a user reads
one sentence at boot, not an AttributeError from the middle of a module. May import only names
that every version has.
"""

from __future__ import annotations

import re
import sys

import gunicorn
import tornado

__all__ = ["check", "package_of"]

# As in setup.cfg: the first version supported, and the first that is not.
_PYTHON = (3, 11)
_GUNICORN = ((26, 2), (28,))
_TORNADO = ((6, 5, 7), (7,))


def check() -> None:
    """Raise RuntimeError, which Gunicorn prints and exits on, if a version is unsupported."""
    if sys.version_info[:2] < _PYTHON:
        raise RuntimeError(
            f"tornado_worker needs Python >= {_dotted(_PYTHON)}; this is {sys.version.split()[0]}"
        )
    for name, version, (first, end) in (
        ("Gunicorn", gunicorn.__version__, _GUNICORN),
        ("Tornado", tornado.version, _TORNADO),
    ):
        if not first <= _numbers(version) < end:
            raise RuntimeError(
                f"tornado_worker needs {name} >= {_dotted(first)}, < {_dotted(end)};"
                f" version {version} is installed"
            )


def package_of(cls: type) -> str:
    """Return the name of the package that `cls` comes from, and its version if it has one."""
    name = cls.__module__.partition(".")[0]
    return f"{name} {getattr(sys.modules[name], '__version__', '')}".rstrip()


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release number: a pre-release counts as its release."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


check()
