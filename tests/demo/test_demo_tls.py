"""The chat over TLS: HTTP/2, many windows on one connection, and certificates that are none.

What a browser's windows cost in connections is seen from the server: in its access log, which
has the port of each client, and on the status page.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.demo_process import CONFIG, need_module, run_chromium, start_chat
from helpers.gunicorn_process import REPOSITORY, GunicornProcess
from helpers.tls_files import TLSFiles
from helpers.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

TIMEOUT_MS = 30_000
WINDOWS = 20
HTTP1_CONNECTIONS = 6  # of a browser to one server
ACCESS_LOG = ["--access-logformat", "%(H)s port=%({remote_port}e)s %(U)s"]

Start = Callable[..., GunicornProcess]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with run_chromium() as browser:
        yield browser


@pytest.fixture
def person(browser: Browser) -> Iterator[Callable[[], BrowserContext]]:
    """A function that returns a browser of a person of their own."""
    contexts = []

    def new_context() -> BrowserContext:
        context = browser.new_context(ignore_https_errors=True)
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        return context

    yield new_context
    for context in contexts:
        context.close()


def open_windows(context: BrowserContext, url: str, count: int) -> list[Page]:
    """Open windows that all poll; return them when each has had an answer."""
    pages = [context.new_page() for _ in range(count)]
    for page in pages:
        page.goto(f"{url}/rooms/lobby?via=poll")
        page.wait_for_selector("body[data-state=live]")
    return pages


def say(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def wait_said(page: Page, text: str) -> None:
    bubble = page.locator(".message:not(.pending) .bubble", has_text=text)
    bubble.first.wait_for(timeout=TIMEOUT_MS)


def protocols(server: GunicornProcess, context: ssl.SSLContext) -> dict[str, dict[str, int]]:
    """Return what the workers' reports say together."""
    total: dict[str, dict[str, int]] = {}
    for worker in json.loads(server.request("/api/status", ssl_context=context).body)["workers"]:
        for protocol, counts in worker["protocols"].items():
            sums = total.setdefault(protocol, {"connections": 0, "listening": 0})
            for name, number in counts.items():
                sums[name] += number
    return total


def test_twenty_windows_poll_over_one_connection(
    gunicorn: Start, person: Callable[[], BrowserContext], tls: TLSFiles, tmp_path: Path
) -> None:
    env = {"CHAT_ACCESS_LOG": "-"}
    server = start_chat(gunicorn, tmp_path / "data", tls=tls, env=env, args=ACCESS_LOG)
    mark = server.mark()
    context = person()
    pages = open_windows(context, server.url, WINDOWS)
    say(pages[-1], "hello from the last one")
    for page in pages:
        wait_said(page, "hello from the last one")
    assert {page.get_attribute("body", "data-way") for page in pages} == {"poll"}

    everybody = {"HTTP/2.0": {"connections": 1, "listening": WINDOWS}}
    eventually(lambda: protocols(server, tls.client_context()) == everybody, "twenty polls")

    def lines() -> list[list[str]]:
        return [line.split() for line in server.log[mark:].splitlines() if " port=" in line]

    def polls() -> int:
        return sum(path == "/api/rooms/lobby/poll" for _, _, path in lines())

    # Each has been answered at least twice: the greeting, and the message.
    eventually(lambda: polls() >= 2 * WINDOWS, "the polls in the access log")
    ports = {port for version, port, _ in lines() if version == "HTTP/2.0"}
    assert len(ports) == 1
    # What is not HTTP/2 is this test's own.
    others = {path for version, _, path in lines() if version != "HTTP/2.0"}
    assert others <= {"/health", "/api/status"}

    # What the page shows.
    page = context.new_page()
    page.goto(f"{server.url}/status")
    row = page.locator("#connections tr")
    row.wait_for()
    [pid, *cells] = row.inner_text().split()
    assert int(pid) in server.worker_pids()
    assert cells == ["HTTP/2.0", "1", str(WINDOWS)]


def test_seventh_window_waits_over_http1(
    gunicorn: Start, person: Callable[[], BrowserContext], tls: TLSFiles, tmp_path: Path
) -> None:
    """What HTTP/2 is for; if browsers change this, the README is out of date."""
    server = start_chat(gunicorn, tmp_path / "data", tls=tls, args=["--http-protocols", "h1"])
    context = person()
    pages = open_windows(context, server.url, HTTP1_CONNECTIONS)
    [other] = open_windows(person(), server.url, 1)
    # Now the polls of all six have just begun.
    say(other, "fresh")
    for page in pages:
        wait_said(page, "fresh")

    seventh = context.new_page()
    address = f"{server.url}/rooms/lobby?via=poll"
    with seventh.expect_request(address):
        seventh.evaluate("address => { location = address; }", address)
    # Meanwhile the server answers somebody else.
    fetch_twenty = """async () => {
      for (let i = 0; i < 20; i++) await (await fetch("/api/rooms")).json();
    }"""
    other.evaluate(fetch_twenty)
    assert seventh.url == "about:blank"
    counts = protocols(server, tls.client_context())
    assert set(counts) == {"HTTP/1.1"}

    # A poll that ends makes room.
    say(other, "make room")
    seventh.wait_for_url(address, wait_until="commit")


