"""Requests and responses as sequences of frames: RFC 9113 sections 8.1, 8.2.3 and 8.8."""

from __future__ import annotations

import pytest

from helpers.http2_client import Http2Client
from helpers.http2_fields import Field, request_fields
from helpers.http2_frames import Code, Flag, Kind, in_ids


def test_request_without_a_body(client: Http2Client) -> None:
    """Section 8.8.1."""
    answer = client.answer(client.request())
    assert (answer["method"], answer["target"], answer["body"]) == ("GET", "/echo", "")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_request_of_each_method_may_have_a_body(client: Http2Client, method: str) -> None:
    """Sections 8.1 and 8.8.3."""
    stream_id = client.request("/echo", method=method, end=False)
    client.send_data(stream_id, b"body", end=True)
    answer = client.answer(stream_id)
    assert (answer["method"], answer["body"]) == (method, "body")


def test_body_without_a_length_is_as_long_as_it_is(client: Http2Client) -> None:
    """Section 8.1.1: content-length is optional."""
    stream_id = client.request("/echo", method="POST")
    for part in (b"a", b"", b"bc", b"def"):
        client.send_data(stream_id, part)
    client.send_data(stream_id, end=True)
    assert client.answer(stream_id)["body"] == "abcdef"


def test_body_byte_by_byte(client: Http2Client) -> None:
    """Section 8.1: frames have no meaning for the content."""
    body = "every byte in a frame of its own"
    stream_id = client.request("/echo", ("content-length", str(len(body))), method="POST")
    for i, byte in enumerate(body, 1):
        client.send_data(stream_id, byte.encode(), end=i == len(body))
    assert client.answer(stream_id)["body"] == body


def test_empty_body_by_an_empty_frame(client: Http2Client) -> None:
    """Section 8.1."""
    stream_id = client.request("/echo", method="POST")
    client.send_data(stream_id, end=True)
    assert client.answer(stream_id)["body"] == ""


# -- trailers ------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"body"], ids=in_ids)
def test_trailers_end_a_request(client: Http2Client, body: bytes) -> None:
    """Section 8.1."""
    with client.unharmed():
        stream_id = client.request("/echo", ("trailer", "x-trailer"), method="POST")
        if body:
            client.send_data(stream_id, body)
        client.send_trailers(stream_id, [(b"x-trailer", b"1")])
        assert client.answer(stream_id)["body"] == body.decode()


def test_trailers_are_not_fields_of_the_head(client: Http2Client) -> None:
    """RFC 9110 section 6.5.1: not merged unless they are known to be safe."""
    stream_id = client.request("/echo", method="POST")
    client.send_data(stream_id, b"body")
    client.send_trailers(stream_id, [(b"x-trailer", b"1"), (b"cookie", b"a=1")])
    names = {name for name, _ in client.answer(stream_id)["fields"]}
    assert not names & {"x-trailer", "cookie"}


def test_trailers_in_continuations(client: Http2Client) -> None:
    """Section 8.1."""
    stream_id = client.request("/echo", method="POST")
    client.send_data(stream_id, b"body")
    block = client.encoder.encode([(b"x-trailer", b"value"), (b"x-other", b"value")])
    client.send_frame(Kind.HEADERS, Flag.END_STREAM, stream_id, block[:5])
    client.send_frame(Kind.CONTINUATION, Flag.END_HEADERS, stream_id, block[5:])
    assert client.answer(stream_id)["body"] == "body"


def test_empty_trailers(client: Http2Client) -> None:
    """Section 8.1: a section of no fields."""
    stream_id = client.request("/echo", method="POST")
    client.send_data(stream_id, b"body")
    client.send_block(stream_id, b"", end=True)
    assert client.answer(stream_id)["body"] == "body"


def test_trailers_without_end_stream_are_malformed(client: Http2Client) -> None:
    """Section 8.1."""
    with client.unharmed():
        stream_id = client.request("/upload/trailers", method="POST")
        client.send_data(stream_id, b"body")
        client.send_trailers(stream_id, [(b"x-trailer", b"1")], end=False)
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


@pytest.mark.parametrize(
    "field",
    [
        (b":path", b"/other"),
        (b":status", b"200"),
        (b":unknown", b"1"),
        (b"Upper", b"case"),
        (b"x-lf", b"a\nb"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
    ],
    ids=lambda field: field[0].decode(),
)
def test_invalid_field_in_trailers_is_malformed(client: Http2Client, field: Field) -> None:
    """Sections 8.1 (pseudo-fields), 8.2.1 and 8.2.2."""
    with client.unharmed():
        stream_id = client.request("/upload/trailers", method="POST")
        client.send_data(stream_id, b"body")
        client.send_trailers(stream_id, [(b"x-trailer", b"1"), field])
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


def test_pseudo_field_in_front_of_trailers_is_malformed(client: Http2Client) -> None:
    """Section 8.1: not only because of its place."""
    with client.unharmed():
        stream_id = client.request("/upload/trailers", method="POST")
        client.send_trailers(stream_id, [(b":path", b"/other"), (b"x-trailer", b"1")])
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)


