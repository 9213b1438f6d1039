"""Field blocks: against the package hpack, the RFC's examples, and blocks made to harm."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
import weakref

import hpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tornado_worker.http2.hpack as ours
from tornado_worker.http2 import huffman
from tornado_worker.http2.errors import ConnectionFault, ErrorCode
from tornado_worker.http2.hpack import Decoder, Encoder, HeaderListTooLarge
from tornado_worker.http2.static_table import STATIC_TABLE

Field = tuple[bytes, bytes]


@pytest.fixture(autouse=True)
def _forget() -> None:
    huffman._memo.clear()
    ours._sightings.clear()


def fault_of(block: bytes, decoder: Decoder | None = None) -> str:
    with pytest.raises(ConnectionFault) as caught:
        (Decoder() if decoder is None else decoder).decode(block)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR
    return caught.value.reason


def literal(name: bytes, value: bytes, first: int = 0x40) -> bytes:
    """Return a literal with a new name; put into the table unless `first` says otherwise."""
    return bytes((first,)) + ours._raw_string(name) + ours._raw_string(value)


def integer(value: int, prefix_bits: int, pattern: int) -> bytes:
    return ours._encode_integer(value, prefix_bits, pattern)


# -- the examples of RFC 7541 appendix C ---------------------------------------------

GET: list[Field] = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]
AUTHORITY = (b":authority", b"www.example.com")
REQUESTS: list[list[Field]] = [
    [*GET, AUTHORITY],
    [*GET, AUTHORITY, (b"cache-control", b"no-cache")],
    [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        AUTHORITY,
        (b"custom-key", b"custom-value"),
    ],
]
DATE = b"Mon, 21 Oct 2013 20:13:2"
SITE = (b"location", b"https://www.example.com")
RESPONSES: list[list[Field]] = [
    [(b":status", b"302"), (b"cache-control", b"private"), (b"date", DATE + b"1 GMT"), SITE],
    [(b":status", b"307"), (b"cache-control", b"private"), (b"date", DATE + b"1 GMT"), SITE],
    [
        (b":status", b"200"),
        (b"cache-control", b"private"),
        (b"date", DATE + b"2 GMT"),
        SITE,
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ],
]
EXAMPLES: dict[str, tuple[int, list[list[Field]], list[str], list[int]]] = {
    # Size of the table, fields, blocks, and the table's size after each.
    "C.2.1": (
        4096,
        [[(b"custom-key", b"custom-header")]],
        ["400a637573746f6d2d6b65790d637573746f6d2d686561646572"],
        [55],
    ),
    "C.2.2": (4096, [[(b":path", b"/sample/path")]], ["040c2f73616d706c652f70617468"], [0]),
    "C.2.3": (
        4096,
        [[(b"password", b"secret")]],
        ["100870617373776f726406736563726574"],
        [0],
    ),
    "C.2.4": (4096, [[(b":method", b"GET")]], ["82"], [0]),
    "C.3": (
        4096,
        REQUESTS,
        [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ],
        [57, 110, 164],
    ),
    "C.4": (
        4096,
        REQUESTS,
        [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
        [57, 110, 164],
    ),
    "C.5": (
        256,
        RESPONSES,
        [
            "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a"
            "323120474d546e1768747470733a2f2f7777772e6578616d706c652e636f6d",
            "4803333037c1c0bf",
            "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69"
            "707738666f6f3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d6178"
            "2d6167653d333630303b2076657273696f6e3d31",
        ],
        [222, 222, 215],
    ),
    "C.6": (
        256,
        RESPONSES,
        [
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29"
            "ad171863c78f0b97c8e9ae82ae43d3",
            "4883640effc1c0bf",
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7"
            "f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d50"
            "07",
        ],
        [222, 222, 215],
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_rfc(name: str) -> None:
    table_size, lists, blocks, sizes = EXAMPLES[name]
    decoder = Decoder()
    # The RFC's table has this size from the beginning; a real one is told so.
    assert decoder.decode(integer(table_size, 5, 0x20)) == ()
    for fields, block, size in zip(lists, blocks, sizes, strict=True):
        assert decoder.decode(bytes.fromhex(block)) == tuple(fields)
        assert decoder._size == sum(decoder._sizes) == size


@pytest.mark.parametrize(
    ("value", "prefix_bits", "expected"),
    [(10, 5, "0a"), (1337, 5, "1f9a0a"), (42, 8, "2a"), (31, 5, "1f00"), (0, 5, "00")],
)
def test_integers_of_the_rfc(value: int, prefix_bits: int, expected: str) -> None:
    """Section C.1, and the smallest one behind a full prefix."""
    encoded = integer(value, prefix_bits, 0)
    assert encoded.hex() == expected
    if len(encoded) > 1:
        assert ours._decode_integer(encoded, 1, encoded[0]) == (value, len(encoded))


def test_static_table_is_that_of_the_rfc() -> None:
    assert STATIC_TABLE == hpack.table.HeaderTable.STATIC_TABLE
    decoder = Decoder()
    block = b"".join(integer(index, 7, 0x80) for index in range(1, 62))
    assert decoder.decode(block) == STATIC_TABLE


# -- decoded -------------------------------------------------------------------------

NAMES = st.sampled_from([name for name, _ in STATIC_TABLE]) | st.sampled_from(
    [b"x", b"x-request-id", b"priority", b"y" * 130, b"x-\xff"]
)
VALUES = st.sampled_from([b"", b"200", b"GET", b"gzip, deflate", b"/", b"a" * 127, b"b" * 3000])
FIELDS = st.lists(st.tuples(NAMES, VALUES | st.binary(max_size=200)), max_size=12)
SIZES = st.lists(st.sampled_from([0, 31, 60, 200, 4096]), max_size=3)


@settings(deadline=None)
@given(st.lists(st.tuples(FIELDS, SIZES, st.booleans()), max_size=8))
def test_what_hpack_encodes_is_decoded(rounds: list[tuple[list[Field], list[int], bool]]) -> None:
    encoder = hpack.Encoder()
    decoder = Decoder(max_list_size=10**6)
    for fields, sizes, with_huffman in rounds:
        for size in sizes:
            # hpack does not say a size that is set twice.
            if size != encoder.header_table_size:
                encoder.header_table_size = size
        # It says each size that it had; the RFC's two are the smallest and the last.
        if changes := encoder.table_size_changes:
            changes[:] = [min(changes), changes[-1]]
        assert decoder.decode(encoder.encode(fields, with_huffman)) == tuple(fields)
        assert [tuple(field) for field in encoder.header_table.dynamic_entries] == list(
            reversed(decoder._entries)
        )
        repeated = encoder.encode(fields, with_huffman)
        assert decoder.decode(repeated) == tuple(fields)


def parts_of_blocks() -> st.SearchStrategy[bytes]:
    text = st.binary(max_size=6).map(ours._raw_string)
    coded = st.binary(max_size=6).map(lambda data: integer(len(data), 7, 0x80) + data)
    valid = st.binary(max_size=6).map(huffman.encode)
    coded |= valid.map(lambda data: integer(len(data), 7, 0x80) + data)
    strings = text | coded
    indexes = st.sampled_from([0, 1, 2, 15, 61, 62, 63, 64, 70, 126, 127, 128, 300])
    return st.one_of(
        st.builds(integer, indexes, st.just(7), st.just(0x80)),
        st.builds(lambda i, v: integer(i, 6, 0x40) + v, indexes.filter(bool), strings),
        st.builds(lambda i, v: integer(i, 4, 0x10) + v, indexes.filter(bool), strings),
        st.builds(lambda n, v: b"\x40" + n + v, strings, strings),
        st.builds(lambda n, v: b"\x00" + n + v, strings, strings),
        st.builds(integer, st.sampled_from([0, 30, 31, 50, 4096, 4097]), st.just(5), st.just(32)),
        st.binary(max_size=3),
    )


def check_blocks(blocks: list[bytes]) -> None:
    """What both read is the same; what hpack refuses, we refuse too."""
    theirs, decoder = hpack.Decoder(), Decoder()
    for block in blocks:
        expected: tuple[Field, ...] | None = None
        with contextlib.suppress(hpack.HPACKError):
            expected = tuple((bytes(n), bytes(v)) for n, v in theirs.decode(block, raw=True))
        try:
            fields = decoder.decode(block)
        except ConnectionFault as fault:
            # hpack takes integers of any length, and any number of table size updates.
            refused_by_us_only = "integer too large" in str(fault) or "too many" in str(fault)
            assert expected is None or refused_by_us_only
            return
        assert fields == expected
        assert decoder._size == sum(decoder._sizes) <= decoder._table_size
        assert decoder.decode(b"\x82") == ((b":method", b"GET"),)


@settings(deadline=None)
@given(st.lists(st.lists(parts_of_blocks(), max_size=6).map(b"".join), max_size=4))
@example([b"\x3f\xff\xff\xff\xff\xff\x00"])
@example([b"\x40\x01a\x01b\xbe", b"\xbe", b"\x20\xbe"])
def test_any_blocks_are_decoded_or_refused_as_by_hpack(blocks: list[bytes]) -> None:
    check_blocks(blocks)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"\x80", "wrong index of a field: expected 1 to 61; got 0"),
        (b"\xbe", "wrong index of a field: expected 1 to 61; got 62"),
        (b"\xff\x80\x01", "wrong index of a field: expected 1 to 61; got 255"),
        (b"\x7e\x01a", "wrong index of a field: expected 1 to 61; got 62"),
        (b"\x0f\x2f\x01a", "wrong index of a field: expected 1 to 61; got 62"),
        (literal(b"a", b"b") + b"\xbf", "wrong index of a field: expected 1 to 62; got 63"),
        (b"\xff", "field block ends within a field"),
        (b"\xff\x80", "field block ends within a field"),
        (b"\x40", "field block ends within a field"),
        (b"\x42", "field block ends within a field"),
        (b"\x40\x01a", "field block ends within a field"),
        (b"\x40\x7f", "field block ends within a field"),
        (b"\x3f", "field block ends within a field"),
        (b"\x40\x02a", "string too long: expected at most the 1 bytes left; got 2"),
        (b"\x42\x03ab", "string too long: expected at most the 2 bytes left; got 3"),
        (b"\x42\x83ab", "string too long: expected at most the 2 bytes left; got 3"),
        (
            b"\x42\x7f\xff\xff\xff\xff\x0f",
            "string too long: expected at most the 0 bytes left; got 4294967422",
        ),
        (
            b"\xff" + b"\xff" * 5,
            "integer too large: expected at most five bytes behind its prefix",
        ),
        (
            b"\x42\x7f" + b"\x80" * 60_000 + b"\x00",
            "integer too large: expected at most five bytes behind its prefix",
        ),
        (b"\x82\x20", "table size update behind a field"),
        (b"\x20\x82\x3f\xe1\x1f", "table size update behind a field"),
        (b"\x20\x20\x20\x82", "too many table size updates: expected at most 2 in a block"),
        (b"\x20" * 60_000, "too many table size updates: expected at most 2 in a block"),
        (b"\x3f\xe2\x1f", "table size too large: expected at most 4096; got 4097"),
        (
            b"\x42\x81\x00",
            "wrong padding of a string in Huffman's code: expected up to seven bits of 1; got 000",
        ),
        (b"\x42\x84\xff\xff\xff\xff", "EOS inside of a string in Huffman's code"),
        (
            b"\x40\x81\xff\x01a",
            "wrong padding of a string in Huffman's code: "
            "expected up to seven bits of 1; got 11111111",
        ),
    ],
)
def test_malformed_block_is_a_compression_error(block: bytes, reason: str) -> None:
    assert fault_of(block) == reason
    decoder = Decoder()
    decoder.decode(b"\x82")
    assert fault_of(block, decoder) == reason


def test_table_may_be_larger_or_smaller_than_the_usual() -> None:
    large = Decoder(max_table_size=8192)
    assert large.decode(integer(8192, 5, 0x20) + b"\x82") == ((b":method", b"GET"),)
    assert fault_of(integer(8193, 5, 0x20), large).endswith("at most 8192; got 8193")
    # A peer that has not read our settings yet uses 4096 bytes.
    small = Decoder(max_table_size=0)
    assert small.decode(literal(b"a", b"b")) == small.decode(b"\xbe") == ((b"a", b"b"),)
    assert small.decode(b"\x20") == ()
    assert small.decode(literal(b"a", b"b")) == ((b"a", b"b"),)
    assert fault_of(b"\xbe", small).endswith("1 to 61; got 62")
    assert fault_of(b"\x21", Decoder(max_table_size=0)).endswith("at most 0; got 1")


def test_table_size_updates_evict_the_oldest() -> None:
    decoder = Decoder()
    decoder.decode(literal(b"a", b"1") + literal(b"b", b"2") + literal(b"c", b"3"))
    assert decoder.decode(b"\xbe\xbf\xc0") == ((b"c", b"3"), (b"b", b"2"), (b"a", b"1"))
    # To one entry, and back.
    update = integer(34, 5, 0x20) + integer(4096, 5, 0x20)
    assert decoder.decode(update + b"\xbe") == ((b"c", b"3"),)
    assert fault_of(b"\xbf", decoder).endswith("1 to 62; got 63")


def test_entry_larger_than_the_table_empties_it() -> None:
    decoder = Decoder()
    large = (b"x", b"y" * 4064)
    assert decoder.decode(literal(b"a", b"b") + literal(*large)) == ((b"a", b"b"), large)
    assert (decoder._entries, decoder._sizes, decoder._size) == ([], [], 0)
    largest = (b"x", b"y" * 4063)
    assert decoder.decode(literal(*largest) + b"\xbe") == (largest, largest)
    assert decoder._size == 4096


def test_name_of_an_entry_that_is_evicted_by_its_successor() -> None:
    """Section 4.4: the name is read before the entry goes."""
    decoder = Decoder()
    decoder.decode(literal(b"name", b"v" * 4000))
    assert decoder.decode(b"\x7e" + ours._raw_string(b"w" * 4000)) == ((b"name", b"w" * 4000),)
    assert decoder._entries == [(b"name", b"w" * 4000)]


# -- the memo of blocks --------------------------------------------------------------


def test_repeated_block_gives_the_same_object_until_the_table_changes() -> None:
    decoder = Decoder()
    first = literal(b"a", b"1") + literal(b"b", b"2")
    decoder.decode(first)
    block = b"\x82\xbe" + literal(b"x", b"y", 0x00)
    fields = decoder.decode(block)
    assert fields == ((b":method", b"GET"), (b"b", b"2"), (b"x", b"y"))
    assert decoder.decode(bytes(bytearray(block))) is fields
    assert decoder.decode(b"\x84") is decoder.decode(b"\x84")
    # The shared fields are objects of the table.
    assert decoder.decode(b"\xbe")[0] is fields[1]
    decoder.decode(literal(b"c", b"3"))
    assert decoder.decode(block)[1] == (b"c", b"3")
    decoder.decode(integer(35, 5, 0x20))
    assert decoder.decode(b"\xbe") == ((b"c", b"3"),)
    decoder.decode(b"\x20")
    fault_of(b"\xbe", decoder)


def test_block_that_changes_the_table_is_decoded_each_time() -> None:
    decoder = Decoder()
    block = literal(b"a", b"1")
    for count in (1, 2, 3):
        assert decoder.decode(block) == ((b"a", b"1"),)
        assert len(decoder._entries) == count
    for _ in range(2):
        assert decoder.decode(b"\xbe\xbf\xc0") == ((b"a", b"1"),) * 3


def test_table_that_a_list_too_large_has_changed_is_not_remembered_as_it_was() -> None:
    decoder = Decoder(max_list_size=100)
    decoder.decode(literal(b"a", b"1"))
    assert decoder.decode(b"\xbe") == ((b"a", b"1"),)
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(literal(b"b", b"2" * 99))
    assert decoder.decode(b"\xbf") == ((b"a", b"1"),)
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(b"\xbe")


def test_memo_is_bounded() -> None:
    decoder = Decoder()
    for number in range(100):
        decoder.decode(literal(b"n", b"%d" % number, 0x00))
        assert len(decoder._memo) <= ours.MEMO_BLOCKS
    decoder.decode(b"\x20")
    assert not decoder._memo
    for block in (b"\x82" * 49, literal(b"n", b"v" * 600, 0x00)):
        decoder.decode(block)
        assert not decoder._memo


def test_never_indexed_value_is_not_remembered() -> None:
    secret = huffman.encode(b"secret")
    string = integer(len(secret), 7, 0x80) + secret
    for first in (0x10, 0x1F):
        name = b"\x08" if first == 0x1F else b"\x01a"
        (field,) = Decoder().decode(bytes((first,)) + name + string)
        assert field[1] == b"secret"
        assert huffman.known_text(secret) is None
    Decoder().decode(b"\x42" + string)
    assert huffman.known_text(secret) == b"secret"


# -- blocks made to harm -------------------------------------------------------------


def test_list_above_the_limit_leaves_the_table_in_step() -> None:
    decoder = Decoder(max_list_size=3 * 34)
    three = literal(b"a", b"1") + literal(b"b", b"2") + literal(b"c", b"3")
    assert len(decoder.decode(three)) == 3
    with pytest.raises(HeaderListTooLarge) as caught:
        decoder.decode(three + literal(b"d", b"4"))
    assert str(caught.value) == "field list too large: expected at most 102 bytes; got 136"
    assert decoder.decode(b"\xbe\xbf\xc1") == ((b"d", b"4"), (b"c", b"3"), (b"a", b"1"))
    # A fault behind the limit is a fault still.
    assert fault_of(three + three + b"\x80", decoder).endswith("got 0")


def test_bomb_of_indexed_fields_is_not_unpacked() -> None:
    """64 KB of a block refer to one entry of 4 KB: 256 MB of fields."""
    decoder = Decoder()
    value = b"v" * 4000
    assert decoder.decode(literal(b"n", value)) == ((b"n", value),)
    with pytest.raises(HeaderListTooLarge, match="got 264302655"):
        decoder.decode(b"\xbe" * 65_535)
    assert decoder.decode(b"\xbe") == ((b"n", value),)
    assert len(decoder._entries) == 1


def test_fields_above_the_limit_are_not_kept() -> None:
    block = literal(b"", b"", 0) * 30_000
    tracemalloc.start()
    try:
        with pytest.raises(HeaderListTooLarge):
            Decoder().decode(block)
        assert tracemalloc.get_traced_memory()[1] < 2**19
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "block",
    [
        b"\x82" * 1_000_000,
        literal(b"", b"") * 300_000,
        literal(b"", b"", 0) * 300_000,
        literal(b"x", b"y" * 4000) * 300,
        literal(b"x", b"y" * 5000) * 300,
        (b"\x40\x01x" + b"\x7f\x81\x3e" + b"y" * 8064) * 100,
        (literal(b"", b"") * 127 + b"\xbe\xbf\xc0") * 2000,
        b"\x40\x00\xff\x81\x3e" + b"\x1c" * 8064,
    ],
)
def test_hostile_block_costs_no_more_than_its_bytes(block: bytes) -> None:
    decoder = Decoder()
    try:
        decoder.decode(block)
    except HeaderListTooLarge:
        pass
    except ConnectionFault as fault:
        assert len(fault.reason) < 200  # noqa: PT017
    assert decoder._size == sum(decoder._sizes) <= 4096
    assert len(decoder._entries) <= 128
    assert not decoder._memo


# -- encoded -------------------------------------------------------------------------

CHANGES = st.lists(st.sampled_from([0, 31, 60, 200, 4096, 65_536]), max_size=3)


@settings(deadline=None)
@given(
    st.lists(st.tuples(FIELDS, CHANGES, st.integers(1, 3)), max_size=8),
    st.sampled_from([0, 100, 4096]),
)
def test_hpack_and_we_decode_what_is_encoded(
    rounds: list[tuple[list[Field], list[int], int]], max_table_size: int
) -> None:
    encoder = Encoder(max_table_size)
    theirs, decoder = hpack.Decoder(max_header_list_size=10**6), Decoder(65_536, 10**6)
    theirs.max_allowed_table_size = 65_536
    for fields, sizes, repeats in rounds:
        for size in sizes:
            encoder.set_max_table_size(size)
        for _ in range(repeats):
            block = encoder.encode(iter(fields))
            assert decoder.decode(block) == tuple(fields)
            decoded = theirs.decode(block, raw=True)
            assert [tuple(field) for field in decoded] == fields
            kept = list(encoder._table)
            assert kept == decoder._entries[len(decoder._entries) - len(kept) :]
            assert encoder._size <= encoder._table_size <= max(max_table_size, 0)


RESPONSE: tuple[Field, ...] = (
    (b":status", b"200"),
    (b"server", b"TornadoServer/6.5"),
    (b"content-type", b"text/html; charset=UTF-8"),
    (b"date", b"Sat, 28 Nov 2026 13:00:00 GMT"),
    (b"content-length", b"12"),
    (b"etag", b'"0123456789abcdef"'),
)


def test_fields_that_repeat_take_a_byte_each_and_the_others_are_not_put_into_the_table() -> None:
    encoder = Encoder()
    first = encoder.encode(RESPONSE)
    assert first[:1] == b"\x88"
    assert not encoder._table
    encoder.encode(RESPONSE)
    assert list(encoder._table) == list(RESPONSE[1:4])
    third = encoder.encode(RESPONSE)
    assert third == (
        b"\x88\xc0\xbf\xbe" + b"\x0f\x0d\x0212" + b"\x0f\x13\x12" + b'"0123456789abcdef"'
    )
    assert encoder.encode(RESPONSE) == third
    # Another connection need not send them first to know that they repeat.
    other = Encoder()
    other.encode(RESPONSE)
    assert other.encode(RESPONSE) == third


def test_value_that_is_new_each_time_is_never_put_into_the_table() -> None:
    encoder = Encoder()
    for number in range(3000):
        encoder.encode([(b"x-request-id", b"%032d" % number)])
    assert not encoder._table
    assert len(ours._sightings) <= ours.MEMO_SIGHTINGS


@pytest.mark.parametrize("name", [b"set-cookie", b"authorization", b"cookie"])
def test_secret_is_never_indexed(name: bytes) -> None:
    """Section 7.1.3: the bits 0001 say so to proxies, too."""
    encoder = Encoder()
    for value in (b"secret", b"s" * 5000):
        for _ in range(4):
            block = encoder.encode([(name, value)])
            assert block[0] & 0xF0 == 0x10
            assert block.endswith(value)
            assert Decoder().decode(block) == ((name, value),)
    assert not encoder._table
    assert not ours._sightings


def test_literal_with_a_new_name_has_its_shorter_form_once_it_repeats() -> None:
    encoder = Encoder()
    field = (b"x-frame-options", b"SAMEORIGIN")
    encoder.encode([field])
    block = encoder.encode([field])
    assert block == (
        b"\x40\x8b" + huffman.encode(b"x-frame-options") + b"\x89" + huffman.encode(b"SAMEORIGIN")
    )
    assert encoder.encode([field]) == b"\xbe"
    odd = (b"x-odd", b"\0\1\2")
    encoder.encode([odd])
    assert encoder.encode([odd]).endswith(b"\x03\0\1\2")


def test_large_field_is_not_put_into_the_table() -> None:
    encoder = Encoder()
    field = (b"x-policy", b"p" * 1000)
    sizes = {len(encoder.encode([field])) for _ in range(4)}
    assert len(sizes) == 1
    assert not encoder._table


@pytest.mark.parametrize(
    ("sizes", "updates"),
    [
        ([4096], b""),
        ([65_536], b""),
        ([100], b"\x3f\x45"),
        ([0], b"\x20"),
        ([100, 0], b"\x20"),
        ([0, 100], b"\x20\x3f\x45"),
        ([0, 50, 10_000], b"\x20\x3f\xe1\x1f"),
        ([100, 0, 4096, 50, 60], b"\x20\x3f\x1d"),
    ],
)
def test_next_block_says_the_smallest_and_the_last_size(sizes: list[int], updates: bytes) -> None:
    encoder = Encoder()
    for size in sizes:
        encoder.set_max_table_size(size)
    assert encoder.encode([(b":status", b"200")]) == updates + b"\x88"
    assert encoder.encode([(b":status", b"200")]) == b"\x88"


def test_own_limit_is_said_in_the_first_block() -> None:
    encoder = Encoder(max_table_size=100)
    encoder.set_max_table_size(65_536)
    assert encoder.encode([]) == b"\x3f\x45"
    assert encoder.encode([]) == b""


def test_table_size_changed_a_thousand_times_is_little_to_say() -> None:
    encoder = Encoder()
    for number in range(10_000):
        encoder.set_max_table_size(number % 5000)
    assert len(encoder.encode([])) <= 6


def test_table_is_emptied_where_the_peer_wants_none() -> None:
    encoder = Encoder()
    for _ in range(3):
        encoder.encode(RESPONSE)
    encoder.set_max_table_size(0)
    assert not encoder._table
    assert not encoder._known
    block = encoder.encode(RESPONSE)
    assert block == encoder.encode(RESPONSE).join((b"\x20", b""))
    assert Decoder().decode(block) == RESPONSE


def test_what_is_kept_of_a_connection_is_bounded() -> None:
    encoder = Encoder()
    for _ in range(2):
        for number in range(1000):
            encoder.encode([(b"x", b"%d" % number)])
    assert len(encoder._table) <= 4096 // 33
    assert len(encoder._known) <= 61 + len(encoder._table)
    assert encoder._size <= 4096


class Weak(Decoder):
    """A decoder that a weak reference may know."""

    __slots__ = ("__weakref__",)


def test_decoder_is_freed_without_the_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        decoder = Weak()
        freed = weakref.ref(decoder)
        decoder.decode(b"\x82")
        decoder.decode(literal(b"a", b"b"))
        del decoder
        assert freed() is None
    finally:
        gc.enable()
