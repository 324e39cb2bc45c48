"""The page of the user study in a browser: keyboard, touch, resuming, the downloaded file, wide and narrow screens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page, launch, opened  # noqa: F401, launch is the fixture chromium
from conftest import project_config
from playwright.sync_api import expect
from study_runs import make_study

from lorabench.tasks.study_results import read_answers

COUNT = 8


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with project_config():
        return make_study(tmp_path_factory.mktemp("study"))


def start(page: Page, code: str = "P7") -> None:
    page.locator("#code").fill(code)
    page.get_by_role("button", name="Start").click()


def choose(page: Page, key: str) -> None:
    """Answer by a key and wait for the next question or the end."""
    before = page.locator("#count").inner_text()
    page.keyboard.press(key)
    page.wait_for_function(
        "before => document.getElementById('trial').hidden || document.getElementById('count').textContent !== before",
        arg=before,
    )


def finished(page: Page, code: str = "P7") -> dict[str, Any]:
    start(page, code)
    for number in range(COUNT):
        assert page.locator("#count").inner_text() == f"{number + 1} of {COUNT}"
        choose(page, "ArrowLeft" if number % 3 else "ArrowRight")
    return json.loads(page.locator("#text").input_value())


def test_whole_study_by_keyboard(chromium: Browser, study: Path, tmp_path: Path) -> None:
    key = json.loads((study / "key.json").read_text())
    with opened(chromium, study, file="study.html") as page:
        own = finished(page)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download answers").click()
        assert download.value.suggested_filename == "answers-P7.json"
        download.value.save_as(tmp_path / "answers-P7.json")
    assert json.loads((tmp_path / "answers-P7.json").read_text()) == own
    assert read_answers(str(tmp_path), key) == {"P7": own}
    kinds = [key["items"][each["item"]]["kind"] for each in own["answers"]]
    repeats = [each for each in own["answers"] if each["repeat"]]
    assert kinds.count("control") == 2 and len(repeats) == 2
    for again in repeats:
        [first] = [each for each in own["answers"] if each["item"] == again["item"] and not each["repeat"]]
        assert first["left"] != again["left"] and own["answers"].index(again) > own["answers"].index(first) + 1
        assert key["items"][again["item"]]["kind"] == "item"
    assert all(each["seconds"] >= 0 for each in own["answers"])
    chosen = [each["choice"] == each["left"] for each in own["answers"]]
    assert chosen == [bool(number % 3) for number in range(COUNT)]


def test_order_follows_from_code(chromium: Browser, study: Path) -> None:
    seen = []
    for code in ("P7", "P7", "P8"):
        with opened(chromium, study, file="study.html") as page:
            seen.append([(each["item"], each["left"]) for each in finished(page, code)["answers"]])
    assert seen[0] == seen[1] != seen[2]


def test_study_resumes_after_reload(chromium: Browser, study: Path) -> None:
    with opened(chromium, study, file="study.html") as page:
        start(page)
        for _ in range(3):
            choose(page, "ArrowLeft")
        sources = [page.locator(f"#{side} img").get_attribute("src") for side in ("left", "right")]
        page.reload()
        assert page.locator("#count").inner_text() == f"4 of {COUNT}"
        assert [page.locator(f"#{side} img").get_attribute("src") for side in ("left", "right")] == sources
        page.keyboard.press("Backspace")
        assert page.locator("#count").inner_text() == f"3 of {COUNT}"
        for _ in range(COUNT - 2):
            choose(page, "ArrowRight")
        page.reload()
        assert len(json.loads(page.locator("#text").input_value())["answers"]) == COUNT
        page.get_by_role("button", name="Start for another person").click()
        start(page, "")
        assert page.locator("#count").inner_text() == f"1 of {COUNT}"
        code = page.evaluate("Object.entries(localStorage).map(each => JSON.parse(each[1]).participant)[0]")
        assert len(code) == 10


def test_touch_on_phone_without_scrolling(chromium: Browser, study: Path) -> None:
    with opened(chromium, study, 390, 780, file="study.html", touch=True) as page:
        page.locator("#code").fill("phone")
        page.locator("#begin").tap()
        for number in range(COUNT):
            for side in ("left", "right"):
                box = page.locator(f"#{side}").bounding_box()
                assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 780
                assert box["width"] > 150
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            page.locator("#left" if number % 2 else "#right").tap()
            if number < COUNT - 1:
                expect(page.locator("#count")).to_have_text(f"{number + 2} of {COUNT}")
        page.locator("#end").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_laptop_shows_everything_without_scrolling(chromium: Browser, study: Path) -> None:
    with opened(chromium, study, 1280, 720, file="study.html") as page:
        start(page)
        for side in ("left", "right"):
            box = page.locator(f"#{side}").bounding_box()
            assert box and box["y"] + box["height"] <= 720 and box["width"] > 250


def test_second_key_press_does_not_answer_twice(chromium: Browser, study: Path) -> None:
    with opened(chromium, study, file="study.html") as page:
        start(page)
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#count")).to_have_text(f"2 of {COUNT}")
        page.wait_for_timeout(300)
        assert page.locator("#count").inner_text() == f"2 of {COUNT}"
