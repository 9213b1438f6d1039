"""The application of docs/mixing.md, in a real Gunicorn with one worker."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.gunicorn_process import GunicornProcess
from helpers.waiting import eventually

requests = pytest.importorskip("requests")
pytest.importorskip("flask")
connect = pytest.importorskip("websockets.sync.client").connect

DOCUMENT = Path(__file__).parents[2] / "docs" / "mixing.md"
POLLS = 300


def example() -> str:
    [source] = re.findall(r"```python\n(# app\.py\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return str(source)


@pytest.fixture(params=["asyncio", "uvloop"])
def process(
    gunicorn: Callable[..., GunicornProcess], request: pytest.FixtureRequest
) -> GunicornProcess:
    """As the document says to start it, with one worker."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    config = f"asgi_loop = {request.param!r}"
    return gunicorn(example(), app="app:make_app", args=["--threads", "4"], config=config)


@pytest.fixture
def browser(process: GunicornProcess) -> Iterator[Any]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


class Poll:
    """A long poll that has been sent."""

    def __init__(self, process: GunicornProcess) -> None:
        self.sock = socket.create_connection(("127.0.0.1", process.port), timeout=30)
        self.sock.sendall(b"GET /poll HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")

    def answer(self) -> str | None:
        data = b""
        with self.sock:
            while block := self.sock.recv(65536):
                data += block
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n"), data
        text: str | None = json.loads(body)["text"]
        return text


def wait_for_polls(process: GunicornProcess, browser: Any) -> None:
    """Return when polls that were sent before must have arrived."""
    # What was connected before is accepted before, on one loop.
    for _ in range(3):
        with requests.Session() as session:
            session.trust_env = False
            assert session.get(process.url).status_code == 200


def test_a_slow_view_runs_while_hundreds_of_polls_wait_and_are_answered(
    process: GunicornProcess, browser: Any
) -> None:
    seconds = 4
    ended = threading.Event()
    reports = []

    def get_report() -> None:
        reports.append(requests.get(f"{process.url}/report?seconds={seconds}", timeout=30).text)
        ended.set()

    polls = [Poll(process) for _ in range(POLLS)]
    wait_for_polls(process, browser)
    slow = [threading.Thread(target=get_report) for _ in range(3)]  # all threads but one
    began = time.monotonic()
    for thread in slow:
        thread.start()
    assert browser.post(f"{process.url}/say", data={"text": "news"}).status_code == 204
    assert [poll.answer() for poll in polls] == ["news"] * POLLS
    assert browser.get(process.url).text == "Hello stranger"
    # Otherwise the machine was too slow for this to prove anything.
    if time.monotonic() - began < seconds:
        assert not ended.is_set()
    for thread in slow:
        thread.join()
    assert reports == ["all is well"] * 3


def test_the_websocket_knows_the_sites_session(process: GunicornProcess, browser: Any) -> None:
    poll = Poll(process)
    wait_for_polls(process, browser)
    browser.post(f"{process.url}/login", data={"name": "Ada"})
    assert browser.get(process.url).text == "Hello Ada"
    cookie = f"session={browser.cookies['session']}"
    url = process.url.replace("http:", "ws:") + "/ws"
    with connect(url, additional_headers={"Cookie": cookie}) as websocket:
        websocket.send("hello")
        assert websocket.recv(timeout=30) == "said"
    assert poll.answer() == "Ada: hello"
    with connect(url) as websocket:
        with pytest.raises(Exception, match="log in first"):
            websocket.recv(timeout=30)


def test_a_stop_answers_polls_and_finishes_views(process: GunicornProcess, browser: Any) -> None:
    polls = [Poll(process) for _ in range(20)]
    wait_for_polls(process, browser)
    report = socket.create_connection(("127.0.0.1", process.port), timeout=30)
    report.sendall(b"GET /report?seconds=2 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    wait_for_polls(process, browser)
    process.signal(signal.SIGTERM)
    assert [poll.answer() for poll in polls] == [None] * 20
    data = b""
    with report:
        while block := report.recv(65536):
            data += block
    assert data.endswith(b"all is well")
    assert process.wait_exit() == 0
    assert process.count_log("ERROR|WARNING") == 0


def test_a_view_that_outlasts_the_deadline_is_named(
    gunicorn: Callable[..., GunicornProcess],
) -> None:
    process = gunicorn(
        example(), app="app:make_app", args=["--threads", "2", "--graceful-timeout", "2"]
    )
    sock = socket.create_connection(("127.0.0.1", process.port), timeout=30)
    sock.sendall(b"GET /report?seconds=60 HTTP/1.1\r\nHost: test\r\n\r\n")
    eventually(lambda: b"Hello" in requests.get(process.url, timeout=30).content)
    process.signal(signal.SIGTERM)
    process.wait_log(r"a view still runs: GET /report\?seconds=60 \(\d+\.\d s\)")
    process.wait_exit()
    sock.close()
