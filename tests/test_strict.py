"""The parser for Gunicorns whose own is not strict: every framing case again, on this one.

Whatever Gunicorn is installed, so that it is tested everywhere; where Gunicorn's
own parser is strict, the two must agree.
"""

from __future__ import annotations

import pytest

import tornado_worker.parser
from test_http1_framing import (  # noqa: F401
    test_limits_do_not_count_a_body,
    test_malformed_request_behind_a_valid_one_leaves_its_answer_alone,
    test_malformed_request_is_refused,
    test_message_at_its_limits_is_answered,
    test_message_over_a_limit_is_refused,
    test_unconventional_start_line_is_answered_when_permitted,
    test_valid_request_is_understood_and_answered,
)
from tornado_worker.strict import GunicornProtocol, StrictProtocol, _is_strict


@pytest.fixture
def combination() -> tuple[str, str]:
    return ("asyncio", "python")


@pytest.fixture(autouse=True)
def strict_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tornado_worker.parser, "PythonProtocol", StrictProtocol)


def test_a_parser_that_takes_a_bare_lf_is_not_strict() -> None:
    class Careless(GunicornProtocol):
        def feed(self, data: bytes) -> None:
            pass

    assert not _is_strict(Careless)
    assert _is_strict(StrictProtocol)