def test_status_page_shows_each_protocol(
    gunicorn: Start, person: Callable[[], BrowserContext], tls: TLSFiles, tmp_path: Path
) -> None:
    """One who does not speak HTTP/2 is served beside those who do, and told apart."""
    server = start_chat(gunicorn, tmp_path / "data", workers=1, tls=tls)
    context = person()
    open_windows(context, server.url, 2)
    old = tls.client_context().wrap_socket(server.connect(), server_hostname="localhost")
    old.sendall(b"GET /api/rooms/lobby/events?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert old.recv(100).startswith(b"HTTP/1.1 200 ")
    page = context.new_page()
    page.goto(f"{server.url}/status")
    rows = page.locator("#connections tr")

    def shown() -> list[list[str]]:
        return [row.split()[1:] for row in rows.all_inner_texts()]

    both = [["HTTP/1.1", "1", "1"], ["HTTP/2.0", "1", "2"]]
    eventually(lambda: shown() == both, "a row for each protocol")
    # Whoever has gone is counted no longer.
    old.close()
    eventually(lambda: shown() == both[1:], "the one that is left")


# -- settings ------------------------------------------------------------------


def exit_of(gunicorn: Start, **env: str) -> tuple[int, str]:
    """Start the chat, which must end by itself; return its status and what it wrote."""
    need_module("flask")
    process = gunicorn(app=None, worker_class=None, args=["-c", str(CONFIG)], env=env, wait=False)
    status = process.wait_exit()
    return status, process.stderr.strip()


@pytest.mark.parametrize("variable", ["CHAT_CERTFILE", "CHAT_KEYFILE"])
def test_missing_file_is_named(gunicorn: Start, tls: TLSFiles, variable: str) -> None:
    files = {"CHAT_CERTFILE": str(tls.certfile), "CHAT_KEYFILE": str(tls.keyfile)}
    found = exit_of(gunicorn, **{**files, variable: "/nowhere/x.pem"})
    assert found == (1, f"{variable}: cannot read '/nowhere/x.pem': No such file or directory")


def test_key_without_certificate_is_refused(gunicorn: Start, tls: TLSFiles) -> None:
    found = exit_of(gunicorn, CHAT_KEYFILE=str(tls.keyfile))
    message = "CHAT_KEYFILE is set, but CHAT_CERTFILE is not: TLS needs a certificate"
    assert found == (1, message)


@pytest.mark.parametrize("what", ["no key", "another key", "passphrase", "no certificate"])
def test_files_that_do_not_fit_are_named(
    gunicorn: Start, tls: TLSFiles, tmp_path: Path, what: str
) -> None:
    env = {"CHAT_CERTFILE": str(tls.certfile)}
    if what in ("another key", "passphrase"):
        env["CHAT_KEYFILE"] = str(write_key(tmp_path / "key.pem", encrypted=what == "passphrase"))
    elif what == "no certificate":
        env = {"CHAT_CERTFILE": str(tls.keyfile)}
    status, message = exit_of(gunicorn, **env)
    expected = (
        "CHAT_CERTFILE, CHAT_KEYFILE: expected a certificate and its private key, in PEM format"
        f" and without a passphrase; got {env['CHAT_CERTFILE']!r}, {env.get('CHAT_KEYFILE')!r}: "
    )
    assert status == 1
    assert message.startswith(expected)
    assert "\n" not in message


def write_key(path: Path, *, encrypted: bool) -> Path:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    encryption: Any = (
        serialization.BestAvailableEncryption(b"secret")
        if encrypted
        else serialization.NoEncryption()
    )
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
    )
    return path


def test_key_in_the_same_file_will_do(gunicorn: Start, tls: TLSFiles, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(tls.certfile.read_bytes() + tls.keyfile.read_bytes())
    # An empty variable is one that is not set.
    env = {"CHAT_CERTFILE": str(both), "CHAT_KEYFILE": ""}
    server = start_chat(gunicorn, tmp_path / "data", tls=tls, env=env)
    assert server.url.startswith("https://")


def test_without_h2_it_says_what_to_install(gunicorn: Start, tls: TLSFiles, tmp_path: Path) -> None:
    (tmp_path / "h2.py").write_text("raise ImportError('not here')\n")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    found = exit_of(gunicorn, CHAT_CERTFILE=str(tls.certfile), PYTHONPATH=path)
    message = (
        "CHAT_CERTFILE switches HTTP/2 on, for which Gunicorn needs the package h2:"
        " pip install 'tornado-worker[http2]'"
    )
    assert found == (1, message)
