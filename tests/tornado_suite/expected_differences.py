"""Tornado's own tests that cannot pass on this package's server, each with its reason.

Everything not listed here must pass. A test listed here that passes is an error,
so the list stays true; plugin.py applies it. Data only: no test may be listed
because it is slow or because it fails now and then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

__all__ = ["DIFFERENCES", "Difference", "Kind"]


class Kind(enum.Enum):
    """Why a test differs."""

    STRICTER_PARSER = "the reader refuses what Tornado's parser accepts"
    ANNOUNCED_CLOSE = "the response says that the connection closes"
    PRIVATE_ATTRIBUTE = "the test uses a private attribute of Tornado's own server classes"
    OLDER_TORNADO = "the test is of a Tornado whose successor behaves as this server does"
    LOOP = "the test fails on Tornado's own server as well with this event loop"
    ERROR_RESPONSE = "only the fields of an error response differ: compared with ours instead"
    INVALID_RESPONSE = "the test wants the server to send what no server may send"
    LOG_WORDING = "only a log message differs: the test runs with that one check relaxed"


@dataclass(frozen=True)
class Difference:
    """One test, named "module.Class.test" below tornado.test.

    `loops`: where it applies. `since`: the first Tornado release
    that has the test; `until`: the first that has it no longer, or changed it.
    `source`: the rule behind it, such as an RFC section.
    `wording`, for LOG_WORDING only: the regular expressions of the test's
    ExpectLog that do not match, and those that must match in their place.
    `responses`, for ERROR_RESPONSE only: what the test compares with, and
    what it must compare with in its place.
    """

    test: str
    kind: Kind
    reason: str
    source: str = ""
    loops: tuple[str, ...] = ("asyncio", "uvloop")
    since: tuple[int, int, int] = (6, 5, 7)
    until: tuple[int, int, int] = (7, 0, 0)
    wording: dict[str, str] = field(default_factory=dict)
    responses: dict[bytes, bytes] = field(default_factory=dict)


_BARE_LF = ".*Bare LF as line terminator"
_SENDS_BARE_LF = (
    "it sends its request with bare LF, which is refused before what the test is about; the "
    "answer is 400 and the end of the connection all the same"
)

_SIGCHLD = (
    "tornado.process.Subprocess wants a SIGCHLD handler; uvloop keeps SIGCHLD for itself: "
    "RuntimeError from add_signal_handler"
)

DIFFERENCES: list[Difference] = [
    Difference(
        "httpserver_test.HTTPConnectionTest.test_newlines",
        Kind.STRICTER_PARSER,
        "it sends a request with bare LF; a line that another server ends elsewhere can hide a "
        "second request",
        source='RFC 9112 section 2.2: "a recipient MAY recognize a single LF"',
    ),
    Difference(
        "httpserver_test.KeepAliveTest.test_keepalive_chunked",
        Kind.STRICTER_PARSER,
        "it sends Transfer-Encoding in an HTTP/1.0 request and wants the connection kept alive",
        source='RFC 9112 section 6.1: "MUST treat the message as if the framing is faulty"',
    ),
    Difference(
        "httpserver_test.KeepAliveTest.test_http10",
        Kind.ANNOUNCED_CLOSE,
        "it wants no Connection field in a response to HTTP/1.0 without keep-alive",
        source="RFC 9112 section 9.6: SHOULD send the close option in its final response",
    ),
    Difference(
        "security_corpus_test.SecurityCorpusTest.test_cases",
        Kind.ERROR_RESPONSE,
        "`Transfer-Encoding: gzip, chunked` is a legal framing that nobody here decodes: 501",
        source="RFC 9112 section 6.1: SHOULD respond with 501 to a coding it does not understand",
        since=(6, 6, 0),
        responses={b"HTTP/1.1 400": b"HTTP/1.1 501"},
    ),
    *(
        Difference(
            test,
            Kind.ERROR_RESPONSE,
            "a refused request is answered with its length and with Connection: close",
            source="RFC 9112 section 9.6: the last response before a close SHOULD say so",
            responses={
                b"HTTP/1.1 400 Bad Request\r\n\r\n": (
                    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                )
            },
        )
        for test in (
            "httpserver_test.BodyLimitsTest.test_body_size_override_reset",
            "httpserver_test.UnixSocketTestAbstract.test_unix_socket_bad_request",
            "httpserver_test.UnixSocketTestFile.test_unix_socket_bad_request",
        )
    ),
    Difference(
        "simple_httpclient_test.ChunkedWithContentLengthTest.test_chunked_with_content_length",
        Kind.INVALID_RESPONSE,
        "its handler sets Transfer-Encoding, for its client to refuse; the field is the server's",
        source='RFC 9112 section 6.2: "A sender MUST NOT send a Content-Length" beside it',
    ),
    # -- log wording --
    *(
        Difference(
            f"httpserver_test.HTTPServerRawTest.{test}",
            Kind.LOG_WORDING,
            _SENDS_BARE_LF,
            wording={regex: _BARE_LF},
        )
        for test, regex in {
            "test_chunked_request_body_duplicate_header": (
                ".*Unsupported Transfer-Encoding chunked,chunked"
            ),
            "test_chunked_request_body_transfer_encoding_and_content_length": (
                ".*Message with both Transfer-Encoding and Content-Length"
            ),
            "test_chunked_request_body_unsupported_transfer_encoding": (
                ".*Unsupported Transfer-Encoding gzip, chunked"
            ),
        }.items()
    ),
    Difference(
        "httpserver_test.HTTPServerRawTest.test_content_length_list_whitespace",
        Kind.LOG_WORDING,
        "the parser refuses every list in Content-Length before it compares the members",
        source="RFC 9110 section 8.6: a recipient may refuse such a list",
        since=(6, 6, 0),
        wording={".*Multiple unequal Content-Lengths": ".*Only integer Content-Length is allowed"},
    ),
    Difference(
        "httpserver_test.MaxHeaderSizeTest.test_large_headers",
        Kind.LOG_WORDING,
        "the request is answered with 431, and logged as malformed, instead of cut off",
        wording={"Unsatisfiable read": ".*Malformed HTTP message.*header section too large"},
    ),
    # -- Tornado 6.5 --
    *(
        Difference(
            test,
            Kind.OLDER_TORNADO,
            "it wants every chunk of a request handed over by itself; Tornado 6.6 too joins "
            "chunks that arrive together",
            source="RFC 9112 section 7.1: chunk boundaries mean nothing to the recipient",
            until=(6, 6, 0),
        )
        for test in (
            "web_test.DecoratedStreamingRequestFlowControlTest.test_flow_control_chunked_body",
            "web_test.NativeStreamingRequestFlowControlTest.test_flow_control_chunked_body",
        )
    ),
    # -- not about the server: they fail on Tornado's own with uvloop as well --
    *(
        Difference(f"process_test.SubprocessTest.{test}", Kind.LOOP, _SIGCHLD, loops=("uvloop",))
        for test in (
            "test_sigchild",
            "test_sigchild_future",
            "test_sigchild_signal",
            "test_wait_for_exit_raise",
            "test_wait_for_exit_raise_disabled",
        )
    ),
    Difference(
        "asyncio_test.SelectorThreadLeakTest.test_close_before_thread_manager_starts",
        Kind.LOOP,
        "it needs a loop that stops before it runs the callbacks added meanwhile; uvloop runs them",
        loops=("uvloop",),
        since=(6, 6, 0),
    ),
]
