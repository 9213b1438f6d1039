"""Huffman's code of HPACK (RFC 7541 section 5.2): strings encoded and decoded.

Sans-IO. The code is canonical, so that the lengths of appendix B say all of it. Knows
nothing but the errors.
"""

from __future__ import annotations

from tornado_worker.http2.errors import ConnectionFault, ErrorCode

__all__ = ["decode", "encode", "encoded_size", "known_text"]

# Bits of the code of each byte, and of EOS (RFC 7541 appendix B).
# fmt: off
LENGTHS = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
)
# fmt: on
EOS = 256


def _canonical_codes() -> dict[str, int]:
    """Return the symbols by their codes, as strings of bits: shorter first, then smaller."""
    codes: dict[str, int] = {}
    code = last_length = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(LENGTHS)):
        code <<= length - last_length
        codes[f"{code:0{length}b}"] = symbol
        code += 1
        last_length = length
    return codes


_SYMBOLS = _canonical_codes()
_BITS = [bits for bits, _ in sorted(_SYMBOLS.items(), key=lambda item: item[1])]
_bits_of = _BITS.__getitem__
_length_of = LENGTHS.__getitem__


def encoded_size(text: bytes) -> int:
    """Return how many bytes `encode` would return."""
    return (sum(map(_length_of, text)) + 7) // 8


def encode(text: bytes) -> bytes:
    bits = "".join(map(_bits_of, text))
    bits += "1" * (-len(bits) % 8)  # the beginning of EOS, section 5.2
    return int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""


class _State(dict[int, tuple[bytes, "_State"]]):
    """Where a byte ended within a code: what the next byte gives, and where that ends.

    There are 256 states. They are filled as they are met: decoding takes one step for a byte
    (64 ns; bit by bit it is 14 times as much), and what headers use is a small part of them.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def __missing__(self, byte: int) -> tuple[bytes, _State]:
        decoded = bytearray()
        bits = self.prefix
        for bit in f"{byte:08b}":
            bits += bit
            symbol = _SYMBOLS.get(bits)
            if symbol is None:
                continue
            if symbol == EOS:
                raise ConnectionFault(
                    ErrorCode.COMPRESSION_ERROR, "EOS inside of a string in Huffman's code"
                )
            decoded.append(symbol)
            bits = ""
        state = _states.get(bits)
        if state is None:
            state = _states[bits] = _State(bits)
        step = self[byte] = bytes(decoded), state
        return step


_START = _State("")
_states = {"": _START}

# Of short strings that were decoded before: most of what clients send repeats, on other
# connections as well. Cleared when it is full.
_memo: dict[bytes, bytes] = {}
MEMO_ENTRIES = 512
MEMO_LONGEST = 160
# What `decode` would return if it is remembered, or None.
known_text = _memo.get


def decode(data: bytes, keep: bool = True) -> bytes:
    """Return the text; raise ConnectionFault for EOS or a wrong end. Remember it if `keep`."""
    text = _memo.get(data)
    if text is not None:
        return text
    state = _START
    pieces: list[bytes] = []
    add = pieces.append
    for byte in data:
        piece, state = state[byte]
        add(piece)
    # At most seven bits, all of them 1.
    if len(state.prefix) > 7 or "0" in state.prefix:
        raise ConnectionFault(
            ErrorCode.COMPRESSION_ERROR,
            "wrong padding of a string in Huffman's code: expected up to seven bits of 1; "
            f"got {state.prefix}",
        )
    text = b"".join(pieces)
    if keep and len(data) <= MEMO_LONGEST:
        if len(_memo) >= MEMO_ENTRIES:
            _memo.clear()
        _memo[data] = text
    return text
