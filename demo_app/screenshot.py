"""Take the README's picture of the chat: `python demo_app/screenshot.py [file.png]`.

Starts the chat on data of its own, lets some people talk in real browser windows
(Playwright with the system's Chromium, or the one named by CHROMIUM), and puts a
wide window and a phone side by side. Needs what the tests need.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "docs" / "chat.png"
BIND = "127.0.0.1:8765"
URL = f"http://{BIND}"

TALK = [
    ("Grace", "Morning! The new release is on all four workers."),
    ("Linus", "I saw the pid in the footer change while I was typing and nothing else."),
    ("Ada", "That was the reload. Long polls are answered at once and come back to a new worker."),
    ("Ada", "No message lost: each client says what it has seen, and gets all that follows."),
    ("Grace", "And if a worker is killed?"),
    ("Linus", "kill -9, just now. You are reading this."),
]

# The frame around the two windows; it is never part of the chat.
FRAME = """
<style>
  * {{ box-sizing: border-box }}
  body {{ margin: 0; padding: 44px 48px; display: flex; gap: 40px; align-items: center;
          background: linear-gradient(125deg, #dfe9fb, #eef2f9 55%, #e4dff5) }}
  img {{ display: block; border-radius: 14px;
         box-shadow: 0 18px 50px #1b2a4a3d, 0 2px 8px #1b2a4a26 }}
  img + img {{ border-radius: 34px; border: 8px solid #10141b }}
</style>
<img src="data:image/png;base64,{wide}" width="1040" height="680">
<img src="data:image/png;base64,{phone}" width="346" height="696">
"""


def start_chat(data: Path) -> subprocess.Popen[bytes]:
    gunicorn = Path(sysconfig.get_path("scripts")) / "gunicorn"
    command = [sys.executable, str(gunicorn), "-c", str(HERE / "gunicorn.conf.py")]
    environ = {**os.environ, "CHAT_DATA": str(data), "CHAT_BIND": BIND, "WEB_CONCURRENCY": "4"}
    environ.pop("CHAT_REDIS_URL", None)
    chat = subprocess.Popen(command, env=environ)
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{URL}/health", timeout=5):
                return chat
        except OSError:
            if chat.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def open_window(browser: Browser, name: str, way: str, **options: Any) -> Page:
    context = browser.new_context(locale="en-GB", device_scale_factor=2, **options)
    page = context.new_page()
    page.goto(f"{URL}/rooms/lobby?via={way}")
    page.wait_for_selector("body[data-state=live]")
    page.evaluate("document.getElementById('rename').click()")
    page.fill("#name", name)
    page.press("#name", "Enter")
    page.wait_for_selector("#name-dialog", state="hidden")
    return page


def say(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.locator(".message:not(.pending) .bubble", has_text=text).wait_for()


def take(browser: Browser, chat: subprocess.Popen[bytes]) -> bytes:
    windows = {
        "Ada": open_window(browser, "Ada", "auto", viewport={"width": 1040, "height": 680}),
        "Linus": open_window(
            browser, "Linus", "poll", viewport={"width": 330, "height": 680}, color_scheme="dark"
        ),
        "Grace": open_window(browser, "Grace", "sse"),
    }
    for number, (name, text) in enumerate(TALK):
        if number == 2:
            chat.send_signal(signal.SIGHUP)
        if number == 5:
            # As it says: the worker that Linus is connected to.
            os.kill(int(windows["Linus"].inner_text("#pid")), signal.SIGKILL)
        say(windows[name], text)
    for page in windows.values():
        page.locator(".bubble", has_text=TALK[-1][1]).wait_for()
        page.wait_for_selector("body[data-state=live]")
    # Names of the people, and nobody who has left.
    for page in windows.values():
        page.locator("#people .person", has_text="Linus").wait_for(state="attached")
    windows["Ada"].wait_for_timeout(6500)
    windows["Grace"].locator("#text").press_sequentially("Nice")
    windows["Ada"].locator("#typing", has_text="Grace is typing").wait_for()
    windows["Linus"].locator("#typing", has_text="Grace is typing").wait_for()
    pictures = {
        name: base64.b64encode(windows[person].screenshot()).decode()
        for name, person in (("wide", "Ada"), ("phone", "Linus"))
    }
    page = browser.new_context(
        device_scale_factor=1.25, viewport={"width": 1530, "height": 784}
    ).new_page()
    page.set_content(FRAME.format(**pictures))
    return page.screenshot(full_page=True)


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        chat = start_chat(Path(directory))
        try:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
            )
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(take(browser, chat))
            browser.close()
        finally:
            chat.terminate()
            chat.wait(30)


if __name__ == "__main__":
    main()
