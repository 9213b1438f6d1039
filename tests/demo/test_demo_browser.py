"""The chat in a real browser: Debian's Chromium, driven by Playwright.

What people see: two windows that talk, over each way to listen, while workers
are restarted and killed. Sees the page and the process table, nothing inside.
"""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.demo_process import (
    run_chromium,
    run_nginx,
    run_redis,
    start_chat,
)
from helpers.gunicorn_process import GunicornProcess
from helpers.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect, Locator, Page

TIMEOUT_MS = 30_000
# Keeps all that these two ever show, from now on.
WATCH = """() => {
  const here = document.getElementById("here");
  const look = () => {
    for (const [list, value] of [
      [window.watched.here, here.textContent],
      [window.watched.state, document.body.dataset.state],
    ]) {
      if (!list.includes(value)) list.push(value);
    }
  };
  window.watched = { here: [], state: [] };
  look();
  const observer = new MutationObserver(look);
  observer.observe(here, { childList: true, characterData: true, subtree: true });
  observer.observe(document.body, { attributes: true });
}"""
WAYS = ("websocket", "sse", "poll")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with run_chromium() as browser:
        yield browser


@pytest.fixture
def window(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens a window of a person of their own.

    With `beside` it is another window of the same browser, as of one person. `before`
    is a script that runs before those of the page. A page
    that logs an error or breaks the security policy fails the test.
    """
    contexts = []
    errors: list[str] = []
    pages: list[Page] = []

    def open_window(
        url: str,
        *,
        wait: bool = True,
        beside: Page | None = None,
        before: str | None = None,
        **options: Any,
    ) -> Page:
        if beside is not None:
            context = beside.context
        else:
            context = browser.new_context(**options)
            context.set_default_timeout(TIMEOUT_MS)
            contexts.append(context)
        page = context.new_page()
        if before is not None:
            page.add_init_script(before)
        pages.append(page)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: on_console(message.type, message.text))
        page.goto(url)
        if wait:
            page.wait_for_selector("body[data-state=live]")
        return page

    def on_console(kind: str, text: str) -> None:
        # The browser itself reports refusals, and connections that a restart has cut.
        if kind == "error" and not re.match(r"Failed to load resource|WebSocket connection", text):
            errors.append(text)

    yield open_window
    for context in contexts:
        context.close()
    assert errors == []


def say(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def box_of(locator: Locator) -> FloatRect:
    """Return where an element is, which must be somewhere."""
    box = locator.bounding_box()
    assert box is not None
    return box


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
    for page in (one, two):
        expect_text(page, "#here", "2")
        page.evaluate(WATCH)
    expected = []
    old = "|".join(map(str, server.worker_pids()))
    for number in range(10):
        if number == 3:
            server.signal(signal.SIGHUP)
        text = f"message {number} of ten"
        expected.append(text)
        say((one, two)[number % 2], text)
    for page in (one, two):
        for text in expected:  # the windows post at the same time: any may be the last
            wait_said(page, text)
        expect_text(page, "#pid", re.compile(rf"^(?!(?:{old})$)\d+$"))
        page.wait_for_selector("body[data-state=live]")
        assert sorted(said(page)) == expected
        assert page.get_attribute("body", "data-way") == way
        assert page.locator(".failed").count() == 0
        # Nobody seemed to leave, for a moment even. That the page reconnects shows
        # only where new workers take long to come up.
        watched = page.evaluate("window.watched")
        assert watched["here"] == ["2"]
        assert set(watched["state"]) <= {"live", "reconnecting"}
    assert said(one) == said(two)


@pytest.mark.parametrize("way", WAYS)
def test_chat_behind_nginx_survives_reload_and_kill(
    gunicorn: Callable[..., GunicornProcess],
    window: Callable[..., Page],
    tmp_path: Path,
    way: str,
) -> None:
    server = start_chat(gunicorn, tmp_path / "data")
    with run_nginx(tmp_path / "nginx", server.port) as url:
        one = window(f"{url}/rooms/lobby?via={way}")
        two = window(f"{url}/rooms/lobby?via={way}")
        assert one.get_attribute("body", "data-way") == way
        expected = []
        for number in range(12):
            if number == 3:
                server.signal(signal.SIGHUP)
            if number == 8:
                server.signal_worker(server.worker_pids()[-1], signal.SIGKILL)
            text = f"message {number:02} of twelve"
            expected.append(text)
            say((one, two)[number % 2], text)
        for page in (one, two):
            expect_count(page, ".message:not(.pending) .bubble", len(expected))
            assert sorted(said(page)) == expected
            assert page.locator(".failed, .pending").count() == 0
        assert said(one) == said(two)


def test_page_falls_back_to_the_way_that_works(
    gunicorn: Callable[..., GunicornProcess], browser: Browser, tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    # A network that lets no WebSocket through: the server's answer to the
    # handshake is lost, as behind a proxy that does not know it.
    page.route_web_socket(re.compile("/socket"), lambda socket: socket.close())
    page.goto(f"{server.url}/rooms/lobby")
    page.wait_for_selector("body[data-state=live][data-way=sse]")
    assert "Automatic · server-sent events" in page.inner_text("#way option:first-child")
    expect_text(page, "#status", "Live by server-sent events")
    # And one that holds streams back, too.
    page.route("**/events?*", lambda route: route.abort())
    page.reload()
    page.wait_for_selector("body[data-state=live][data-way=poll]")
    say(page, "by long polling")
    wait_said(page, "by long polling")
    context.close()


def test_page_does_not_step_down_while_the_server_is_away(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    port = server.port
    page = window(f"{server.url}/rooms/lobby")
    server.close()
    page.wait_for_selector("body[data-state=reconnecting]")
    say(page, "written while it was away")
    page.wait_for_selector(".pending")
    page.wait_for_timeout(3000)  # time enough to try more than once
    # A reload of the page forgets nothing that was written, either.
    start_chat(
        gunicorn, tmp_path / "data", workers=1, bind=f"127.0.0.1:{port}", directory=tmp_path / "2"
    )
    page.wait_for_selector("body[data-state=live][data-way=websocket]")
    wait_said(page, "written while it was away")
    assert said(page) == ["written while it was away"]


def test_page_starts_again_when_the_store_was_replaced(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    port = server.port
    pages = [window(f"{server.url}/rooms/lobby?via={way}") for way in ("auto", *WAYS)]
    say(pages[0], "of the old store")
    for page in pages:
        wait_said(page, "of the old store")
    server.close()
    start_chat(
        gunicorn, tmp_path / "new", workers=1, bind=f"127.0.0.1:{port}", directory=tmp_path / "2"
    )
    for page in pages:
        expect_count(page, ".message", 0)
        page.wait_for_selector("body[data-state=live]")
    # The new store does not know the old cookies: everybody is somebody new.
    for number, page in enumerate(pages):
        say(page, f"of number {number}")
        wait_said(page, f"of number {number}")
        assert page.locator(".message.own .bubble").all_inner_texts() == [f"of number {number}"]
    for page in pages:
        expect_count(page, ".message:not(.pending)", len(pages))
        assert said(page) == [f"of number {number}" for number in range(len(pages))]


def test_message_waits_out_a_reload_of_the_page(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby")
    page.route("**/messages", lambda route: route.abort())
    say(page, "kept over a reload")
    page.wait_for_selector(".pending")
    page.reload()
    page.wait_for_selector(".pending")
    page.unroute("**/messages")
    wait_said(page, "kept over a reload")
    assert page.locator(".pending").count() == 0


def test_page_that_lost_its_cookies_is_somebody_new(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby")
    say(page, "with the old cookies")
    wait_said(page, "with the old cookies")
    page.context.clear_cookies()
    say(page, "with new cookies")
    wait_said(page, "with new cookies")
    assert page.locator(".message .bubble").all_inner_texts() == [
        "with the old cookies",
        "with new cookies",
    ]
    assert page.locator(".message.own .bubble").all_inner_texts() == ["with new cookies"]
    # It also listens as who it is now.
    expect_text(page, "#here", "1")
    expect_text(page, "#people .person", page.inner_text("#my-name"))
    expect_text(page, "#people small", "you")


def test_all_windows_of_a_person_have_the_new_name(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data")
    one = window(f"{server.url}/rooms/lobby")
    two = window(f"{server.url}/rooms/lobby", beside=one)
    other = window(f"{server.url}/rooms/lobby")
    one.click("#rename")
    one.fill("#name", "Ada")
    one.click("#name-form button[type=submit]")
    names = sorted(["Ada", other.inner_text("#my-name")], key=str.casefold)
    for page in (one, two):
        expect_text(page, "#my-name", "Ada")
    for page in (one, two, other):
        expect_texts(page, "#people .person", names)
    # The window in which nothing was done is the same person, under the same name.
    say(two, "from the second window")
    for page in (one, two):
        wait_said(page, "from the second window")
        assert page.locator(".message.own .bubble").count() == 1
    expect_text(other, ".message .name", "Ada")


def test_html_in_messages_and_names_stays_text(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    one = window(f"{server.url}/rooms/lobby")
    two = window(f"{server.url}/rooms/lobby")
    attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    one.click("#rename")
    one.fill("#name", "<b>Ann</b>")
    one.click("#name-form button[type=submit]")
    expect_text(one, "#my-name", "<b>Ann</b>")
    link = "https://example.org/?a=1&b=<script>"
    say(one, f"{attack} {link} javascript:alert(1)")
    wait_said(two, attack)
    assert said(two) == [f"{attack} {link} javascript:alert(1)"]
    assert two.locator(".message img, .message script, .message b b").count() == 0
    assert two.locator(".message .name").all_inner_texts() == ["<b>Ann</b>"]
    links = two.locator(".bubble a")
    assert links.count() == 1
    assert links.get_attribute("href") == "https://example.org/?a=1&b="
    assert "owned" not in two.title()


def test_rooms_are_apart_and_remember_what_was_said(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data")
    one = window(f"{server.url}/")
    two = window(f"{server.url}/rooms/lobby")
    say(one, "in the lobby")
    wait_said(two, "in the lobby")

    one.fill("#new-room", "Other Room")
    one.press("#new-room", "Enter")
    expect_text(one, "#room-name", "#other-room")
    assert one.url.endswith("/rooms/other-room")
    one.wait_for_selector("#empty:not([hidden])")
    say(one, "in the other room")
    wait_said(one, "in the other room")
    assert said(one) == ["in the other room"]
    # The other window is told by a mark beside the room.
    two.wait_for_selector("#rooms a.unread[data-room=other-room]")
    two.click("#rooms a[data-room=other-room]")
    wait_said(two, "in the other room")
    two.go_back()
    wait_said(two, "in the lobby")
    assert said(two) == ["in the lobby"]


def test_each_room_keeps_its_draft(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby")
    page.fill("#text", "only for the lobby")
    page.click("#rooms a[data-room=tornado]")
    expect_text(page, "#room-name", "#tornado")
    assert page.input_value("#text") == ""
    assert page.is_disabled("#send")
    page.fill("#text", "only for tornado")
    page.go_back()
    expect_text(page, "#room-name", "#lobby")
    assert page.input_value("#text") == "only for the lobby"
    page.press("#text", "Enter")
    wait_said(page, "only for the lobby")
    page.click("#rooms a[data-room=tornado]")
    expect_text(page, "#room-name", "#tornado")
    assert page.input_value("#text") == "only for tornado"
    page.click("#rooms a[data-room=lobby]")
    wait_said(page, "only for the lobby")
    assert page.input_value("#text") == ""


def test_long_history_is_loaded_page_by_page(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    one = window(f"{server.url}/rooms/lobby")
    for number in range(120):
        say(one, f"number {number:03}")
    wait_said(one, "number 119")
    two = window(f"{server.url}/rooms/lobby")
    assert said(two) == [f"number {number:03}" for number in range(70, 120)]
    for count in (100, 120):
        two.click("#earlier")
        expect_count(two, ".message", count)
    assert said(two) == [f"number {number:03}" for number in range(120)]
    assert two.is_hidden("#earlier")


def test_limits_are_shown_before_and_after_sending(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    env = {"CHAT_MAX_ROOMS": "1", "CHAT_MAX_TEXT": "20"}
    server = start_chat(gunicorn, tmp_path / "data", workers=1, env=env)
    page = window(f"{server.url}/rooms/lobby")
    page.fill("#text", "x" * 21)
    expect_text(page, "#counter", "21 of 20")
    assert page.is_disabled("#send")
    say(page, "x" * 20)
    wait_said(page, "x" * 20)

    page.goto(f"{server.url}/rooms/second")
    page.wait_for_selector("body[data-state=live]")
    say(page, "too many rooms")
    page.wait_for_selector(".failed")
    assert "there are 1 rooms already" in page.inner_text(".failure")
    expect_text(page, "#notices p", re.compile("^Not sent: there are 1 rooms already"))
    page.get_by_role("button", name="Discard").click()
    expect_count(page, ".message", 0)


def test_page_says_why_it_is_kept_out(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    env = {"CHAT_MAX_LISTENING": "1"}
    server = start_chat(gunicorn, tmp_path / "data", workers=1, env=env)
    one = window(f"{server.url}/rooms/lobby")
    two = window(f"{server.url}/rooms/lobby", beside=one, wait=False)
    for way in WAYS:
        two.goto(f"{server.url}/rooms/lobby?via={way}")
        expect_text(
            two,
            "#status",
            "Reconnecting: you are listening 1 times already; close another window",
        )
    two.set_viewport_size({"width": 320, "height": 640})
    assert two.evaluate("document.documentElement.scrollWidth") == 320
    assert box_of(two.locator("#status"))["width"] > 100
    one.close()
    two.wait_for_selector("body[data-state=live]")
    expect_text(two, "#status", "Live by long polling")
    assert box_of(two.locator("#status"))["width"] == 1


def test_keyboard_is_enough(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby")
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    wait_said(page, "second line")
    assert said(page) == ["first line\nsecond line"]
    # Everything that can be used can be reached, in the order in which it is read.
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.dataset.room")
        )
        if reached[-1] == "text":
            break
    for name in ("theme", "lobby", "new-room", "rename", "archive", "way", "log", "text"):
        assert name in reached


def test_skip_link_leads_to_the_box_and_nowhere_else(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby")
    say(page, "still the same")
    wait_said(page, "still the same")
    page.evaluate("document.querySelector('.message').dataset.kept = 'yes'")
    page.focus(".skip")
    page.keyboard.press("Enter")
    page.wait_for_url("**/rooms/lobby#text")
    assert page.evaluate("document.activeElement.id") == "text"
    # What comes next shows that the room was not opened anew.
    say(page, "and the next")
    wait_said(page, "and the next")
    assert page.locator(".message[data-kept]").count() == 1


def test_keyboard_goes_on_where_a_button_vanished(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby", viewport={"width": 320, "height": 480})
    for number in range(30):
        say(page, f"number {number}")
    wait_said(page, "number 29")
    page.evaluate("document.getElementById('log').scrollTop = 0")
    other = window(f"{server.url}/rooms/lobby")
    say(other, "further down")
    page.wait_for_selector("#newer")
    page.focus("#newer")
    page.keyboard.press("Enter")
    page.wait_for_selector("#newer", state="hidden")
    assert page.evaluate("document.activeElement.id") == "log"

    page.focus("#menu")
    page.keyboard.press("Enter")
    page.focus("#rooms a[data-room=tornado]")
    page.keyboard.press("Enter")
    expect_text(page, "#room-name", "#tornado")
    assert page.evaluate("document.activeElement.id") == "menu"


def test_drawer_keeps_the_keyboard_out_of_what_it_covers(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby", viewport={"width": 320, "height": 640})
    page.wait_for_selector("#rooms a[data-room=random]", state="attached")
    page.click("#menu")
    assert page.evaluate("document.activeElement.id") == "theme"
    outside = """() => {
      const focused = document.activeElement;
      return focused !== document.body && !document.getElementById("side").contains(focused);
    }"""
    for _ in range(15):
        page.keyboard.press("Tab")
        assert not page.evaluate(outside)
    page.click("#backdrop", position={"x": 300, "y": 300})
    page.click("#text")
    assert page.evaluate("document.activeElement.id") == "text"


def test_theme_is_the_same_on_all_pages(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby", color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.click("#theme")
    dark = page.evaluate(colour)
    assert dark != light
    for path in ("/rooms/lobby", "/status", "/archive/", "/archive/lobby", "/archive/NO"):
        page.goto(f"{server.url}{path}")
        assert page.evaluate(colour) == dark
    page.goto(f"{server.url}/rooms/lobby")
    page.click("#theme")
    page.goto(f"{server.url}/status")
    assert page.evaluate(colour) == light


def test_own_message_is_announced_once(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby")
    # What a screen reader is given to read: what is added inside of a live region.
    page.evaluate("""() => {
      window.announced = [];
      const observer = new MutationObserver((records) => {
        for (const { target, addedNodes } of records) {
          if (target.closest("[aria-live]").getAttribute("aria-live") === "off") continue;
          for (const node of addedNodes) {
            if (node.matches(".message")) window.announced.push(node.innerText);
          }
        }
      });
      observer.observe(document.getElementById("log"), { childList: true, subtree: true });
    }""")
    say(page, "said once")
    wait_said(page, "said once")
    expect_count(page, ".pending", 0)
    [announced] = page.evaluate("window.announced")
    assert "said once" in announced


def test_phone_has_no_sideways_scrolling_and_a_drawer(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(
        f"{server.url}/rooms/lobby", viewport={"width": 320, "height": 640}, color_scheme="dark"
    )
    say(page, "a_very_long_word_" * 20)
    wait_said(page, "a_very_long_word")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.is_hidden("#rooms")
    page.click("#menu")
    page.wait_for_selector("#rooms", state="visible")
    page.keyboard.press("Escape")
    page.wait_for_selector("#rooms", state="hidden")
    assert page.evaluate("document.activeElement.id") == "menu"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(16, 20, 27)"


def test_chat_on_redis(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    (tmp_path / "redis").mkdir()
    with run_redis(tmp_path / "redis") as url:
        # Two servers that share nothing else, as on two machines.
        servers = [
            start_chat(gunicorn, tmp_path / f"data{n}", workers=1, env={"CHAT_REDIS_URL": url})
            for n in range(2)
        ]
        one, two = (window(f"{server.url}/rooms/lobby") for server in servers)
        say(one, "from one machine")
        wait_said(two, "from one machine")
        say(two, "to the other")
        wait_said(one, "to the other")
        expect_text(one, "#here", "2")
        for server in servers:
            server.close()


def test_status_page_shows_the_workers(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=2)
    window(f"{server.url}/rooms/lobby?via=poll")
    page = window(f"{server.url}/status", wait=False)
    expect_text(page, "#total-workers", "2")
    expect_text(page, "#total-listening", "1")
    rows = page.locator("#workers tr")
    pids = {row.split()[0] for row in rows.all_inner_texts()}
    assert pids == set(map(str, server.worker_pids()))


def expect_texts(page: Page, selector: str, texts: list[str]) -> None:
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(texts, timeout=TIMEOUT_MS)


def expect_count(page: Page, selector: str, count: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_count(count, timeout=TIMEOUT_MS)


# -- looks -----------------------------------------------------------------------

# The contrast (WCAG 2.2, 1.4.3 and 1.4.11) of every piece of text, placeholder and dot that
# is shown, against what lies behind it: a list of those that are too faint.
FAINT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a));
  const behind = (element) => {
    if (element === null) return [255, 255, 255];
    const color = rgba(getComputedStyle(element).backgroundColor);
    return color[3] === 1 ? color.slice(0, 3) : over(color, behind(element.parentElement));
  };
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = (color) => {
    const [r, g, b] = color.map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [a, b] = [luminance(one), luminance(other)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const opacity = (element) =>
    element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
  const faint = [];
  const check = (element, color, what, least) => {
    const { width, height } = element.getBoundingClientRect();
    if (width <= 1 || height <= 1) return;
    if (!element.checkVisibility({ visibilityProperty: true })) return;
    if (element.closest(":disabled, option, noscript")) return;
    const below = behind(element);
    const [r, g, b, a] = rgba(color);
    const found = contrast(over([r, g, b, a * opacity(element)], below), below);
    const name = element.className || element.tagName;
    if (found < least) faint.push(`${what.slice(0, 40)}: ${found.toFixed(2)} in ${name}`);
  };
  for (const element of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(element);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    const texts = [...element.childNodes].filter(({ nodeType }) => nodeType === Node.TEXT_NODE);
    const text = texts.map(({ data }) => data.trim()).join("");
    if (text) check(element, style.color, text, least);
    if (element.matches("input, textarea")) {
      if (element.value) check(element, style.color, element.value, 4.5);
      const { color } = getComputedStyle(element, "::placeholder");
      if (element.placeholder) check(element, color, element.placeholder, 4.5);
    }
    if (element.matches("svg") && !element.matches(".mark")) check(element, style.color, "icon", 3);
    if (element.matches(".dot")) {
      const below = behind(element.parentElement);
      const found = contrast(over(rgba(style.backgroundColor), below), below);
      if (found < 3) faint.push(`dot: ${found.toFixed(2)}`);
    }
  }
  return faint;
}"""
SYMBOLS = ("✔", "♥", "©", "™ ☎", "❤\ufe0f", "👍", "👩\u200d💻 🇩🇪", "1\ufe0f\u20e3")
DRAFT = "\n".join(f"line {number} of a long draft" for number in range(30))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (360, 640)], ids=["wide", "phone"])
def test_everything_can_be_read_in_both_themes(
    gunicorn: Callable[..., GunicornProcess],
    window: Callable[..., Page],
    tmp_path: Path,
    size: tuple[int, int],
    scheme: str,
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    look: dict[str, Any] = {
        "viewport": {"width": size[0], "height": size[1]},
        "color_scheme": scheme,
        "reduced_motion": "reduce",
    }
    other = window(f"{server.url}/rooms/lobby", **look)
    page = window(f"{server.url}/rooms/lobby", **look)
    for text in (*SYMBOLS, "a link: https://example.org/"):
        say(other, text)
        say(page, text)
    expect_count(page, ".message:not(.pending)", 2 * len(SYMBOLS) + 2)
    expect_count(page, ".pending", 0)
    assert page.evaluate(FAINT) == []

    # A message on its way, refused, and near and beyond the limit of length.
    page.route("**/messages", lambda route: route.abort())
    for text in ("♥", "👍", "see https://example.org/"):
        say(page, text)
    expect_count(page, ".pending", 3)
    assert page.evaluate(FAINT) == []
    error = {"error": {"code": "x", "message": "the reason why"}}
    page.route("**/messages", lambda route: route.fulfill(status=400, json=error))
    expect_count(page, ".failed", 3)
    page.wait_for_selector("#notices p")
    assert page.evaluate(FAINT) == []
    for length in (1990, 2010):
        page.fill("#text", "x" * length)
        assert page.evaluate(FAINT) == []
    page.fill("#text", "")

    # Each state of the connection, what is typed, a room with news, the drawer, the dialog.
    for state in ("connecting", "reconnecting", "offline", "live"):
        page.evaluate(
            "state => { for (const id of ['way-box', 'side'])"
            " document.getElementById(id).dataset.state = state }",
            state,
        )
        assert page.evaluate(FAINT) == []
    if page.is_visible("#menu"):
        page.click("#menu")
    page.fill("#new-room", "tornado")
    page.hover("#rooms a[data-room=random]")
    assert page.evaluate(FAINT) == []
    page.keyboard.press("Escape")
    page.evaluate("document.getElementById('rename').click()")
    page.fill("#name", "")
    page.click("#name-form button[type=submit]")
    assert page.evaluate(FAINT) == []
    page.unroute("**/messages")

    for path in (
        "/rooms/quiet",
        "/status",
        "/archive/",
        "/archive/lobby",
        "/archive/lobby?q=link",
        "/archive/NO",
        "/nowhere",
        "/rooms/NO",
        "/static/nowhere",
    ):
        page.goto(f"{server.url}{path}")
        page.wait_for_selector("main")
        if path == "/rooms/quiet":
            page.wait_for_selector("#empty:not([hidden])")
        if path == "/status":
            expect_text(page, "#total-workers", "1")
        assert (path, page.evaluate(FAINT)) == (path, [])


@pytest.mark.parametrize("size", [(1280, 800), (360, 640), (640, 300)])
def test_long_draft_leaves_the_end_of_the_log_in_sight_and_no_empty_column(
    gunicorn: Callable[..., GunicornProcess],
    window: Callable[..., Page],
    tmp_path: Path,
    size: tuple[int, int],
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby", viewport={"width": size[0], "height": size[1]})
    for number in range(30):
        say(page, f"number {number}")
    wait_said(page, "number 29")
    expect_count(page, ".pending", 0)
    last = page.locator(".message").last

    def is_in_sight() -> None:
        from playwright.sync_api import expect

        expect(last).to_be_in_viewport(ratio=0.9, timeout=TIMEOUT_MS)
        end = page.evaluate(
            "(() => { const log = document.getElementById('log');"
            " return log.scrollHeight - log.scrollTop - log.clientHeight })()"
        )
        assert end <= 1
        # The page itself has nothing to scroll.
        assert page.evaluate("document.documentElement.scrollHeight - innerHeight") <= 0

    for text in (DRAFT, "word " * 390, DRAFT + "\none more", "short", DRAFT):
        page.fill("#text", text)
        is_in_sight()
        box = box_of(page.locator("#text"))
        form = box_of(page.locator("#compose"))
        if text != "short":
            assert form["width"] - box["width"] < 40
        send = box_of(page.locator("#send"))
        assert send["y"] + send["height"] <= size[1]
    page.press("#text", "End")
    page.locator("#text").press_sequentially(" and more")
    is_in_sight()
    # A window that becomes smaller, as by a keyboard on the screen, and larger again.
    page.set_viewport_size({"width": size[0] - 30, "height": size[1] - 10})
    is_in_sight()
    page.fill("#text", "")
    page.set_viewport_size({"width": size[0], "height": size[1]})
    is_in_sight()

    # Who has scrolled up stays there.
    page.evaluate("""() => new Promise((resolve) => {
      const log = document.getElementById("log");
      log.addEventListener("scroll", resolve, { once: true }); // behind the page's own listener
      log.scrollTop = 40;
    })""")
    page.fill("#text", DRAFT)
    page.set_viewport_size({"width": size[0], "height": size[1] - 20})
    page.fill("#text", "")
    assert page.evaluate("document.getElementById('log').scrollTop") == 40


def test_window_that_is_very_low_scrolls_and_loses_nothing(
    gunicorn: Callable[..., GunicornProcess], window: Callable[..., Page], tmp_path: Path
) -> None:
    # 1280 by 1024, enlarged four times (WCAG 2.2, 1.4.10).
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}/rooms/lobby", viewport={"width": 320, "height": 256})
    for number in range(10):
        say(page, f"number {number}")
    wait_said(page, "number 9")
    page.fill("#text", DRAFT)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    for selector, least in (("#log", 100), ("#text", 40), ("#send", 30), ("#archive", 10)):
        page.locator(selector).scroll_into_view_if_needed()
        assert box_of(page.locator(selector))["height"] > least
    page.click("#send")
    wait_said(page, "line 29 of a long draft")
    page.click("#menu")
    for selector, least in (("#rooms", 80), ("#people", 50), ("#rename", 30)):
        page.locator(selector).scroll_into_view_if_needed()
        assert box_of(page.locator(selector))["height"] > least


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_list_that_is_cut_shows_that_there_is_more(
    gunicorn: Callable[..., GunicornProcess],
    window: Callable[..., Page],
    tmp_path: Path,
    scheme: str,
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(
        f"{server.url}/rooms/lobby",
        viewport={"width": 1000, "height": 600},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    # More rooms and people than there is room for, and none of them read.
    rooms = [
        {"name": f"room-{number:02}", "here": number % 3, "last_id": "5"} for number in range(40)
    ]
    page.route("**/api/rooms", lambda route: route.fulfill(json={"rooms": rooms}))
    page.reload()
    expect_count(page, "#rooms a.unread", 40)
    expect_count(page, "#people li", 1)
    page.evaluate("""() => {
      const list = document.getElementById("people");
      for (let n = 0; n < 40; n++) list.append(list.firstElementChild.cloneNode(true));
    }""")
    # Nothing of it makes the page itself longer.
    assert page.evaluate("document.documentElement.scrollHeight") == 600
    for name in ("rooms", "people"):
        # In this headless browser no list has a scroll bar: as on a phone.
        strips = {}
        for place, top in (("begin", 0), ("middle", 100), ("end", 10**6)):
            page.evaluate(
                "([id, top]) => { document.getElementById(id).scrollTop = top }", [name, top]
            )
            box = box_of(page.locator(f"#{name}"))
            for edge, y in (("top", box["y"]), ("bottom", box["y"] + box["height"] - 3)):
                # A row of the list's edge, where no item has anything.
                clip: FloatRect = {"x": box["x"] + 1, "y": round(y), "width": 4, "height": 2}
                strips[place, edge] = page.screenshot(clip=clip)
        assert strips["begin", "bottom"] != strips["end", "bottom"]
        assert strips["middle", "bottom"] != strips["end", "bottom"]
        assert strips["middle", "top"] != strips["begin", "top"]
    # And the keyboard reaches what is further down.
    page.focus("#people")
    page.evaluate("document.getElementById('people').scrollTop = 0")
    page.keyboard.press("End")
    page.wait_for_function("() => document.getElementById('people').scrollTop > 100")


@pytest.mark.parametrize("path", ["/nowhere", "/rooms/NO", "/static/nowhere", "/api/nowhere"])
def test_browser_that_asks_for_a_page_gets_one(
    gunicorn: Callable[..., GunicornProcess],
    window: Callable[..., Page],
    tmp_path: Path,
    path: str,
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    page = window(f"{server.url}{path}", wait=False)
    assert page.inner_text("h1") in ("400", "404")
    page.click("text=Back to the chat")
    page.wait_for_selector("body[data-state=live]")


# -- coming back -----------------------------------------------------------------

# When each message was shown (seconds of the epoch).
WATCH_SHOWN = """() => {
  window.shown = {};
  const look = () => {
    for (const bubble of document.querySelectorAll("#messages .bubble")) {
      window.shown[bubble.textContent] ??= Date.now() / 1000;
    }
  };
  new MutationObserver(look).observe(document.getElementById("messages"), { childList: true });
}"""

# When the page tried to listen (seconds since it was opened). Chance is at its worst.
RECORD_ATTEMPTS = """
  Math.random = () => 0.999;
  window.attempts = [];
  const [realFetch, RealSocket] = [window.fetch, window.WebSocket];
  window.fetch = (address, ...rest) => {
    if (address.includes("/poll?")) attempts.push(performance.now() / 1000);
    return realFetch(address, ...rest);
  };
  window.WebSocket = class extends RealSocket {
    constructor(address) {
      attempts.push(performance.now() / 1000);
      super(address);
    }
  };
"""


@pytest.mark.parametrize("restart", ["HUP", "TERM"])
def test_every_way_to_listen_comes_back_soon(
    gunicorn: Callable[..., GunicornProcess],
    window: Callable[..., Page],
    tmp_path: Path,
    restart: str,
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=3)
    port = server.port
    with run_nginx(tmp_path / "nginx", port) as nginx:
        pages = {
            (front, way): window(f"{url}/rooms/lobby?via={way}")
            for front, url in (("direct", server.url), ("nginx", nginx))
            for way in WAYS
        }
        for page in pages.values():
            page.evaluate(WATCH_SHOWN)
        if restart == "HUP":
            old = set(server.worker_pids())
            server.signal(signal.SIGHUP)
            eventually(
                lambda: len(server.worker_pids()) == 3 and not old & set(server.worker_pids())
            )
            assert server.request("/health").status == 200
        else:
            server.signal(signal.SIGTERM)
            server.wait_exit()
            for page in pages.values():
                page.wait_for_selector("body[data-state=reconnecting]")
            start_chat(
                gunicorn,
                tmp_path / "data",
                workers=3,
                bind=f"127.0.0.1:{port}",
                directory=tmp_path / "2",
            )
        since = time.time()
        say(next(iter(pages.values())), "after the restart")
        late = {}
        for name, page in pages.items():
            wait_said(page, "after the restart")
            late[name] = page.evaluate("window.shown['after the restart']") - since
            assert page.get_attribute("body", "data-way") == name[1]
        # It is less than two seconds; but other things may go on on this machine.
        assert max(late.values()) < 6, late


@pytest.mark.parametrize("way", ["poll", "websocket"])
def test_page_tries_again_soon_however_long_the_server_was_away(
    gunicorn: Callable[..., GunicornProcess],
    window: Callable[..., Page],
    tmp_path: Path,
    way: str,
) -> None:
    server = start_chat(gunicorn, tmp_path / "data", workers=1)
    port = server.port
    page = window(f"{server.url}/rooms/lobby?via={way}", before=RECORD_ATTEMPTS)
    began, before = page.evaluate("[performance.now() / 1000, attempts.length]")
    server.close()
    page.wait_for_selector("body[data-state=reconnecting]")
    say(page, "written while it was away")

    def attempts() -> list[float]:
        made: list[float] = page.evaluate("attempts")
        return made[before:]

    while not (made := attempts()) or made[-1] < began + 8:
        page.wait_for_event("requestfailed")
    for one, following in itertools.pairwise(made):
        # A quarter of the time that it has been away, and the time that a failure takes.
        assert following - one < max((one - began) / 4, 0.25) + 1, made
    start_chat(
        gunicorn, tmp_path / "data", workers=1, bind=f"127.0.0.1:{port}", directory=tmp_path / "2"
    )
    page.wait_for_selector("body[data-state=live]")
    wait_said(page, "written while it was away")
