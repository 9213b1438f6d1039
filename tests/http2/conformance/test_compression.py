"""Field blocks as HPACK has them: RFC 7541, and RFC 9113 section 4.3.

Blocks are made by hand here. What cannot be decoded is a connection error of type
COMPRESSION_ERROR.
"""

from __future__ import annotations

from collections.abc import Callable

import hpack
import pytest

from helpers.http2_client import Http2Client
from helpers.http2_fields import integer, literal, string
from helpers.http2_frames import Code, Flag, Kind, Setting

# Indices of the static table (RFC 7541 appendix A).
GET, ROOT, HTTP, AUTHORITY = b"\x82", b"\x84", b"\x86", 1
PATH, LAST_STATIC = 4, 61
# A request for /echo that leaves the dynamic table as it is.
ECHO = GET + HTTP + integer(PATH, 4) + string(b"/echo") + integer(AUTHORITY, 4) + string(b"test")
WITHOUT_INDEXING, NEVER_INDEXED, INDEXING = 0x00, 0x10, 0x40


def huffman(text: bytes) -> bytes:
    """Encode a string literal in Huffman's code (RFC 7541 section 5.2)."""
    data = hpack.Encoder().huffman_coder.encode(text)
    return integer(len(data), 7, 0x80) + data


def send(client: Http2Client, block: bytes) -> int:
    stream_id = client.open()
    client.send_block(stream_id, block, end=True)
    return stream_id


def fields_of(client: Http2Client, block: bytes) -> list[list[str]]:
    """Return the fields of a request whose block is this, as the application sees them."""
    answer = client.answer(send(client, block))
    return [field for field in answer["fields"] if field[0].startswith("x-")]


def expect_compression_error(client: Http2Client, block: bytes) -> None:
    send(client, block)
    client.expect_connection_error(Code.COMPRESSION_ERROR)


# -- representations -----------------------------------------------------------


@pytest.mark.parametrize("coded", [string, huffman], ids=["plain", "Huffman"])
def test_requests_of_the_examples(client: Http2Client, coded: Callable[[bytes], bytes]) -> None:
    """RFC 7541 appendices C.3 and C.4: three requests on one connection, one table."""
    first = GET + HTTP + ROOT + b"\x41" + coded(b"www.example.com")
    second = GET + HTTP + ROOT + b"\xbe" + b"\x58" + coded(b"no-cache")
    third = GET + b"\x87\x85\xbf\x40" + coded(b"custom-key") + coded(b"custom-value")
    # The paths of the examples are none of the application's.
    for block in (first, second, third):
        assert client.response(send(client, block)).status == 404
    # All three entries are there: custom-key, cache-control, :authority.
    echo = GET + HTTP + integer(PATH, 4) + string(b"/echo")
    answer = client.answer(send(client, echo + b"\xc0" + b"\xbe\xbf"))
    assert answer["host"] == "www.example.com"
    assert ["custom-key", "custom-value"] in answer["fields"]
    assert ["cache-control", "no-cache"] in answer["fields"]


@pytest.mark.parametrize("first", [WITHOUT_INDEXING, NEVER_INDEXED, INDEXING])
@pytest.mark.parametrize("coded", [string, huffman], ids=["plain", "Huffman"])
def test_literal_field(client: Http2Client, first: int, coded: Callable[[bytes], bytes]) -> None:
    """RFC 7541 sections 6.2.1 to 6.2.3."""
    block = ECHO + bytes([first]) + coded(b"x-name") + coded(b"value, \x80\xff of all kinds")
    assert fields_of(client, block) == [["x-name", "value, \x80\xff of all kinds"]]


def test_literal_field_with_an_indexed_name(client: Http2Client) -> None:
    """RFC 7541 section 6.2: the name of a static entry and of a dynamic one."""
    assert fields_of(client, ECHO + literal(b"x-name", b"1", INDEXING)) == [["x-name", "1"]]
    block = ECHO + integer(62, 4) + string(b"2") + integer(62, 6, INDEXING) + string(b"3")
    assert fields_of(client, block) == [["x-name", "2"], ["x-name", "3"]]
    assert fields_of(client, ECHO + b"\xbe\xbf") == [["x-name", "3"], ["x-name", "1"]]


@pytest.mark.parametrize("first", [WITHOUT_INDEXING, NEVER_INDEXED])
def test_literal_field_without_indexing_adds_nothing(client: Http2Client, first: int) -> None:
    """RFC 7541 sections 6.2.2 and 6.2.3."""
    assert fields_of(client, ECHO + literal(b"x-name", b"1", first)) == [["x-name", "1"]]
    expect_compression_error(client, ECHO + b"\xbe")


