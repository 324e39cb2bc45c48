"""Chromium of the operating system, driven by Playwright; modules that import this are skipped if either is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium here", allow_module_level=True)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip


@pytest.fixture(scope="module", name="chromium")
def launch() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, folder: Path, width: int = 1280, height: int = 900, at: str = "", file: str = "report.html",
    touch: bool = False, images: bool = False,
) -> Iterator[Page]:  # fmt: skip
    """Open a folder's report; fail at the end on any console message, error, dialog, or request for another file.

    Args:
        at: End of the URL, such as "#sort=clip_t".
        file: Name of the page.
        touch: Have a touch screen.
        images: Allow requests for images in the folder, as of a large page.
    """
    page = browser.new_page(viewport={"width": width, "height": height}, has_touch=touch)
    address = (folder / file).resolve().as_uri()
    page.set_default_timeout(5000)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: messages.append(f"error: {error}"))
    page.on("dialog", lambda dialog: messages.append(f"dialog: {dialog.message}") or dialog.dismiss())
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url.split("#")[0]))
    page.goto(address + at)
    yield page
    page.close()
    assert not messages
    others = {url for url in requests if not url.startswith("data:")} - {address}
    beside = folder.resolve().as_uri() + "/"
    assert not others or (images and all(url.startswith(beside) and url.endswith(".png") for url in others))
