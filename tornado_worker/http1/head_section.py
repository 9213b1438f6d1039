"""The head of a message: its request line and its fields, from bytes to values, or a refusal.

The common head is read in a few passes in C; only for one that these do not take does a slow
path look line by line, either to find what is wrong and say so, or to grant what a setting
permits. Knows the grammar of RFC 9112 and nothing of connections, or of what fields mean.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NoReturn

from tornado_worker.connection.grammar import CONVENTIONAL_METHOD, TOKEN
from tornado_worker.connection.message_error import MessageError

__all__ = [
    "CONTROL",
    "FORBIDDEN_TRAILERS",
    "READER_SETTINGS",
    "Head",
    "MessageError",
    "ReaderOptions",
    "Rules",
    "read_field",
    "refuse_control",
    "shown",
]

# Gunicorn's limits where its settings say unlimited (0): bytes and a count.
_UNLIMITED_LINE = 1024 * 1024
_FIELDS_MAX = 32768

# RFC 9112 section 3.2: a target is printable ASCII.
_REQUEST_LINE = rb"(%b) ([!-~]++) HTTP/(%b)\r\n"
_TOKEN = re.compile(TOKEN + rb"++")
_METHOD = re.compile(CONVENTIONAL_METHOD)
#: Bytes that no line has (RFC 9110 section 5.5); a line break is made of two of them.
CONTROL = re.compile(rb"[\0-\x08\n-\x1f\x7f]")
# Changes every such byte, and no other: 0.2 us for a line of 70 bytes, a search 0.6.
_MARKED = bytes(byte ^ 1 if CONTROL.match(bytes([byte])) else byte for byte in range(256))
# Clients choose names and methods, so caches of them must not grow without bound.
_KNOWN_MAX = 1000
_KNOWN_NAME_MAX = 64
_KNOWN_LINE_MAX = 256
# Fields whose values many clients share, and none of which is a secret.
_COMMON_NAMES = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"connection",
        b"content-type",
        b"dnt",
        b"host",
        b"pragma",
        b"priority",
        b"sec-ch-ua",
        b"sec-ch-ua-mobile",
        b"sec-ch-ua-platform",
        b"sec-fetch-dest",
        b"sec-fetch-mode",
        b"sec-fetch-site",
        b"sec-fetch-user",
        b"sec-gpc",
        b"te",
        b"upgrade-insecure-requests",
        b"user-agent",
        b"x-forwarded-proto",
        b"x-requested-with",
    )
)

#: RFC 9110 section 6.5.1: what must not come behind the body that it is about.
FORBIDDEN_TRAILERS = frozenset(
    (b"authorization", b"content-length", b"host", b"te", b"trailer", b"transfer-encoding")
)


@dataclasses.dataclass(frozen=True)
class ReaderOptions:
    """The rules that a reader enforces: Gunicorn's settings of the same names (bytes, counts).

    A new option needs a field here, and nothing else to come from Gunicorn's configuration or
    from an argument of HTTPServer.

    0 means as much as Gunicorn's parsers take: 1 MB for a line, 32768 fields. `max_header_size`
    bounds the head as a whole, and the trailers with it.
    """

    http_parser: str = "auto"
    limit_request_line: int = 65536
    limit_request_fields: int = 100
    limit_request_field_size: int = 65536
    permit_unconventional_http_method: bool = False
    permit_unconventional_http_version: bool = False
    permit_obsolete_folding: bool = False
    strip_header_spaces: bool = False
    casefold_http_method: bool = False
    max_header_size: int = 1 << 62
    #: Names (lower case) of fields that `Head.special` tells of.
    special_names: frozenset[bytes] = frozenset()

    @property
    def line_max(self) -> int:
        """Bytes of a request line."""
        return self.limit_request_line or _UNLIMITED_LINE

    @property
    def field_max(self) -> int:
        """Bytes of a field's line, with the line break, as Gunicorn counts."""
        return self.limit_request_field_size or _UNLIMITED_LINE

    @property
    def fields_max(self) -> int:
        """Number of fields."""
        return min(self.limit_request_fields or _FIELDS_MAX, _FIELDS_MAX)

    @property
    def limits_allow(self) -> int:
        """Bytes of a head that keeps all other limits, as Gunicorn computes it."""
        return self.line_max + self.fields_max * (self.field_max + 2) + 4


#: Names of the options that are Gunicorn's settings, and arguments of HTTPServer.
READER_SETTINGS = tuple(
    field.name
    for field in dataclasses.fields(ReaderOptions)
    if field.name not in ("max_header_size", "special_names")
)


