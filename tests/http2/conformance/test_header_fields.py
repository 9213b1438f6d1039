"""Fields of requests and responses: RFC 9113 sections 8.1.1, 8.2, 8.3, 8.5 and 8.6.

A malformed request is a stream error of type PROTOCOL_ERROR (8.1.1), before which the server
may answer; what is beside it goes on.
"""

from __future__ import annotations

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_fields import Field, request_fields, without
from helpers.http2_frames import Code, in_ids


def expect_malformed(client: Http2Client, fields: list[Field], *, end: bool = True) -> None:
    with client.unharmed():
        stream_id = client.send_request(fields, end)
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


def expect_refused(client: Http2Client, fields: list[Field]) -> None:
    """A request that HTTP does not allow, but that may be told so by status alone."""
    with client.unharmed():
        client.expect_refusal(client.send_request(fields))


# -- names and values ----------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"Upper",
        b"lower-Z",
        b"a b",
        b" leading",
        b"trailing ",
        b"tab\t",
        b"nul\0",
        b"cr\r",
        b"lf\nx",
        b"\x1f",
        b"del\x7f",
        b"latin\xe9",
        b"\xff",
        b"co:lon",
        b"colon:",
    ],
    ids=in_ids,
)
def test_name_with_prohibited_characters_is_malformed(client: Http2Client, name: bytes) -> None:
    """Section 8.2.1; an empty name is no name (RFC 9110 section 5.1)."""
    expect_malformed(client, [*request_fields(), (name, b"value")])


@pytest.mark.parametrize("name", [b"a(b", b"a,b", b"a/b", b'a"b', b"a{b"], ids=in_ids)
def test_name_that_is_no_token_is_refused(client: Http2Client, name: bytes) -> None:
    """Section 8.2.1: "SHOULD validate ... according to their definitions"."""
    expect_malformed(client, [*request_fields(), (name, b"value")])


@pytest.mark.parametrize(
    "value",
    [
        b"nul\0",
        b"\0",
        b"cr\rx",
        b"lf\nx",
        b"crlf\r\nx: y",
        b" leading",
        b"\tleading",
        b"trailing ",
        b"trailing\t",
        b" ",
    ],
    ids=in_ids,
)
def test_value_with_prohibited_characters_is_malformed(client: Http2Client, value: bytes) -> None:
    """Section 8.2.1."""
    expect_malformed(client, [*request_fields(), (b"x-value", value)])


@pytest.mark.parametrize("name", [b":path", b":authority", b":method", b":scheme"], ids=in_ids)
@pytest.mark.parametrize("value", [b"/a\r\nx: y", b"/a\0", b" /a", b"/a ", b"/\n"], ids=in_ids)
def test_pseudo_field_with_prohibited_characters_is_malformed(
    client: Http2Client, name: bytes, value: bytes
) -> None:
    """Sections 8.2.1 and 10.3: they are field values too."""
    fields = [(key, value if key == name else old) for key, old in request_fields()]
    expect_malformed(client, fields)


def test_values_arrive_as_they_were_sent(client: Http2Client) -> None:
    """Section 8.2.1: spaces within, tabs within, latin-1, nothing at all."""
    values = [b"a  b\tc", "\xe4\xff".encode("latin-1"), b"", b'"quoted, with comma"']
    fields = [(b"x-value", value) for value in values]
    stream_id = client.send_request([*request_fields(), *fields])
    got = [value for name, value in client.answer(stream_id)["fields"] if name == "x-value"]
    assert [value.encode("latin-1") for value in got] == values


def test_names_may_be_any_token(client: Http2Client) -> None:
    """Section 8.2.1; RFC 9110 section 5.6.2."""
    name = b"!#$%&'*+-.^_`|~09az"
    stream_id = client.send_request([*request_fields(), (name, b"1")])
    stream = client.streams[stream_id]
    # Some applications refuse or drop what is not a name in a program: not for HTTP/2 to say.
    client.wait_for(lambda: stream.ended, "a response")