def test_entry_may_be_used_in_the_block_that_adds_it(client: Http2Client) -> None:
    """RFC 7541 section 3.2: representations are processed in order."""
    block = ECHO + literal(b"x-name", b"1", INDEXING) + b"\xbe"
    assert fields_of(client, block) == [["x-name", "1"]] * 2


def test_same_entry_may_be_added_twice(client: Http2Client) -> None:
    """RFC 7541 section 2.3.2."""
    block = ECHO + literal(b"x-name", b"1", INDEXING) * 2
    assert fields_of(client, block) == [["x-name", "1"]] * 2
    assert fields_of(client, ECHO + b"\xbe\xbf") == [["x-name", "1"]] * 2


def test_empty_value(client: Http2Client) -> None:
    """RFC 7541 section 5.2: a string of no length, in either form."""
    block = ECHO + literal(b"x-plain", b"") + b"\x00" + string(b"x-huffman") + b"\x80"
    assert fields_of(client, block) == [["x-plain", ""], ["x-huffman", ""]]


def test_strings_of_lengths_about_the_prefix(client: Http2Client) -> None:
    """RFC 7541 section 5.1: 127 is the first length that does not fit in seven bits."""
    values = [b"v" * size for size in (126, 127, 128, 254, 255, 256, 2**14)]
    block = ECHO + b"".join(literal(b"x-name", value) for value in values)
    assert fields_of(client, block) == [["x-name", value.decode()] for value in values]


def test_block_goes_on_in_a_continuation_within_a_string(client: Http2Client) -> None:
    """RFC 9113 section 4.3: fragments are joined before they are decoded."""
    block = ECHO + literal(b"x-name", b"a value in two frames")
    stream_id = client.open()
    client.send_frame(Kind.HEADERS, Flag.END_STREAM, stream_id, block[:-8])
    client.send_frame(Kind.CONTINUATION, Flag.END_HEADERS, stream_id, block[-8:])
    assert ["x-name", "a value in two frames"] in client.answer(stream_id)["fields"]


# -- the dynamic table ---------------------------------------------------------


def test_oldest_entries_are_evicted(client: Http2Client) -> None:
    """RFC 7541 sections 4.1 and 4.4: entries of 32 bytes more than their strings."""
    # 40 entries of 102 bytes are 4,080; the 41st evicts the first.
    block = b"".join(literal(b"x-name", b"%064d" % i, INDEXING) for i in range(41))
    assert len(fields_of(client, ECHO + block)) == 41
    assert fields_of(client, ECHO + integer(61 + 40, 7, 0x80)) == [["x-name", f"{1:064}"]]
    expect_compression_error(client, ECHO + integer(61 + 41, 7, 0x80))


def test_entry_of_exactly_the_size_of_the_table_stays(client: Http2Client) -> None:
    """RFC 7541 section 4.1: 4,096 bytes."""
    value = b"v" * (4096 - 32 - 6)
    assert len(fields_of(client, ECHO + literal(b"x-name", value, INDEXING))) == 1
    assert fields_of(client, ECHO + b"\xbe") == [["x-name", value.decode()]]


def test_entry_larger_than_the_table_empties_it(client: Http2Client) -> None:
    """RFC 7541 section 4.4: "not an error"."""
    large = b"v" * (4096 - 32 - 5)
    block = literal(b"x-small", b"1", INDEXING) + literal(b"x-name", large, INDEXING)
    assert len(fields_of(client, ECHO + block)) == 2
    expect_compression_error(client, ECHO + b"\xbe")


def test_name_of_an_entry_that_its_own_field_evicts(client: Http2Client) -> None:
    """RFC 7541 section 4.4: "care needs to be taken to avoid deleting the referenced name"."""
    value = b"v" * 4000
    assert len(fields_of(client, ECHO + literal(b"x-name", value, INDEXING))) == 1
    block = ECHO + integer(62, 6, INDEXING) + string(b"w" * 4000)
    assert fields_of(client, block) == [["x-name", "w" * 4000]]
    assert fields_of(client, ECHO + b"\xbe") == [["x-name", "w" * 4000]]