class Head:
    """A request line and fields, whose values are bytes as received, without the space around."""

    method: str
    target: str
    #: 1.1 for all later versions too, 1.0 for all earlier ones.
    version: tuple[int, int]
    #: By name in lower case, in order; the values of a repeated field joined by commas.
    fields: dict[bytes, bytes]
    #: All of them one by one, if any is repeated.
    repeated: list[tuple[bytes, bytes]] | None = None
    #: Names that are in `special_names` or have an underscore; each once, in order.
    special: Sequence[bytes] = ()


class _Methods(dict[bytes, str]):
    def __missing__(self, method: bytes) -> str:
        text = method.decode("ascii")
        if len(self) < _KNOWN_MAX and len(method) <= _KNOWN_NAME_MAX:
            self[method] = text
        return text


class _Lines(dict[bytes, tuple[bytes, bytes]]):
    """Name, in lower case, and value of fields by their lines, some of which it remembers.

    Most lines of a request come again with the next one, and from other clients. To look
    16 lines up takes 2 us, to check them and take them apart 8. Lines of one client's own are
    not remembered, so that the time a head takes tells nobody of another's.
    """

    def __init__(self) -> None:
        #: Names that were found right and are nothing special. Only their lines are remembered.
        self.plain: set[bytes] = set()
        #: Set when a line was asked for that is wrong, or whose name is not among `plain`.
        self.met_unusual = False

    def __missing__(self, line: bytes) -> tuple[bytes, bytes]:
        name, colon, value = line.partition(b":")
        if not colon or line.translate(_MARKED) != line:
            self.met_unusual = True
            return b"", b""  # a name that is never right
        name = name.lower()
        field = name, value.strip()
        if name not in self.plain:
            self.met_unusual = True
        elif name in _COMMON_NAMES and len(line) <= _KNOWN_LINE_MAX:
            if len(self) >= _KNOWN_MAX:
                self.clear()
            self[line] = field
        return field


