"""Huffman's code: against the package hpack, the RFC's examples, and ends that are wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import hpack.huffman
import pytest
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tornado_worker.http2 import huffman
from tornado_worker.http2.errors import ConnectionFault, ErrorCode

# From RFC 7541 appendix C.
EXAMPLES = {
    b"www.example.com": "f1e3 c2e5 f23a 6ba0 ab90 f4ff",
    b"no-cache": "a8eb 1064 9cbf",
    b"custom-key": "25a8 49e9 5ba9 7d7f",
    b"custom-value": "25a8 49e9 5bb8 e8b4 bf",
    b"302": "6402",
    b"private": "aec3 771a 4b",
    b"Mon, 21 Oct 2013 20:13:21 GMT": "d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff",
    b"https://www.example.com": "9d29 ad17 1863 c78f 0b97 c8e9 ae82 ae43 d3",
    b"gzip": "9bd9 ab",
    b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1": (
        "94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0"
        " 03ed 4ee5 b106 3d50 07"
    ),
}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    huffman._memo.clear()
    yield
    huffman._memo.clear()


def test_code_is_that_of_the_rfc() -> None:
    """The package's table is written out from appendix B; ours is derived from lengths."""
    assert list(huffman.LENGTHS) == REQUEST_CODES_LENGTH
    assert [int(bits, 2) for bits in huffman._BITS] == REQUEST_CODES
    assert [len(bits) for bits in huffman._BITS] == REQUEST_CODES_LENGTH


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_rfc(text: bytes) -> None:
    encoded = bytes.fromhex(EXAMPLES[text])
    assert huffman.encode(text) == encoded
    assert huffman.encoded_size(text) == len(encoded)
    assert huffman.decode(encoded) == text


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text("abc/= 019", max_size=300).map(str.encode))
@example(b"")
@example(bytes(range(256)))
def test_texts_are_encoded_as_by_hpack_and_decoded_again(text: bytes) -> None:
    encoded = huffman.encode(text)
    by_hpack = hpack.huffman.HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)
    assert encoded == by_hpack
    assert huffman.encoded_size(text) == len(encoded)
    assert huffman.decode(encoded, False) == text
    assert huffman.decode(encoded) == huffman.decode(encoded) == text


@settings(deadline=None)
@given(st.binary(max_size=12) | st.binary(max_size=40).map(lambda data: data + b"\xff"))
@example(b"\xff" * 4)
@example(b"\xff\xff\xff\xfb\xff")
def test_any_bytes_are_decoded_or_refused_as_by_hpack(data: bytes) -> None:
    expected: bytes | None = None
    with contextlib.suppress(hpack.HPACKDecodingError):
        expected = bytes(hpack.huffman_table.decode_huffman(data))
    if expected is None:
        with pytest.raises(ConnectionFault, match="COMPRESSION_ERROR"):
            huffman.decode(data, False)
    else:
        assert huffman.decode(data, False) == expected


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        # "a" is 00011.
        ("00011 000", "expected up to seven bits of 1; got 000"),
        ("00011 110", "expected up to seven bits of 1; got 110"),
        ("00011 111 11111111", "expected up to seven bits of 1; got 11111111111"),
        ("11111111", "expected up to seven bits of 1; got 11111111"),
        ("1" * 30 + "11", "EOS inside of a string in Huffman's code"),
        ("00011" + "1" * 35, "EOS inside of a string in Huffman's code"),
    ],
)
def test_wrong_end_is_refused(bits: str, reason: str) -> None:
    digits = bits.replace(" ", "")
    data = int(digits, 2).to_bytes(len(digits) // 8, "big")
    for _ in range(2):  # nothing of it is remembered
        with pytest.raises(ConnectionFault) as caught:
            huffman.decode(data)
        assert caught.value.code is ErrorCode.COMPRESSION_ERROR
        assert caught.value.reason.endswith(reason)


def test_short_strings_are_remembered_and_only_so_many() -> None:
    short = huffman.encode(b"text/html")
    assert huffman.known_text(short) is None
    assert huffman.decode(short) is huffman.decode(short)
    assert huffman.known_text(short) == b"text/html"
    secret, long = huffman.encode(b"secret"), huffman.encode(b"l" * 300)
    assert huffman.decode(secret, False) == b"secret"
    assert huffman.decode(long) == b"l" * 300
    assert huffman.known_text(secret) is huffman.known_text(long) is None
    for number in range(2000):
        huffman.decode(huffman.encode(b"%d" % number))
        assert len(huffman._memo) <= huffman.MEMO_ENTRIES


def test_states_are_bounded_whatever_is_decoded() -> None:
    for first in range(256):
        for second in range(256):
            for data in (bytes((first, second, 0)), b"\xff\xff\xff" + bytes((first, second))):
                with contextlib.suppress(ConnectionFault):
                    huffman.decode(data, False)
    assert len(huffman._states) <= 256


def test_long_string_costs_no_more_than_its_bytes() -> None:
    text = bytes(range(32, 127)) * 20_000
    assert huffman.decode(huffman.encode(text)) == text
