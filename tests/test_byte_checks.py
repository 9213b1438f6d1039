"""The checks that replace those of Gunicorn's Python parser say what it says, or are not used."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tornado_worker.byte_checks import with_byte_checks
from tornado_worker.strict import GunicornProtocol

OURS: Any = with_byte_checks(GunicornProtocol)()
THEIRS: Any = GunicornProtocol()


def test_every_supported_gunicorn_gets_them() -> None:
    assert type(OURS) is not GunicornProtocol
    assert isinstance(OURS, GunicornProtocol)


@given(st.binary() | st.text(st.characters(min_codepoint=33, max_codepoint=126)).map(str.encode))
def test_they_say_of_any_bytes_what_gunicorn_says(data: bytes) -> None:
    assert OURS._is_valid_token(data) == THEIRS._is_valid_token(data)
    assert OURS._has_invalid_header_chars(data) == THEIRS._has_invalid_header_chars(data)


def test_a_parser_that_checks_differently_is_left_alone() -> None:
    class Stricter(GunicornProtocol):
        def _has_invalid_header_chars(self, value: bytes) -> bool:
            return b"\xff" in value or bool(super()._has_invalid_header_chars(value))

    class Reorganised(GunicornProtocol):
        _is_valid_token = None

    assert with_byte_checks(Stricter) is Stricter
    assert with_byte_checks(Reorganised) is Reorganised
