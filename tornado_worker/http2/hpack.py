"""Field blocks: HPACK decoded and encoded (RFC 7541), with a dynamic table for each direction.

Sans-IO. Knows bytes only: what a field's name or value may be is said elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from tornado_worker.http2 import huffman
from tornado_worker.http2.errors import ConnectionFault, ErrorCode
from tornado_worker.http2.static_table import STATIC_TABLE

__all__ = ["DEFAULT_TABLE_SIZE", "Decoder", "Encoder", "HeaderListTooLarge"]

Field = tuple[bytes, bytes]

# What a table's size is until SETTINGS_HEADER_TABLE_SIZE says otherwise.
DEFAULT_TABLE_SIZE = 4096

# What an entry counts beside its name and value (section 4.1), and a field in a list.
ENTRY_OVERHEAD = 32
STATIC_SIZES = [len(name) + len(value) + ENTRY_OVERHEAD for name, value in STATIC_TABLE]

# Fields whose values are secrets: no proxy may put them into a table (section 7.1.3).
SECRET = (
    b"authentication-info",
    b"authorization",
    b"cookie",
    b"proxy-authentication-info",
    b"proxy-authorization",
    b"set-cookie",
)
# Fields whose values rarely repeat on one connection: in the table they would only push out
# others.
UNINDEXED = (
    b"age",
    b"content-disposition",
    b"content-length",
    b"content-location",
    b"content-range",
    b"etag",
    b"expires",
    b"last-modified",
    b"location",
    b"proxy-authenticate",
    b"refresh",
    b"www-authenticate",
)
# Fields sent of late in this process, by their hashes. Cleared when it is full.
MEMO_SIGHTINGS = 1024
# An entry above this would push out too much (bytes).
LARGEST_ENTRY = 1024

# A decoder's memo of whole blocks, which an idle connection keeps.
MEMO_BLOCKS = 8
MEMO_LONGEST_BLOCK = 512
MEMO_MOST_FIELDS = 48


class HeaderListTooLarge(Exception):
    """A field list above the limit. Its block was decoded: an error of its stream only."""


class Decoder:
    """Decodes the blocks of one peer, which must come in their order.

    `max_table_size` is what SETTINGS_HEADER_TABLE_SIZE tells the peer. The table begins with
    the 4096 bytes of the RFC, which a peer may use that has not read our settings yet.
    """

    __slots__ = (
        "_entries",
        "_max_list_size",
        "_max_table_size",
        "_memo",
        "_size",
        "_sizes",
        "_table_size",
    )

    def __init__(
        self, max_table_size: int = DEFAULT_TABLE_SIZE, max_list_size: int = 65_536
    ) -> None:
        self._max_table_size = max_table_size
        self._max_list_size = max_list_size
        self._table_size = DEFAULT_TABLE_SIZE
        # The table, oldest entry first, and what each entry counts; the sum of that.
        self._entries: list[Field] = []
        self._sizes: list[int] = []
        self._size = 0
        # Blocks that left the table as it is, while it stays so.
        self._memo: dict[bytes, tuple[Field, ...]] = {}

    def decode(self, block: bytes) -> tuple[Field, ...]:
        """Return the fields in their order: of a repeated block, the same object.

        Raises HeaderListTooLarge where names, values and 32 bytes for each are above the
        limit (RFC 9113 section 6.5.2), and ConnectionFault for what cannot be decoded, after
        which the decoder is of no use.
        """
        known = self._memo.get(block)
        if known is not None:
            return known
        try:
            return self._decode(block)
        except IndexError:
            # Only reading past the block's end raises it: asking each time would cost more.
            raise _fault("field block ends within a field") from None

    def forget_blocks(self) -> None:
        """Forget the blocks that were decoded, not the table."""
        self._memo.clear()

    def _decode(self, block: bytes) -> tuple[Field, ...]:
        entries, sizes = self._entries, self._sizes
        known_text, decode_text = huffman.known_text, huffman.decode
        fields: list[Field] = []
        left = self._max_list_size
        table_changed = False
        at = updates = 0
        end = len(block)
        while at < end:
            first = block[at]
            at += 1
            if first >= 0x80:  # an indexed field
                index = first & 0x7F
                if index == 0x7F:
                    index, at = _decode_integer(block, at, 0x7F)
                if 0 < index <= 61:
                    field, size = STATIC_TABLE[index - 1], STATIC_SIZES[index - 1]
                elif 61 < index <= 61 + len(entries):
                    field, size = entries[61 - index], sizes[61 - index]
                else:
                    raise _wrong_index(index, len(entries))
            elif 0x20 <= first < 0x40:
                size = first & 0x1F
                if size == 0x1F:
                    size, at = _decode_integer(block, at, 0x1F)
                updates += 1
                self._update_size(size, updates, left == self._max_list_size)
                table_changed = True
                continue
            else:  # a literal; indexed from 0x40 on, never to be indexed from 0x10 on
                mask = 0x3F if first >= 0x40 else 0x0F
                index = first & mask
                if index == mask:
                    index, at = _decode_integer(block, at, mask)
                if not index:
                    name, at = _decode_string(block, at)
                elif index <= 61:
                    name = STATIC_TABLE[index - 1][0]
                elif index <= 61 + len(entries):
                    name = entries[61 - index][0]
                else:
                    raise _wrong_index(index, len(entries))
                # _decode_string, written out: a browser's first head is nothing
                # but this, and takes a fifth less time so.
                length = block[at]
                at += 1
                is_coded = length >= 0x80
                length &= 0x7F
                if length == 0x7F:
                    length, at = _decode_integer(block, at, 0x7F)
                if at + length > end:
                    raise _string_too_long(length, end - at)
                value = block[at : at + length]
                at += length
                if is_coded:
                    value = known_text(value) or decode_text(value, not 0x10 <= first < 0x20)
                field = name, value
                size = len(name) + len(value) + ENTRY_OVERHEAD
                if first >= 0x40:
                    table_changed = True
                    if self._size + size > self._table_size:
                        self._evict(self._table_size - size)
                    if size <= self._table_size:
                        entries.append(field)
                        sizes.append(size)
                        self._size += size
            left -= size
            if left >= 0:
                fields.append(field)
            else:
                fields.clear()
        if table_changed:
            self._memo.clear()
        if left < 0:
            raise HeaderListTooLarge(
                f"field list too large: expected at most {self._max_list_size} bytes; "
                f"got {self._max_list_size - left}"
            )
        decoded = tuple(fields)
        if not table_changed and end <= MEMO_LONGEST_BLOCK and len(decoded) <= MEMO_MOST_FIELDS:
            if len(self._memo) >= MEMO_BLOCKS:
                self._memo.clear()
            self._memo[block] = decoded
        return decoded

    def _evict(self, bound: int) -> None:
        """Drop the oldest entries until the others fit.

        An entry larger than the table empties it, and is no error (section 4.4).
        """
        dropped = 0
        while self._size > bound and dropped < len(self._sizes):
            self._size -= self._sizes[dropped]
            dropped += 1
        if dropped:
            del self._entries[:dropped], self._sizes[:dropped]

    def _update_size(self, size: int, updates: int, is_first: bool) -> None:
        """Sections 4.2 and 6.3."""
        if not is_first:
            raise _fault("table size update behind a field")
        if updates > 2:
            raise _fault("too many table size updates: expected at most 2 in a block")
        if size > self._max_table_size:
            raise _fault(
                f"table size too large: expected at most {self._max_table_size}; got {size}"
            )
        self._table_size = size
        self._evict(size)


def _fault(reason: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.COMPRESSION_ERROR, reason)


def _wrong_index(index: int, entries: int) -> ConnectionFault:
    return _fault(f"wrong index of a field: expected 1 to {61 + entries}; got {index}")


def _string_too_long(length: int, left: int) -> ConnectionFault:
    return _fault(f"string too long: expected at most the {left} bytes left; got {length}")


def _decode_integer(block: bytes, at: int, value: int) -> tuple[int, int]:
    """Return an integer whose prefix was full, and where it ends. Section 5.1: bounded."""
    for shift in range(0, 29, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _fault("integer too large: expected at most five bytes behind its prefix")


def _decode_string(block: bytes, at: int) -> tuple[bytes, int]:
    first = block[at]
    at += 1
    length = first & 0x7F
    if length == 0x7F:
        length, at = _decode_integer(block, at, 0x7F)
    end = at + length
    if end > len(block):
        raise _string_too_long(length, len(block) - at)
    text = block[at:end]
    return (huffman.decode(text) if first & 0x80 else text), end


class Encoder:
    """Encodes blocks for one peer, which must be sent in their order.

    A field is put into the table when this process has sent it before, and not too long ago:
    so each `date` of a busy worker is, and no request id. Of the others only SECRET and
    UNINDEXED are known by name. `max_table_size` is the most this side wants to keep.
    """

    __slots__ = (
        "_inserted",
        "_known",
        "_max_table_size",
        "_size",
        "_smallest_size",
        "_table",
        "_table_size",
    )

    def __init__(self, max_table_size: int = DEFAULT_TABLE_SIZE) -> None:
        self._max_table_size = max_table_size
        self._table_size = DEFAULT_TABLE_SIZE
        # The least that `_table_size` was since the last block; None if it did not change.
        self._smallest_size: int | None = None
        # The table, oldest entry first: which insertion each entry was. Their sizes' sum.
        self._table: dict[Field, int] = {}
        self._inserted = 0
        self._size = 0
        # Indexed fields as they are written while the table stays as it is.
        self._known: dict[Field, bytes] = {}
        self.set_max_table_size(max_table_size)

    def set_max_table_size(self, size: int) -> None:
        """Follow the peer's SETTINGS_HEADER_TABLE_SIZE; the next block says so in front."""
        size = min(size, self._max_table_size)
        if size == self._table_size:
            return
        smallest = self._smallest_size
        self._smallest_size = size if smallest is None else min(size, smallest)
        self._table_size = size
        self._evict(size)

    def encode(self, fields: Iterable[Field]) -> bytes:
        """Return the block of these fields; names are in lower case."""
        parts = [] if self._smallest_size is None else [self._encode_size_updates()]
        add = parts.append
        known = self._known
        for field in fields:
            part = known.get(field)
            if part is None:
                name, value = field
                prefix = _UNINDEXED_NAMES.get(name)
                if prefix is None:
                    part = self._encode_field(field)
                else:
                    part = prefix + _raw_string(value)
            add(part)
        return b"".join(parts)

    def _encode_size_updates(self) -> bytes:
        """Section 4.2: the smallest size since the last block, then the present one."""
        smallest, self._smallest_size = self._smallest_size, None
        assert smallest is not None
        update = _encode_integer(self._table_size, 5, 0x20)
        if smallest < self._table_size:
            return _encode_integer(smallest, 5, 0x20) + update
        return update

    def _encode_field(self, field: Field) -> bytes:
        static = _STATIC_INDEXES.get(field)
        if static is not None:
            part = self._known[field] = _encode_integer(static, 7, 0x80)
            return part
        insertion = self._table.get(field)
        if insertion is not None:
            part = _encode_integer(62 + self._inserted - insertion, 7, 0x80)
            self._known[field] = part
            return part
        name, value = field
        size = len(name) + len(value) + ENTRY_OVERHEAD
        if size > min(self._table_size, LARGEST_ENTRY) or _is_first_sight(field):
            return _encode_name(name, 4, 0) + _raw_string(value)
        self._evict(self._table_size - size)
        self._inserted += 1
        self._table[field] = self._inserted
        self._size += size
        self._known.clear()  # each index is one more now
        return _encode_name(name, 6, 0x40) + _short_string(value)

    def _evict(self, bound: int) -> None:
        """Drop the oldest entries until the others fit."""
        while self._size > bound and self._table:
            name, value = oldest = next(iter(self._table))
            del self._table[oldest]
            self._size -= len(name) + len(value) + ENTRY_OVERHEAD
            self._known.clear()


