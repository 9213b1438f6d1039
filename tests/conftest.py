"""What every test shares: our server behind Tornado's name, loops, ports, a certificate.

Makes pytest-tornado's fixtures build `tornado_worker.HTTPServer`, on asyncio and
on uvloop, and fails a test that logs a warning nobody expected. It may touch the
state of this process only; real Gunicorns are started by helpers/gunicorn_process.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.testing import ExpectLog

# Fixtures, for all test modules.
from helpers.gunicorn_process import gunicorn
from helpers.loops import NEW_EVENT_LOOP
from helpers.server_thread import loop_name, serve
from helpers.stream_client import PROTOCOL_OPTIONS
from helpers.tls_files import TLSFiles
from helpers.wsgi_server import COMBINATIONS, HTTP2_COMBINATION

__all__ = [
    "free_port",
    "gunicorn",
    "io_loop",
    "loop_name",
    "protocol_options",
    "serve",
    "ssl_options",
    "tls",
]

# pytest-tornado builds tornado.httpserver.HTTPServer; this makes it ours, and
# runs what Tornado documents as the way to choose an implementation.
HTTPServer.configure("tornado_worker.HTTPServer")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "expect_log(logger, regex, level=None, required=True): run the test inside "
        "tornado.testing.ExpectLog with these arguments; may be repeated",
    )
    config.addinivalue_line(
        "markers",
        "both_protocols: run the test, which uses `serve` or `serve_wsgi`, over HTTP/2 as well",
    )


# -- loops ---------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses `io_loop`, openly or through gen_test, on every loop there is."""
    if (
        metafunc.definition.get_closest_marker("gen_test")
        and "io_loop" not in metafunc.fixturenames
    ):
        metafunc.fixturenames.append("io_loop")
    if "io_loop" in metafunc.fixturenames:
        metafunc.parametrize("io_loop", list(NEW_EVENT_LOOP), indirect=True)
    both = metafunc.definition.get_closest_marker("both_protocols") is not None
    if "serve_wsgi" in metafunc.fixturenames:
        combinations = [*COMBINATIONS, HTTP2_COMBINATION] if both else COMBINATIONS
        metafunc.parametrize("serve_wsgi", combinations, indirect=True)
    elif both:
        metafunc.parametrize("protocol_options", list(PROTOCOL_OPTIONS), indirect=True)


@pytest.fixture
def protocol_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of a server thread that make its connections speak one protocol."""
    return PROTOCOL_OPTIONS[getattr(request, "param", "h1")]


@pytest.fixture
def io_loop(request: pytest.FixtureRequest) -> Iterator[IOLoop]:
    """A new IOLoop, current until the end of the test; asyncio or uvloop beneath.

    Replaces pytest-tornado's, which calls IOLoop.make_current and clear_current:
    both warn of their removal in Tornado 7.
    """
    asyncio_loop = NEW_EVENT_LOOP[request.param]()
    asyncio.set_event_loop(asyncio_loop)
    loop = IOLoop(asyncio_loop=asyncio_loop, make_current=False)
    try:
        yield loop
        asyncio_loop.run_until_complete(cancel_tasks())
        asyncio_loop.run_until_complete(asyncio_loop.shutdown_asyncgens())
        asyncio_loop.run_until_complete(asyncio_loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close(all_fds=True)


async def cancel_tasks() -> None:
    """End what a test left running, as asyncio.run does, before its loop goes."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# -- logs ----------------------------------------------------------------------


class UnexpectedRecords(logging.Handler):
    """Keep the warnings and errors that pass every filter.

    ExpectLog filters at the logger, so what it expects never comes here.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        # The access log calls every answer from 400 on a warning.
        if record.name != "tornado.access":
            self.records.append(record)


@pytest.fixture(autouse=True)
def unexpected_log_output_fails(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test when the server or the loop logs a warning that was not expected.

    Expect one with `tornado.testing.ExpectLog` or `@pytest.mark.expect_log(...)`.
    """
    handler = UnexpectedRecords()
    with contextlib.ExitStack() as stack:
        for name in ("tornado", "tornado_worker", "asyncio"):
            logger = logging.getLogger(name)
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
        for mark in request.node.iter_markers("expect_log"):
            stack.enter_context(ExpectLog(*mark.args, **mark.kwargs))
        yield
    if handler.records:
        formatter = logging.Formatter("%(levelname)s:%(name)s: %(message)s")
        pytest.fail(
            "unexpected log output:\n" + "\n".join(map(formatter.format, handler.records)),
            pytrace=False,
        )


# -- addresses -----------------------------------------------------------------


@pytest.fixture
def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listened on a moment ago.

    Only for programs that must be told their port; everything else binds
    port 0 and is asked, which cannot collide.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# -- TLS -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLSFiles:
    """A certificate made for this run: none is stored, none can expire."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    directory = tmp_path_factory.mktemp("tls")
    files = TLSFiles(directory / "cert.pem", directory / "key.pem")
    files.certfile.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.keyfile.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@pytest.fixture
def ssl_options(tls: TLSFiles) -> ssl.SSLContext:
    """What pytest-tornado's `https_server` listens with."""
    return tls.server_context()