def test_table_size_update_evicts(client: Http2Client) -> None:
    """RFC 7541 sections 4.3 and 6.3."""
    block = b"".join(literal(b"x-name", b"%d" % i, INDEXING) for i in range(3))
    assert len(fields_of(client, ECHO + block)) == 3
    # Room for two entries of 32 + 6 + 1.
    assert fields_of(client, integer(78, 5, 0x20) + ECHO + b"\xbe\xbf") == [
        ["x-name", "2"],
        ["x-name", "1"],
    ]
    expect_compression_error(client, ECHO + b"\xc0")


def test_table_size_updates_to_zero_and_back_empty_the_table(client: Http2Client) -> None:
    """RFC 7541 section 4.2: two in a row, at the beginning."""
    assert len(fields_of(client, ECHO + literal(b"x-name", b"1", INDEXING))) == 1
    block = integer(0, 5, 0x20) + integer(4096, 5, 0x20) + ECHO
    assert fields_of(client, block + literal(b"x-name", b"2", INDEXING) + b"\xbe") == [
        ["x-name", "2"],
        ["x-name", "2"],
    ]


def test_table_of_no_size_takes_nothing(client: Http2Client) -> None:
    """RFC 7541 section 4.4."""
    block = integer(0, 5, 0x20) + ECHO + literal(b"x-name", b"1", INDEXING)
    assert fields_of(client, block) == [["x-name", "1"]]
    expect_compression_error(client, ECHO + b"\xbe")


def test_block_of_a_table_size_update_alone_is_malformed(client: Http2Client) -> None:
    """RFC 7541 section 6.3; RFC 9113 section 8.3.1: it decodes, to no fields."""
    stream_id = client.open()
    client.send_block(stream_id, integer(100, 5, 0x20), end=True)
    client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)
    assert client.answer(send(client, ECHO))["method"] == "GET"


def test_table_size_update_over_the_limit_is_an_error(client: Http2Client) -> None:
    """RFC 7541 section 6.3: the limit is SETTINGS_HEADER_TABLE_SIZE of the server."""
    limit = client.server_settings.get(Setting.HEADER_TABLE_SIZE, 4096)
    expect_compression_error(client, integer(limit + 1, 5, 0x20) + ECHO)


def test_table_size_update_behind_a_field_is_an_error(client: Http2Client) -> None:
    """RFC 7541 section 4.2: at the beginning of a block."""
    expect_compression_error(client, ECHO + integer(100, 5, 0x20))


@pytest.mark.parametrize("why", ["stream error", "refused stream", "trailers", "closed stream"])
def test_table_is_kept_by_blocks_that_are_not_used(client: Http2Client, why: str) -> None:
    """RFC 9113 section 4.3: "a receiver MUST ... decompress the field block"."""
    added = literal(b"x-name", b"added", INDEXING)
    if why == "trailers":
        stream_id = client.request("/echo", method="POST")
        client.send_block(stream_id, added, end=True)
        assert client.response(stream_id).status == 200
        # What the encoder has added itself is in front.
        assert ["x-name", "added"] in fields_of(client, ECHO + b"\xbe")
        return
    if why == "closed stream":
        stream_id = client.request("/early", ("x-other", "1"), method="POST")
        assert client.response(stream_id).status == 403
        client.send_block(stream_id, added, end=True)
        client.sync()
    elif why == "stream error":
        stream_id = send(client, ECHO + literal(b"Upper", b"1") + added)
        client.expect_stream_error(stream_id, Code.PROTOCOL_ERROR)
    else:
        for _ in range(client.server_settings[Setting.MAX_CONCURRENT_STREAMS]):
            send(client, GET + HTTP + integer(PATH, 4) + string(b"/wait/all") + ECHO[-6:])
        refused = send(client, ECHO + added)
        client.expect_stream_error(refused, Code.REFUSED_STREAM, Code.PROTOCOL_ERROR)
        client.reset(1)
    assert ["x-name", "added"] in fields_of(client, ECHO + b"\xbe")