_sightings: set[int] = set()


def _is_first_sight(field: Field) -> bool:
    """Say whether no encoder had this field of late."""
    key = hash(field)
    if key in _sightings:
        return False
    if len(_sightings) >= MEMO_SIGHTINGS:
        _sightings.clear()
    _sightings.add(key)
    return True


def _encode_integer(value: int, prefix_bits: int, pattern: int) -> bytes:
    """Return an integer (section 5.1) behind the bits of `pattern`."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((pattern | value,))
    encoded = bytearray((pattern | limit,))
    value -= limit
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_LENGTHS = [bytes((length,)) for length in range(0x7F)]


def _raw_string(text: bytes) -> bytes:
    """Return a string literal without Huffman's code, which would cost more than it saves."""
    length = len(text)
    return (_LENGTHS[length] if length < 0x7F else _encode_integer(length, 7, 0)) + text


@functools.lru_cache(512)
def _short_string(text: bytes) -> bytes:
    """Return a string literal in whichever form is shorter."""
    if huffman.encoded_size(text) >= len(text):
        return _raw_string(text)
    encoded = huffman.encode(text)
    return _encode_integer(len(encoded), 7, 0x80) + encoded


@functools.lru_cache(512)
def _encode_name(name: bytes, prefix_bits: int, pattern: int) -> bytes:
    """Return a literal's beginning, up to its value."""
    index = _STATIC_NAMES.get(name)
    if index is None:
        return bytes((pattern,)) + _short_string(name)
    return _encode_integer(index, prefix_bits, pattern)


_STATIC_INDEXES = {field: index for index, field in enumerate(STATIC_TABLE, 1)}
_STATIC_NAMES: dict[bytes, int] = {}
for _index, (_name, _) in enumerate(STATIC_TABLE, 1):
    _STATIC_NAMES.setdefault(_name, _index)
_UNINDEXED_NAMES = {name: _encode_name(name, 4, 0) for name in UNINDEXED}
_UNINDEXED_NAMES |= {name: _encode_name(name, 4, 0x10) for name in SECRET}
