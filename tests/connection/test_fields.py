"""Header fields in and out: the same as Tornado's HTTPHeaders, and no line that was not meant."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders

from tornado_worker.connection import fields as fields_module
from tornado_worker.connection.fields import (
    RequestHeaders,
    field_values,
    format_head,
    request_headers,
)

FIELDS = [(b"host", b"a"), (b"x-forwarded-for", b"1.2.3.4"), (b"cookie", b"a=b; c=d"), (b"x", b"")]
REPEATED = [*FIELDS, (b"cookie", b"e=f")]


def our_headers(fields: list[tuple[bytes, bytes]]) -> HTTPHeaders:
    by_name = dict(fields)
    return request_headers(by_name, None if len(by_name) == len(fields) else fields)


def tornado_headers(fields: list[tuple[bytes, bytes]]) -> HTTPHeaders:
    headers = HTTPHeaders()
    for name, value in fields:
        headers.add(name.decode("latin-1"), value.decode("latin-1"))
    return headers


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as e:
        return type(e)


def change(headers: HTTPHeaders, change: Callable[[HTTPHeaders], Any]) -> list[Any]:
    return [outcome(lambda: change(headers)), list(headers.get_all())]


# Every way to look at headers, and some that change them.
OPERATIONS: dict[str, Callable[[HTTPHeaders], Any]] = {
    "getitem": lambda h: h["Host"],
    "getitem in any case": lambda h: h["hOST"],
    "getitem missing": lambda h: h["Missing"],
    "get": lambda h: h.get("X-Forwarded-For"),
    "get empty": lambda h: h.get("X"),
    "get missing": lambda h: (h.get("Missing"), h.get("Missing", "d")),
    "in": lambda h: ("host" in h, "Missing" in h, cast(Any, 5) in h),
    "len": len,
    "bool": bool,
    "iter": list,
    "keys": lambda h: list(h.keys()),
    "values": lambda h: list(h.values()),
    "items": lambda h: list(h.items()),
    "get_all": lambda h: list(h.get_all()),
    "get_list": lambda h: (h.get_list("cookie"), h.get_list("Missing")),
    "str": str,
    "repr": lambda h: repr(h).partition("(")[2],
    "dict": dict,
    "copy": lambda h: list(h.copy().get_all()),
    "copy.copy": lambda h: list(copy.copy(h).get_all()),
    "copy.deepcopy": lambda h: list(copy.deepcopy(h).get_all()),
    "pickle": lambda h: list(pickle.loads(pickle.dumps(h)).get_all()),
    "HTTPHeaders": lambda h: list(HTTPHeaders(h).get_all()),
    "equal": lambda h: h == dict(h),
    "unequal": lambda h: h == {"Host": "b"},
    "setitem": lambda h: change(h, lambda h: h.__setitem__("host", "b")),
    "setitem new": lambda h: change(h, lambda h: h.__setitem__("new", "n")),
    "delitem": lambda h: change(h, lambda h: h.__delitem__("COOKIE")),
    "delitem missing": lambda h: change(h, lambda h: h.__delitem__("Missing")),
    "add": lambda h: change(h, lambda h: h.add("cookie", "g=h")),
    "add new": lambda h: change(h, lambda h: h.add("new", "n")),
    "pop": lambda h: change(h, lambda h: h.pop("host")),
    "setdefault": lambda h: change(
        h, lambda h: (h.setdefault("host", "b"), h.setdefault("n", "b"))
    ),
    "update": lambda h: change(h, lambda h: h.update({"host": "b", "n": "c"})),
    "clear": lambda h: change(h, lambda h: h.clear()),
    "parse_line": lambda h: change(h, lambda h: h.parse_line("New: n")),
}


@pytest.mark.parametrize("fields", [FIELDS, REPEATED, []], ids=["fields", "repeated", "none"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_request_headers_do_what_tornados_do(name: str, fields: list[tuple[bytes, bytes]]) -> None:
    operation = OPERATIONS[name]
    expected = outcome(lambda: operation(tornado_headers(fields)))
    assert outcome(lambda: operation(our_headers(fields))) == expected
    # And after something else has looked at them.
    for other in ("getitem", "items", "add new"):
        ours, theirs = our_headers(fields), tornado_headers(fields)
        outcome(lambda ours=ours, other=other: OPERATIONS[other](ours))
        outcome(lambda theirs=theirs, other=other: OPERATIONS[other](theirs))
        assert outcome(lambda ours=ours: operation(ours)) == outcome(
            lambda theirs=theirs: operation(theirs)
        )


NAMES = st.sampled_from([b"host", b"x", b"x-y", b"x_y", b"cookie", b"x-y-z", b"-", b"a-"])
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"))


@given(
    fields=st.lists(st.tuples(NAMES, VALUES.map(lambda text: text.strip().encode("latin-1")))),
    names=st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_any_sequence_of_operations_gives_what_tornados_give(
    fields: list[tuple[bytes, bytes]], names: list[str]
) -> None:
    try:
        theirs = tornado_headers(fields)
    except Exception:  # a value that Tornado's own checks refuse, and no parser lets through
        return
    ours = our_headers(fields)
    for name in names:
        assert outcome(lambda name=name: OPERATIONS[name](ours)) == outcome(
            lambda name=name: OPERATIONS[name](theirs)
        )
    assert list(ours.get_all()) == list(theirs.get_all())


def test_single_fields_are_read_without_filling_the_rest() -> None:
    headers = our_headers(FIELDS)
    assert isinstance(headers, RequestHeaders)
    assert headers["Host"] == "a"
    assert headers.get("cookie") == "a=b; c=d"
    assert "X" in headers
    assert not headers.is_filled
    assert headers.wire_fields == dict(FIELDS)
    list(headers)
    assert headers.is_filled
    assert headers.wire_fields is None


def test_another_tornado_gets_headers_made_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields_module, "_DIRECT", False)
    headers = our_headers(FIELDS)
    assert type(headers) is HTTPHeaders
    assert list(headers.get_all()) == list(tornado_headers(FIELDS).get_all())
    assert format_head(200, "OK", headers) == (
        b"HTTP/1.1 200 OK\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nCookie: a=b; c=d\r\nX: \r\n\r\n"
    )


@pytest.mark.parametrize("filled", [False, True])
def test_field_values(filled: bool) -> None:
    for headers in (our_headers(FIELDS), our_headers(REPEATED)):
        if filled:
            list(headers)
        assert field_values(headers, "Host") == ["a"]
        assert field_values(headers, "Missing") == []
    assert field_values(our_headers(REPEATED), "Cookie") == ["a=b; c=d", "e=f"]
    assert field_values(our_headers(FIELDS), "X") == [""]


def test_names_that_clients_choose_do_not_fill_the_memory() -> None:
    for i in range(5000):
        fields = [(b"x-%d" % i, b"y")]
        headers = our_headers(fields)
        assert headers[f"X-{i}"] == "y"
        assert list(headers) == [f"X-{i}"]
    assert len(fields_module._field_names) <= 1000
    assert len(fields_module._wire_names) <= 1000


# -- the way out ---------------------------------------------------------------


def test_head_is_formatted() -> None:
    headers = HTTPHeaders({"Content-Type": "text/plain"})
    headers.add("Set-Cookie", "a=b")
    headers.add("Set-Cookie", "c=d")
    headers["X"] = "é"
    assert format_head(200, "OK", headers) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
        b"Set-Cookie: a=b\r\nSet-Cookie: c=d\r\nX: \xe9\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("code", "reason", "line"),
    [
        (404, "Not Found", b"HTTP/1.1 404 Not Found\r\n\r\n"),
        (200, "Fine", b"HTTP/1.1 200 Fine\r\n\r\n"),
        (299, "", b"HTTP/1.1 299 \r\n\r\n"),
        (299, None, b"HTTP/1.1 299 \r\n\r\n"),
    ],
)
def test_status_line(code: int, reason: str | None, line: bytes) -> None:
    assert format_head(code, reason, HTTPHeaders()) == line


def raw_headers(name: Any, value: Any) -> HTTPHeaders:
    headers = HTTPHeaders()
    headers._as_list[name] = [value]  # past its checks
    return headers


def test_bytes_are_let_pass_as_tornado_does() -> None:
    assert format_head(200, "OK", raw_headers("X", b"y")) == b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"


BAD = ["\r", "\n", "\r\n", "a\r\nB: c", "a\rb", "a\nb", "\0", "a\0b", "\r\n\r\nbody"]


@pytest.mark.parametrize("text", BAD)
def test_line_break_in_a_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Illegal characters"):
        format_head(200, "OK", raw_headers("X", text))


@pytest.mark.parametrize("text", BAD)
def test_line_break_in_a_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Illegal characters"):
        format_head(200, "OK", raw_headers(text, "x"))


@pytest.mark.parametrize("text", BAD)
def test_line_break_in_a_reason_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Illegal characters"):
        format_head(200, text, HTTPHeaders({"X": "y"}))


@given(
    pairs=st.lists(st.tuples(st.text("abX-\r\n\0: "), st.text("ab:\r\n\0 "))),
    reason=st.text("O\r\n"),
)
@settings(max_examples=200, deadline=None)
def test_head_has_as_many_lines_as_were_meant_or_is_refused(
    pairs: list[tuple[str, str]], reason: str
) -> None:
    headers = HTTPHeaders()
    for name, value in pairs:
        headers._as_list.setdefault(name, []).append(value)
    try:
        head = format_head(200, reason, headers)
    except ValueError:
        return
    assert head.split(b"\r\n").count(b"") == 2
    assert head.endswith(b"\r\n\r\n")
    lines = head.split(b"\r\n")[1:-2]
    assert len(lines) == len(pairs)
    assert not any(c in line for line in lines for c in (b"\r", b"\n", b"\0"))


def test_value_beyond_latin_1_is_refused() -> None:
    with pytest.raises(ValueError, match="latin-1"):
        format_head(200, "OK", raw_headers("X", "日本"))