class Rules:
    """`ReaderOptions`, made ready. One for each server; for one thread."""

    def __init__(self, options: ReaderOptions) -> None:
        if options.http_parser not in ("auto", "fast", "python"):
            raise ValueError(
                f"http_parser: expected auto, fast or python; got {options.http_parser!r}"
            )
        self.line_max = options.line_max
        self.field_max = options.field_max
        self._field_line_max = self.field_max - 2
        self.fields_max = options.fields_max
        self.head_max = options.max_header_size
        #: Bytes of a read that is taken for one head alone, without a look for its end.
        self.alone_max = min(8192, self.head_max - 4)
        self.any_method = options.permit_unconventional_http_method
        self._any_version = options.permit_unconventional_http_version
        self.upper_method = options.casefold_http_method
        self._folding = options.permit_obsolete_folding
        self._spaces = options.strip_header_spaces
        self._match_request_line = re.compile(
            _REQUEST_LINE
            % (
                TOKEN + rb"++" if self.any_method else CONVENTIONAL_METHOD,
                rb"[0-9]\.[0-9]" if self._any_version else rb"1\.[0-9]",
            )
        ).match
        self.special_names = options.special_names
        self._methods = _Methods()
        self._lines = _Lines()
        self._field = self._lines.__getitem__
        # Names that were found right, and those among them that are nothing special.
        self._known: set[bytes] = set()
        self._plain = self._lines.plain

    def read_head(self, data: bytes, start: int, end: int, checked: bool) -> Head | None:
        """Return the head between `start` and the CRLF at `end` that its last line ends with.

        Behind it is an empty line. `checked` says that no other line is empty, that none has a
        control character, and that all limits are kept; without it None means that this must
        be looked at first. Raises MessageError.
        """
        match = self._match_request_line(data, start, end + 2)
        if match is None:
            if not checked:
                return None
            self._refuse_request_line(data[start : data.index(b"\r\n", start)])
        first = match.end()
        if first - start - 2 > self.line_max and not checked:
            return None
        head = Head()
        if first > end:
            head.fields = {}
        else:
            lines = data[first:end].split(b"\r\n")
            if not checked and (
                len(lines) > self.fields_max
                or (
                    end - first > self._field_line_max
                    and max(map(len, lines)) > self._field_line_max
                )
            ):
                return None
            remembered = self._lines
            remembered.met_unusual = False
            fields = dict(map(self._field, lines))
            if len(fields) == len(lines) and not remembered.met_unusual:
                head.fields = fields
            elif len(fields) == len(lines) and self._known.issuperset(fields):
                head.fields = fields
                head.special = [name for name in fields if name not in self._plain]
            elif not checked and (b"" in lines or any(CONTROL.search(line) for line in lines)):
                return None
            else:
                self._read_unusual_fields(lines, head)
        method, target, version = match.groups()
        if self.upper_method:
            method = method.upper()
        head.method = self._methods[method]
        head.target = target.decode("ascii")
        # RFC 9110 section 2.5: a later minor version is served as the one we know. And
        # what permits other versions permits no other framing.
        head.version = (1, 1) if version >= b"1.1" else (1, 0)
        return head

    def check_line(self, size: int, is_first: bool) -> None:
        """Check the length of a line so far (bytes, without its break). Raises MessageError."""
        if is_first:
            if size > self.line_max:
                raise MessageError(414, "request line is too large")
        elif size + 2 > self.field_max:
            raise MessageError(431, "request header field is too large")

    def begins_field(self, data: bytearray, start: int, end: int) -> bool:
        """Tell whether a line begins a field; else it goes on with the one before.

        Raises MessageError where that is not permitted.
        """
        if data[start] not in b" \t":
            return True
        if not self._folding:
            read_field(bytes(data[start:end]))  # says what is wrong
        return False

    def check_count(self, count: int) -> None:
        """Check the number of fields so far. Raises MessageError."""
        if count > self.fields_max:
            raise MessageError(431, "too many header fields")

    def check_size(self, size: int) -> None:
        """Check the size of the head so far (bytes). Raises MessageError."""
        if size > self.head_max:
            raise MessageError(431, "header section too large")

    def _read_unusual_fields(self, lines: list[bytes], head: Head) -> None:
        """Read fields some of which are repeated, special, new, folded, or wrong."""
        pairs: list[tuple[bytes, bytes]] = []
        sizes: list[int] = []
        for line in lines:
            if line[:1] in (b" ", b"\t") and pairs and self._folding:
                # RFC 9112 section 5.2: a folded line, as a space and the rest.
                name, value = pairs[-1]
                pairs[-1] = (name, value + b" " + line.strip())
                sizes[-1] += len(line) + 2
                self.check_line(sizes[-1] - 2, is_first=False)
                continue
            name, colon, value = line.partition(b":")
            if self._spaces:
                name = name.rstrip(b" \t")
            if not colon or not _TOKEN.fullmatch(name):
                read_field(line)  # says what is wrong
                # Should it find nothing wrong, the head is refused all the same.
                raise MessageError(  # pragma: no cover
                    400, f"invalid header name {shown(name)}"
                )
            pairs.append((name.lower(), value.strip()))
            sizes.append(len(line) + 2)
        fields: dict[bytes, bytes] = {}
        for name, value in pairs:
            fields[name] = fields[name] + b"," + value if name in fields else value
        head.fields = fields
        if len(fields) != len(pairs):
            head.repeated = pairs
        if len(self._known) + len(fields) > _KNOWN_MAX:
            # A client that sends names of all kinds must not keep others from being known.
            self._known.clear()
            self._plain.clear()
        for name in fields:
            special = name in self.special_names or b"_" in name
            if special:
                head.special = (*head.special, name)
            if len(name) <= _KNOWN_NAME_MAX and len(self._known) < _KNOWN_MAX:
                self._known.add(name)
                if not special:
                    self._plain.add(name)

    def _refuse_request_line(self, line: bytes) -> NoReturn:
        parts = line.split(b" ", 2)
        wrong = shown(line)
        if len(parts) == 3:
            method, target, version = parts
            if not (_TOKEN if self.any_method else _METHOD).fullmatch(method):
                wrong = f"method {shown(method)}"
            elif not target or not target.isascii():
                wrong = f"target {shown(target)}"
            else:
                wrong = f"version {shown(version)}"
        raise MessageError(400, f"Malformed HTTP request line: {wrong}")


def read_field(line: bytes) -> tuple[bytes, bytes]:
    """Return name, in lower case, and value of a field's line. Raises MessageError."""
    if CONTROL.search(line):
        raise MessageError(400, f"invalid header field: {_control_words(line)} {shown(line)}")
    if line[:1] in (b" ", b"\t"):
        raise MessageError(400, f"folded header field {shown(line)}")
    name, colon, value = line.partition(b":")
    if not colon:
        raise MessageError(400, f"no colon in header line {shown(line)}")
    # RFC 9112 section 5.1: nothing between the name and the colon.
    if not _TOKEN.fullmatch(name):
        raise MessageError(400, f"invalid header name {shown(name)}")
    return name.lower(), value.strip()


def refuse_control(line: bytes, is_first: bool) -> NoReturn:
    """Refuse the beginning of a line, which ends with a control character."""
    kind = "Malformed HTTP request line" if is_first else "invalid header field"
    raise MessageError(400, f"{kind}: {_control_words(line)} {shown(line)}")


def _control_words(line: bytes) -> str:
    match = CONTROL.search(line)
    assert match is not None
    byte = match[0]
    if byte == b"\n":
        # RFC 9112 section 2.2 lets a recipient take it; another one may not, and see other lines.
        return "Bare LF as line terminator"
    return "bare CR" if byte == b"\r" else f"control character {byte!r}"


def shown(data: bytes) -> str:
    """Return the beginning of `data` for a message."""
    return repr(data[:100])[1:]