def test_malformed_end_of_a_request_does_not_reach_the_application_as_its_end(
    client: Http2Client,
) -> None:
    """Section 8.1.1: what had been passed on ends as if the client had left."""
    stream_id = client.request("/upload/cut", method="POST")
    client.send_data(stream_id, b"body")
    client.sync()  # passed on: what comes in one read may never be
    client.send_trailers(stream_id, [(b":path", b"/")])
    client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)
    assert client.get("/gone/cut").body == b"gone"


# -- responses -----------------------------------------------------------------


def test_response_to_head_has_a_length_and_no_body(client: Http2Client) -> None:
    """Section 8.1.1."""
    response = client.response(client.request("/echo", method="HEAD"))
    assert response.status == 200
    assert response.values(b"content-length") == [b"1000"]
    assert response.body == b""


@pytest.mark.parametrize("status", [204, 304])
def test_response_without_content_has_no_body(client: Http2Client, status: int) -> None:
    """Section 8.1.1; the client checks that no DATA comes."""
    response = client.get(f"/status/{status}")
    assert (response.status, response.body) == (status, b"")
    assert response.values(b"transfer-encoding") == []


@pytest.mark.parametrize("status", [200, 201, 400, 404, 500, 503])
def test_status_of_a_response_is_a_pseudo_field(client: Http2Client, status: int) -> None:
    """Section 8.3.2; the connection goes on after errors."""
    response = client.get(f"/status/{status}")
    assert (response.status, response.body) == (status, b"status")
    assert client.get().status == 200


def test_long_response_arrives_whole(client: Http2Client) -> None:
    """Section 8.8.4."""
    response = client.get("/download/3000000")
    assert response.values(b"content-length") == [b"3000000"]
    assert len(response.body) == 3_000_000


def test_expectation_is_met_before_the_body(client: Http2Client) -> None:
    """Section 8.8.5; RFC 9110 section 10.1.1: an interim response, or the final one."""
    stream_id = client.request("/echo", ("expect", "100-continue"), method="POST")
    stream = client.streams[stream_id]
    client.wait_for(lambda: stream.interim or stream.fields, "a response")
    assert [fields[0] for fields in stream.interim] == [(b":status", b"100")]
    client.send_data(stream_id, b"body", end=True)
    assert client.answer(stream_id)["body"] == "body"


def test_response_may_come_before_the_request_is_complete(client: Http2Client) -> None:
    """Section 8.1: it counts, also when the server asks the client to stop."""
    with client.unharmed():
        stream_id = client.request("/early", method="POST")
        client.send_data(stream_id, b"first")
        response = client.response(stream_id)
        assert (response.status, response.body) == (403, b"early")
        stream = client.streams[stream_id]
        client.sync()
        assert stream.reset in (None, Code.NO_ERROR)
        client.send_data(stream_id, b"and the rest", end=True)
        client.sync()


def test_responses_come_in_the_order_of_their_readiness(client: Http2Client) -> None:
    """Section 5: streams are independent."""
    waiting = [client.request(f"/wait/{i}") for i in range(5)]
    for i in (3, 0, 4, 2, 1):
        client.get(f"/release/{i}")
        assert client.response(waiting[i]).body == b"released"
        assert sum(client.streams[stream_id].ended for stream_id in waiting) == (
            [3, 0, 4, 2, 1].index(i) + 1
        )


def test_uploads_may_be_interleaved(client: Http2Client) -> None:
    """Section 5."""
    streams = [client.request("/echo", method="POST") for _ in range(10)]
    for part in range(20):
        for i, stream_id in enumerate(streams):
            client.send_data(stream_id, f"{i}:{part},".encode(), end=part == 19)
    for i, stream_id in enumerate(streams):
        expected = "".join(f"{i}:{part}," for part in range(20))
        assert client.answer(stream_id)["body"] == expected


def test_many_requests_in_one_write(client: Http2Client) -> None:
    """Section 5: whatever one read brings."""
    sent = bytearray()
    send, client.send = client.send, sent.extend  # type: ignore[method-assign, assignment]
    streams = [client.request(f"/echo?{i}", ("x-i", str(i))) for i in range(50)]
    client.send = send  # type: ignore[method-assign]
    client.send(bytes(sent))
    for i, stream_id in enumerate(streams):
        answer = client.answer(stream_id)
        assert answer["target"] == f"/echo?{i}"
        assert ["x-i", str(i)] in answer["fields"]


def test_connection_serves_many_requests(client: Http2Client) -> None:
    """Section 9.1: connections are persistent."""
    for i in range(200):
        assert client.answer(client.request(f"/echo?{i}"))["target"] == f"/echo?{i}"


def test_request_for_an_unknown_path_is_answered(client: Http2Client) -> None:
    """Section 8.3.2."""
    with client.unharmed():
        assert client.get("/nothing").status == 404


def test_fields_of_a_large_head_arrive(client: Http2Client) -> None:
    """Sections 4.3 and 6.10: in several frames."""
    fields = [(f"x-field-{i}".encode(), b"v" * 700) for i in range(40)]
    stream_id = client.send_request([*request_fields(), *fields])
    answer = client.answer(stream_id)
    assert [[name.decode(), value.decode()] for name, value in fields] == [
        field for field in answer["fields"] if field[0].startswith("x-field")
    ]
