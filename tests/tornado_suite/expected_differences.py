"""Tornado's own tests that cannot pass on this package's server, each with its reason.

Everything not listed here must pass. A test listed here that passes is an error,
so the list stays true; plugin.py applies it. Data only: no test may be listed
because it is slow or because it fails now and then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

__all__ = ["DIFFERENCES", "Difference", "Kind"]


class Kind(enum.Enum):
    """Why a test differs."""

    STRICTER_PARSER = "Gunicorn's parser refuses what Tornado's accepts"
    PRIVATE_ATTRIBUTE = "the test uses a private attribute of Tornado's own server classes"
    LOOP = "the test fails on Tornado's own server as well with this event loop"
    LOG_WORDING = "only a log message differs: the test runs with that one check relaxed"


@dataclass(frozen=True)
class Difference:
    """One test, named "module.Class.test" below tornado.test.

    `loops` and `parsers`: where it applies. `since`: the first Tornado release
    that has the test. `source`: the rule behind it, such as an RFC section.
    `wording`, for LOG_WORDING only: the regular expressions of the test's
    ExpectLog that do not match, and those that must match in their place.
    """

    test: str
    kind: Kind
    reason: str
    source: str = ""
    loops: tuple[str, ...] = ("asyncio", "uvloop")
    parsers: tuple[str, ...] = ("python", "fast")
    since: tuple[int, int, int] = (6, 5, 7)
    wording: dict[str, str] = field(default_factory=dict)


_SIGCHLD = (
    "tornado.process.Subprocess wants a SIGCHLD handler; uvloop keeps SIGCHLD for itself: "
    "RuntimeError from add_signal_handler"
)

DIFFERENCES: list[Difference] = [
    # -- not about the server: they fail on Tornado's own with uvloop as well --
    *(
        Difference(f"process_test.SubprocessTest.{test}", Kind.LOOP, _SIGCHLD, loops=("uvloop",))
        for test in (
            "test_sigchild",
            "test_sigchild_future",
            "test_sigchild_signal",
            "test_wait_for_exit_raise",
            "test_wait_for_exit_raise_disabled",
        )
    ),
    Difference(
        "asyncio_test.SelectorThreadLeakTest.test_close_before_thread_manager_starts",
        Kind.LOOP,
        "it needs a loop that stops before it runs the callbacks added meanwhile; uvloop runs them",
        loops=("uvloop",),
        since=(6, 6, 0),
    ),
]
