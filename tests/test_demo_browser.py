"""The chat in a real browser: Debian's Chromium, driven by Playwright.

What people see: two windows that talk, over each way to listen, while workers
are restarted and killed. Sees the page and the process table, nothing inside.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo_process import CHROMIUM_ARGUMENTS, need_module, need_program, start_chat
from gunicorn_process import GunicornProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TIMEOUT_MS = 30_000
WAYS = ("websocket", "sse", "poll")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM") or need_program(
        "chromium", "chromium-browser", "google-chrome"
    )
    api = need_module("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def window(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens a window of a person of their own.

    A page that logs an error or breaks the security policy fails the test.
    """
    contexts = []
    errors: list[str] = []
    pages: list[Page] = []

    def open_window(url: str, *, wait: bool = True, **options: Any) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        pages.append(page)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: on_console(message.type, message.text))
        page.goto(url)
        if wait:
            page.wait_for_selector("body[data-state=live]")
        return page

    def on_console(kind: str, text: str) -> None:
        # The browser itself reports connections that a restart has cut.
        if kind == "error" and not re.search(r"net::ERR_|WebSocket connection|status of 50", text):
            errors.append(text)

    yield open_window
    for context in contexts:
        context.close()
    assert errors == []


def say(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def wait_said(page: Page, text: str) -> None:
    bubble = page.locator(".message:not(.pending) .bubble", has_text=text)
    bubble.first.wait_for(timeout=TIMEOUT_MS)


def said(page: Page) -> list[str]:
    return page.locator(".message:not(.pending) .bubble").all_inner_texts()


def expect_text(page: Page, selector: str, text: str | re.Pattern[str]) -> None:
    # Not wait_for_function: it evaluates a string, which the page's policy forbids.
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=TIMEOUT_MS)


@pytest.mark.parametrize("way", WAYS)
def test_two_windows_chat(
    gunicorn: Callable[..., GunicornProcess],
    window: Callable[..., Page],
    tmp_path: Path,
    way: str,
) -> None:
    server = start_chat(gunicorn, tmp_path / "data")
    one = window(f"{server.url}/rooms/lobby?via={way}")
    two = window(f"{server.url}/rooms/lobby?via={way}")
    assert one.get_attribute("body", "data-way") == way

    say(one, "hello from one")
    wait_said(two, "hello from one")
    say(two, "hello from two")
    wait_said(one, "hello from two")
    assert said(one) == said(two) == ["hello from one", "hello from two"]

    # Who is here, by name, in both.
    names = {one.inner_text("#my-name"), two.inner_text("#my-name")}
    for page in (one, two):
        expect_text(page, "#here", "2")
        assert set(page.locator("#people .person").all_inner_texts()) == names

    # Who is typing, while they are.
    one.locator("#text").type("h")
    expect_text(two, "#typing", f"{one.inner_text('#my-name')} is typing")
    expect_text(two, "#typing", "")


@pytest.mark.parametrize("way", WAYS)
def test_reload_changes_only_the_pid(
    gunicorn: Callable[..., GunicornProcess],
    window: Callable[..., Page],
    tmp_path: Path,
    way: str,
) -> None:
    server = start_chat(gunicorn, tmp_path / "data")
    one = window(f"{server.url}/rooms/lobby?via={way}")
    two = window(f"{server.url}/rooms/lobby?via={way}")
    expected = []
    old = "|".join(map(str, server.worker_pids()))
    for number in range(10):
        if number == 3:
            server.signal(signal.SIGHUP)
        text = f"message {number} of ten"
        expected.append(text)
        say((one, two)[number % 2], text)
    for page in (one, two):
        wait_said(page, "message 9 of ten")
        expect_text(page, "#pid", re.compile(rf"^(?!(?:{old})$)\d+$"))
        page.wait_for_selector("body[data-state=live]")
        assert sorted(said(page)) == expected
        assert page.get_attribute("body", "data-way") == way
        assert page.locator(".failed").count() == 0
    assert said(one) == said(two)
