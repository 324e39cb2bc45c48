"""The distribution's Chromium, driven by Playwright; whoever imports this is skipped where either is missing."""

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
def opened(browser: Browser, folder: Path, width: int = 1280, height: int = 900, at: str = "") -> Iterator[Page]:
    """The report of a folder; fails at the end on any message of the console, error, or request beside the file.

    at: of the address, "#sort=clip_t".
    """
    page = browser.new_page(viewport={"width": width, "height": height})
    address = (folder / "report.html").resolve().as_uri()
    page.set_default_timeout(5000)
    said: list[str] = []
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}") or dialog.dismiss())
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.split("#")[0]))
    page.goto(address + at)
    yield page
    page.close()
    assert not said
    assert {url for url in asked if not url.startswith("data:")} == {address}