# -- fields of connections -----------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        (b"connection", b"close"),
        (b"connection", b"x-other"),
        (b"connection", b""),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-connection", b"keep-alive"),
        (b"transfer-encoding", b"chunked"),
        (b"transfer-encoding", b"identity"),
        (b"upgrade", b"websocket"),
        (b"te", b"gzip"),
        (b"te", b"trailers, gzip"),
    ],
    ids=lambda field: b"-".join(field).decode(),
)
def test_field_of_connections_is_malformed(client: Http2Client, field: Field) -> None:
    """Section 8.2.2."""
    expect_malformed(client, [*request_fields(), field])


def test_te_may_say_trailers(client: Http2Client) -> None:
    """Section 8.2.2."""
    assert client.get("/echo", ("te", "trailers")).status == 200


def test_response_has_no_fields_of_connections(client: Http2Client) -> None:
    """Sections 8.2 and 8.2.2: the application sets them all; the client checks."""
    response = client.get("/fields")
    assert response.status == 200
    assert response.body == b"fields"
    assert response.values(b"x-upper") == [b"Case"]


def test_response_has_one_line_for_each_cookie(client: Http2Client) -> None:
    """RFC 9110 section 5.3: Set-Cookie cannot be joined."""
    assert client.get("/fields").values(b"set-cookie") == [b"a=1", b"b=2"]


def test_cookies_of_a_request_are_one_to_the_application(client: Http2Client) -> None:
    """Section 8.2.3."""
    crumbs = [("cookie", "a=b"), ("x-between", "1"), ("cookie", "c=d; e=f"), ("cookie", "g=h")]
    stream_id = client.request("/echo", *crumbs)
    got = [value for name, value in client.answer(stream_id)["fields"] if name == "cookie"]
    assert got == ["a=b; c=d; e=f; g=h"]


# -- pseudo-fields -------------------------------------------------------------


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path"], ids=in_ids)
def test_missing_pseudo_field_is_malformed(client: Http2Client, name: bytes) -> None:
    """Section 8.3.1."""
    expect_malformed(client, without(name, request_fields()))


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path", b":authority"], ids=in_ids)
@pytest.mark.parametrize("same", [True, False])
def test_repeated_pseudo_field_is_malformed(client: Http2Client, name: bytes, same: bool) -> None:
    """Section 8.3: whether the values are the same or not."""
    fields = request_fields()
    value = dict(fields)[name] if same else {b":method": b"PUT", b":path": b"/"}.get(name, b"b")
    expect_malformed(client, [*fields, (name, value)])


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path", b":authority"], ids=in_ids)
def test_pseudo_field_behind_a_regular_one_is_malformed(client: Http2Client, name: bytes) -> None:
    """Section 8.3."""
    fields = request_fields()
    moved = (name, dict(fields)[name])
    expect_malformed(client, [*without(name, fields), (b"x-regular", b"1"), moved])


@pytest.mark.parametrize(
    "field",
    [
        (b":status", b"200"),
        (b":unknown", b"1"),
        (b":", b"1"),
        (b"::path", b"/"),
        (b":Path", b"/"),
        (b":protocol", b"websocket"),
    ],
    ids=lambda field: field[0].decode(),
)
def test_pseudo_field_that_is_none_of_a_get_is_malformed(client: Http2Client, field: Field) -> None:
    """Section 8.3; `:protocol` is of CONNECT only (RFC 8441 section 4)."""
    expect_malformed(client, [*request_fields()[:2], field, *request_fields()[2:]])


def test_request_without_fields_is_malformed(client: Http2Client) -> None:
    """Section 8.3.1."""
    with client.unharmed():
        stream_id = client.open()
        client.send_block(stream_id, b"", end=True)
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


def test_empty_path_is_malformed(client: Http2Client) -> None:
    """Section 8.3.1."""
    expect_malformed(client, [*without(b":path", request_fields()), (b":path", b"")])