# -- errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        ECHO + b"\x80",
        ECHO + integer(LAST_STATIC + 1, 7, 0x80),
        ECHO + integer(1000, 7, 0x80),
        ECHO + integer(LAST_STATIC + 1, 6, INDEXING) + string(b"v"),
        ECHO + integer(LAST_STATIC + 1, 4) + string(b"v"),
        ECHO + b"\xff" + b"\xff" * 10 + b"\x7f",
        ECHO + b"\xff" + b"\x80" * 100 + b"\x01",
        ECHO + b"\x00\x7f" + b"\xff" * 10 + b"\x7f",
        ECHO + b"\xff",
        ECHO + b"\xff\x80",
        ECHO + b"\x40",
        ECHO + b"\x00\x05x-na",
        ECHO + b"\x00\x06x-name",
        ECHO + b"\x00\x06x-name\x05valu",
        ECHO + b"\x00\x06x-name\x7f",
    ],
    ids=[
        "index 0",
        "index 0 behind fields",
        "index behind the tables",
        "index far behind the tables",
        "indexed name behind the tables",
        "indexed name behind the tables, not added",
        "index of 70 bits",
        "index of 100 bytes",
        "length of 70 bits",
        "integer cut off",
        "integer cut off later",
        "name missing",
        "name cut off",
        "value missing",
        "value cut off",
        "length cut off",
    ],
)
def test_block_that_cannot_be_decoded_is_a_connection_error(
    client: Http2Client, block: bytes
) -> None:
    """RFC 7541 sections 2.3.3, 5.1, 5.2 and 6.1; RFC 9113 section 4.3."""
    expect_compression_error(client, block)


@pytest.mark.parametrize(
    "data",
    [b"\x1f\xff", b"\xff", b"\x18", b"\x00", b"\x1c\xff\xff\xff\xff", b"\xff\xff\xff\xff"],
    ids=["over 7 bits", "8 bits", "zeros", "5 zeros more", "EOS behind a", "EOS"],
)
def test_wrong_end_of_a_huffman_string_is_a_connection_error(
    client: Http2Client, data: bytes
) -> None:
    """RFC 7541 section 5.2: padding is the first bits of EOS, at most 7, and EOS is in none."""
    block = ECHO + b"\x00" + string(b"x-name") + integer(len(data), 7, 0x80) + data
    expect_compression_error(client, block)


def test_every_byte_of_values_in_huffmans_code(client: Http2Client) -> None:
    """RFC 7541 appendix B; RFC 9110 section 5.5."""
    value = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
    block = ECHO + b"\x00" + string(b"x-name") + huffman(b"a" + value + b"z")
    assert fields_of(client, block) == [["x-name", "a" + value.decode("latin-1") + "z"]]


def test_every_byte_of_no_value_in_huffmans_code_can_be_decoded(client: Http2Client) -> None:
    """RFC 7541 appendix B; RFC 9113 section 8.2.1: a stream error, not one of the connection."""
    with client.unharmed():
        value = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])
        block = ECHO + b"\x00" + string(b"x-name") + huffman(b"a" + value + b"z")
        client.expect_stream_error(send(client, block), Code.PROTOCOL_ERROR)


def test_error_in_trailers_is_a_connection_error(client: Http2Client) -> None:
    """RFC 9113 section 4.3."""
    stream_id = client.request("/echo", method="POST")
    client.send_block(stream_id, b"\x80", end=True)
    client.expect_connection_error(Code.COMPRESSION_ERROR)


def test_error_on_a_closed_stream_is_a_connection_error(client: Http2Client) -> None:
    """RFC 9113 sections 4.3 and 5.1: the table is the connection's."""
    stream_id = client.request("/early", method="POST")
    client.response(stream_id)
    client.send_block(stream_id, b"\x80", end=True)
    client.expect_connection_error(Code.COMPRESSION_ERROR)


# -- what the server encodes ---------------------------------------------------


def test_responses_that_repeat_get_shorter(client: Http2Client) -> None:
    """RFC 7541 section 2.3: the table is there to be used."""
    sizes = []
    for _ in range(3):
        client.get("/status/404")
        sizes.append(
            [len(frame.payload) for frame in client.frames if frame.kind == Kind.HEADERS][-1]
        )
    assert sizes[2] < sizes[0]


def test_cookies_of_responses_are_not_added_to_the_table(client: Http2Client) -> None:
    """RFC 7541 section 7.1.3: values that could be guessed one after the other."""
    client.get("/fields")
    assert b"set-cookie" not in [name for name, _ in client.decoder.header_table.dynamic_entries]


def test_client_with_a_larger_table_reads_the_responses(client: Http2Client) -> None:
    """RFC 7541 section 4.2: a server may use less than it is offered."""
    client.change_settings((Setting.HEADER_TABLE_SIZE, 65536))
    for _ in range(3):
        assert client.get().status == 200


def test_codec_of_the_client_knows_the_examples() -> None:
    """The tests' own tools against RFC 7541 appendix C.4.1."""
    block = bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff")
    assert GET + HTTP + ROOT + b"\x41" + huffman(b"www.example.com") == block
    assert list(hpack.Decoder().decode(block, raw=True))[3] == (b":authority", b"www.example.com")