@pytest.mark.parametrize("path", ["echo", "*", "http://test.example/echo", "?query"])
def test_path_that_is_no_path_is_refused(client: Http2Client, path: str) -> None:
    """Section 8.3.1: an absolute path; the asterisk is of OPTIONS only."""
    expect_refused(client, request_fields(path))


def test_options_may_ask_for_an_asterisk(client: Http2Client) -> None:
    """Section 8.3.1."""
    stream_id = client.request("*", method="OPTIONS")
    assert client.answer(stream_id)["target"] == "*"


@pytest.mark.parametrize("method", [b"", b"GE T", b"G(T", b"GET\x7f", b"G\xc9T"], ids=in_ids)
def test_method_that_is_no_token_is_refused(client: Http2Client, method: bytes) -> None:
    """Sections 8.3.1 and 10.3; RFC 9110 section 9.1."""
    expect_refused(client, [(b":method", method), *without(b":method", request_fields())])


def test_method_of_any_name_reaches_the_application(client: Http2Client) -> None:
    """RFC 9110 section 9.1."""
    assert client.answer(client.request("/echo", method="PROPFIND"))["method"] == "PROPFIND"


@pytest.mark.parametrize(
    "authority",
    ["user@test.example", "user:pw@test.example", "a b", "a/b", "test.example:port"],
    ids=in_ids,
)
def test_authority_that_is_none_is_refused(client: Http2Client, authority: str) -> None:
    """Section 8.3.1: no user information; RFC 3986 section 3.2."""
    fields = without(b":authority", request_fields())
    expect_refused(client, [*fields, (b":authority", authority.encode())])


def test_host_that_differs_from_the_authority_is_refused(client: Http2Client) -> None:
    """Section 8.3.1: "SHOULD treat a request as malformed"."""
    expect_refused(client, [*request_fields(), (b"host", b"other.example")])


def test_second_host_is_refused(client: Http2Client) -> None:
    """RFC 9110 section 7.2; the first equals the authority."""
    hosts = [(b"host", b"test.example"), (b"host", b"other.example")]
    expect_refused(client, [*request_fields(), *hosts])


def test_host_that_equals_the_authority_is_taken(client: Http2Client) -> None:
    """Section 8.3.1."""
    stream_id = client.request("/echo", ("host", "test.example"))
    assert client.answer(stream_id)["host"] == "test.example"


def test_host_stands_in_for_a_missing_authority(client: Http2Client) -> None:
    """Section 8.3.1: of requests that were HTTP/1.1 before."""
    fields = without(b":authority", request_fields())
    stream_id = client.send_request([*fields, (b"host", b"by-host.example")])
    assert client.answer(stream_id)["host"] == "by-host.example"


def test_order_of_pseudo_fields_is_free(client: Http2Client) -> None:
    """Section 8.3: before the others, in whatever order."""
    stream_id = client.send_request([*reversed(request_fields()), (b"x-a", b"1")])
    answer = client.answer(stream_id)
    assert (answer["method"], answer["target"]) == ("GET", "/echo")
    assert ["x-a", "1"] in answer["fields"]


def test_pseudo_fields_are_no_fields_to_the_application(client: Http2Client) -> None:
    """Section 8.3: "Pseudo-header fields are not HTTP header fields"."""
    answer = client.answer(client.request("/echo?a=%20b", ("x-a", "1")))
    assert answer["target"] == "/echo?a=%20b"
    assert answer["version"] == "HTTP/2.0"
    assert answer["host"] == "test.example"
    assert not [name for name, _ in answer["fields"] if name.startswith(":")]


# -- CONNECT -------------------------------------------------------------------


@pytest.mark.parametrize("kept", [b":scheme", b":path"], ids=in_ids)
def test_connect_with_a_scheme_or_a_path_is_malformed(client: Http2Client, kept: bytes) -> None:
    """Section 8.5."""
    fields = request_fields(method="CONNECT")
    expect_malformed(client, without(b":path" if kept == b":scheme" else b":scheme", fields))


def test_connect_without_an_authority_is_malformed(client: Http2Client) -> None:
    """Section 8.5."""
    expect_malformed(client, [(b":method", b"CONNECT")])


def test_connect_is_answered_that_there_is_no_proxy(client: Http2Client) -> None:
    """Section 8.5; RFC 9110 section 9.3.6: an answer, and no tunnel."""
    with client.unharmed():
        fields = [(b":method", b"CONNECT"), (b":authority", b"test.example:443")]
        stream_id = client.send_request(fields, end=False)
        stream = client.streams[stream_id]
        client.wait_for(lambda: stream.fields or stream.closed, "an answer")
        assert stream.reset is None
        assert stream.fields is not None
        assert stream.fields[0][1] in (b"400", b"404", b"405", b"501")
        client.reset(stream_id)


# -- content-length ------------------------------------------------------------


@pytest.mark.parametrize("length", ["3", "5", "0", "1000000"])
def test_body_of_another_length_is_malformed(client: Http2Client, length: str) -> None:
    """Section 8.1.1: too short and too long."""
    with client.unharmed():
        stream_id = client.request("/echo", ("content-length", length), method="POST")
        client.send_data(stream_id, b"body", end=True)
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


def test_body_that_gets_too_long_is_malformed_before_its_end(client: Http2Client) -> None:
    """Section 8.1.1."""
    with client.unharmed():
        stream_id = client.request("/echo", ("content-length", "4"), method="POST")
        client.send_data(stream_id, b"body")
        client.send_data(stream_id, b"y")
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


def test_no_body_where_a_length_promises_one_is_malformed(client: Http2Client) -> None:
    """Section 8.1.1."""
    expect_malformed(client, [*request_fields(method="POST"), (b"content-length", b"4")])


def test_trailers_before_the_length_is_reached_are_malformed(client: Http2Client) -> None:
    """Section 8.1.1."""
    with client.unharmed():
        stream_id = client.request("/echo", ("content-length", "4"), method="POST")
        client.send_data(stream_id, b"bod")
        client.send_trailers(stream_id, [(b"x-trailer", b"1")])
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


def test_padding_does_not_count_for_the_length(client: Http2Client) -> None:
    """Sections 6.1 and 8.1.1: "the sum of the DATA frame payload lengths that form the content"."""
    stream_id = client.request("/echo", ("content-length", "4"), method="POST")
    client.send_data(stream_id, b"bo", padding=10)
    client.send_data(stream_id, b"dy", padding=0, end=True)
    assert client.answer(stream_id)["body"] == "body"


@pytest.mark.parametrize("length", ["", "4,4", "+4", "-1", "0x4", "4 4", "four", "\xb2"])
def test_length_that_is_no_number_is_refused(client: Http2Client, length: str) -> None:
    """RFC 9110 section 8.6; a list of one value over and over may be taken for it."""
    with client.unharmed():
        stream_id = client.request("/echo", ("content-length", length), method="POST")
        client.send_data(stream_id, b"body", end=True)
        stream = client.streams[stream_id]
        client.wait_for(lambda: stream.closed, "an answer")
        if not (length == "4,4" and stream.ended):
            client.expect_refusal(stream_id)


def test_two_lengths_that_differ_are_refused(client: Http2Client) -> None:
    """RFC 9110 section 8.6."""
    with client.unharmed():
        lengths = [("content-length", "4"), ("content-length", "5")]
        stream_id = client.request("/echo", *lengths, method="POST")
        client.send_data(stream_id, b"body", end=True)
        client.expect_refusal(stream_id)


def test_length_of_zero_without_a_body(client: Http2Client) -> None:
    """Section 8.1.1."""
    stream_id = client.request("/echo", ("content-length", "0"), method="POST", end=True)
    assert client.answer(stream_id)["body"] == ""
