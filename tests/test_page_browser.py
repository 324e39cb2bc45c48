"""report.html in a browser: mouse, keyboard, narrow screen, and 2,000 images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page, launch, opened  # noqa: F401, launch is the fixture chromium
from made_run import PAIRS, make_run

from lorabench.report import write_joint_report, write_report

NASTY = "<img src=x onerror=alert(1)>"
MATRIX = "#matrix-images .shot"
DECODED = "[...document.images].filter(image => image.complete && image.naturalWidth).length"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_joint_report([make_run(folder / method, method) for method in ("direct", "duolora", "ziplora")], folder)
    return folder


def rows(page: Page) -> list[str]:
    return page.locator("#scores-table tbody tr:not(.reported)").evaluate_all(
        "rows => rows.map(row => row.dataset.row)"
    )


def column(page: Page, number: int) -> list[float]:
    texts = page.locator(f"#scores-table tbody tr:not(.reported) td:nth-of-type({number})").evaluate_all(
        "cells => cells.map(cell => cell.firstChild?.textContent)"
    )
    return [float(text.replace("−", "-")) for text in texts if text]


def hover(page: Page, selector: str) -> None:
    """Scroll first, because scrolling hides the hint that hovering shows."""
    page.locator(selector).first.scroll_into_view_if_needed()
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.locator(selector).first.hover()


def close_image(page: Page) -> None:
    """Close the image and wait for the close event, in which the page restores the focus."""
    page.keyboard.press("Escape")
    page.wait_for_url(lambda address: "open=" not in address, wait_until="commit")


def header(page: Page, name: str) -> Any:
    return page.locator(f'#scores-table th[data-column="{name}"]')


def test_sorting_by_mouse(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep) as page:
        plain = rows(page)
        assert plain == ["base", "content_only", "style_only", "direct", "duolora", "ziplora", "oracle"]
        header(page, "clip_t").get_by_role("button").click()
        assert header(page, "clip_t").get_attribute("aria-sort") == "descending"
        assert column(page, 3) == sorted(column(page, 3), reverse=True) and rows(page)[0] == "oracle"
        below = page.locator("#scores-table tbody tr.reported").evaluate_all(
            "rows => rows.map(row => { let at = row; while (at.matches('.reported')) at = at.previousElementSibling;"
            " return [at.dataset.row, row.dataset.of]; })"
        )
        assert below and all(own == of for own, of in below)
        header(page, "clip_t").get_by_role("button").click()
        assert header(page, "clip_t").get_attribute("aria-sort") == "ascending" and rows(page)[-1] == "oracle"
        header(page, "clip_t").get_by_role("button").click()
        assert header(page, "clip_t").get_attribute("aria-sort") is None and rows(page) == plain


def test_sorting_by_keyboard(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep) as page:
        header(page, "method").get_by_role("button").focus()
        page.keyboard.press("Enter")
        assert rows(page) == sorted(rows(page))
        assert "Sorted by method, ascending." in page.locator("#table-status").inner_text()
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert header(page, "dino/content").get_attribute("aria-sort") == "descending"
        assert column(page, 1) == sorted(column(page, 1), reverse=True)


def test_differences_ranks_and_costs(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep) as page:
        page.get_by_role("radio", name="differences").check(force=True)
        assert rows(page) == ["direct", "duolora", "ziplora"]
        text = page.locator('tr[data-row="duolora"]').inner_text()
        assert "+0.1" in text and "p" in text
        assert "not separated" in page.locator('tr[data-row="ziplora"]').inner_text()
        page.keyboard.press("ArrowRight")  # to the next radio button
        assert page.get_by_role("radio", name="ranks").is_checked()
        assert column(page, 3)[1] == 1
        page.keyboard.press("ArrowRight")
        assert rows(page) == ["direct", "duolora", "ziplora"]
        assert "12 288" in page.locator('tr[data-row="duolora"]').inner_text()
        header(page, "merge_seconds").get_by_role("button").click()
        assert header(page, "merge_seconds").get_attribute("aria-sort") == "ascending"


def test_filters_act_on_everything(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep) as page:
        for name, value in (("row", "duolora"), ("content", "mug_1")):
            page.locator(f'[data-filter="{name}"] summary').click()
            page.get_by_label(value, exact=True).first.uncheck()
            page.keyboard.press("Escape")
        assert "duolora" not in rows(page) and "ziplora" in rows(page)
        data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
        bird = [pair["content"] == "bird_1" for pair in data["pairs"]]
        own = data["rows"][3]["pairs"]["clip_t"]
        mean = sum(own[str(at)][0] for at, kept in enumerate(bird) if kept) / sum(bird)
        assert column(page, 3)[3] == pytest.approx(mean, abs=6e-4)
        assert "2 of 4 pairs" in page.locator("#table-status").inner_text()
        for place in ("#matrix-images", "#worst-images", "#apart-images"):
            shown = page.locator(f"{place} .shot").evaluate_all(
                "all => all.map(shot => shot.getAttribute('aria-label'))"
            )
            assert not any("mug_1" in name or "duolora" in name for name in shown)
            assert shown or place == "#apart-images"
        marks = page.locator("#tradeoff-plot .mark").evaluate_all("marks => marks.map(mark => mark.dataset.row)")
        assert marks == ["ziplora", "direct"] or set(marks) == {"direct", "ziplora"}
        assert page.locator("#losses ~ details:visible summary").all_inner_texts() == [
            "direct seed 0",
            "ziplora seed 0",
        ]
        page.get_by_role("button", name="show all").click()
        assert "duolora" in rows(page) and page.locator("#table-status").inner_text() == ""


def test_image_of_every_cell_is_switched_at_once(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep) as page:
        labels = "all => all.filter(shot => shot.dataset.image).map(shot => shot.getAttribute('aria-label'))"
        before = page.locator(MATRIX).evaluate_all(labels)
        assert len(before) == 7 * 4 and all("image 0" in label for label in before)
        page.locator(f"{MATRIX}[data-image]").first.scroll_into_view_if_needed()
        first = page.locator(f"{MATRIX}[data-image] img").first
        source = first.get_attribute("src")
        page.get_by_role("button", name="next image").click()
        after = page.locator(MATRIX).evaluate_all(labels)
        assert after == [label.replace("image 0", "image 1") for label in before]
        assert first.get_attribute("src") != source
        page.get_by_role("button", name="previous image").click()
        page.get_by_role("button", name="previous image").click()
        assert page.locator('[data-choice="image"]').input_value() == "2"


def test_image_opens_and_arrows_step(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep) as page:
        shot = page.locator('#matrix-images .shot[aria-label^="mug_1 in halftone_1, direct"]')
        hover(page, '#matrix-images .shot[aria-label^="mug_1 in halftone_1, direct"]')
        assert "clip_t" in page.locator("#tip").inner_text()
        shot.click()
        title = page.locator("#title")
        assert title.inner_text() == "mug_1 in halftone_1, direct" and page.locator("#tip").is_hidden()
        scores = page.locator("#scores-of-image").inner_text().split()
        data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
        image = data["images"][int(shot.get_attribute("data-image") or "")]
        of = zip(data["scored"], image["scores"], strict=True)
        assert scores == [text for name, value in of for text in (name, f"{value:.3f}")]
        assert page.locator("#compare figure").count() == 3  # both references and the oracle
        names = [title.inner_text()]
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
            page.keyboard.press(key)
            names.append(title.inner_text())
        assert names[1] == names[3] and len(set(names)) == 3
        assert page.locator("#large").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
        close_image(page)
        assert page.locator("#view").is_hidden()
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(names[3])


def test_files_next_to_large_page_are_shown(chromium: Browser, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lorabench.report.embed.BUDGET", 1)
    monkeypatch.setattr("lorabench.report.embed.BATCH", 1)
    write_report(make_run(tmp_path / "run", "direct", images=1))
    with opened(chromium, tmp_path / "run", images=True) as page:
        page.locator(f"{MATRIX}[data-image]").first.scroll_into_view_if_needed()
        first = page.locator(f"{MATRIX}[data-image] img").first
        assert (first.get_attribute("src") or "").startswith("./images/")
        assert first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64


def test_matrix_by_keyboard(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep) as page:
        assert page.locator('#matrix-images .shot[tabindex="0"]').count() == 1
        page.locator('[data-choice="turn"]').focus()
        page.keyboard.press("Tab")
        focused = "document.activeElement.getAttribute('aria-label')"
        assert page.evaluate(focused) == "content reference 1 of mug_1"
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert page.evaluate(focused) == "mug_1 in neon_1, base, image 0, seed 0"
        for _ in range(3):  # until the page scrolls
            page.keyboard.press("ArrowDown")
            page.wait_for_timeout(60)
        assert "dino/content" in page.locator("#tip").inner_text()  # focus shows the same hint as hovering
        for _ in range(3):
            page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        assert page.locator("#title").inner_text() == "mug_1 in neon_1, base"
        close_image(page)
        page.keyboard.press("Tab")  # all images are one tab stop
        assert page.evaluate("document.activeElement.closest('#matrix-images')") is None


def test_view_is_shared_by_its_address(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep) as page:
        header(page, "clip_t").get_by_role("button").click()
        page.locator('[data-filter="row"] summary').click()
        page.get_by_label("base", exact=True).uncheck()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="next image").click()
        page.locator('[data-choice="x"]').select_option("subject_r1")
        page.locator('#matrix-images .shot[aria-label^="mug_1 in neon_1, direct"]').click()
        address, shown = page.url, rows(page)
        page.reload()
        again = (rows(page), page.locator("#title").inner_text(), page.locator('[data-choice="x"]').input_value())
        assert again == (shown, "mug_1 in neon_1, direct", "subject_r1")
        assert "image 1" in page.locator("#facts").inner_text()
        assert header(page, "clip_t").get_attribute("aria-sort") == "descending"
        at = address[address.index("#") :]
    with opened(chromium, sweep, at=at) as page:
        assert rows(page) == shown
    with opened(chromium, sweep, at="#x=gone&image=99&show=nothing&row=unknown") as page:  # a URL of another report
        assert len(rows(page)) == 7 and page.locator('[data-choice="x"]').input_value() == "dino/content"


def test_method_leads_to_its_config(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep) as page:
        page.locator('#scores-table tr[data-row="duolora"] th a').click()
        details = page.locator("#run-1")
        assert details.get_attribute("open") is not None and "name: duolora" in details.inner_text()
        assert page.evaluate("document.activeElement.textContent") == "duolora seed 0"


def test_plots_name_their_points(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep) as page:
        hover(page, '#tradeoff-plot .mark[data-row="ziplora"] .dot')
        assert page.locator("#tip").inner_text().startswith("ziplora\ndino/content")
        assert page.locator("#cost-plot .mark").count() == 3
        page.locator('[data-choice="frames"]').select_option("1")
        assert page.locator("#tradeoff-plot .mark").count() == 7


def test_on_phone_nothing_sticks_out(chromium: Browser, sweep: Path) -> None:
    with opened(chromium, sweep, 390, 844) as page:
        for summary in page.locator("main summary").all():
            summary.click()
        for show in ("scores", "differences", "ranks", "costs"):
            page.get_by_role("radio", name=show).check(force=True)
            assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.locator('[data-filter="row"] summary').click()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.keyboard.press("Escape")
        page.locator(f"{MATRIX}[data-image]").first.click()
        box = page.locator("#view").bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_run_of_one_method(chromium: Browser, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=PAIRS[:1], images=1)
    write_report(folder)
    with opened(chromium, folder) as page:
        assert rows(page) == ["base", "content_only", "style_only", "duolora", "oracle"]
        assert page.get_by_role("radio").evaluate_all("all => all.map(radio => radio.value)") == ["scores", "costs"]
        assert page.locator("#tradeoff-plot .mark").count() == 5
        links = page.locator("#how ~ details a").evaluate_all("all => all.map(link => link.getAttribute('href'))")
        assert "./config.yaml" in links


def test_hostile_names_do_nothing(chromium: Browser, tmp_path: Path) -> None:
    """`opened` fails on any request, dialog or console message."""
    pairs = [(NASTY.replace("/", ""), "</script><script>alert(2)</script>".replace("/", "")), ("a'b\"c", "&amp;")]
    methods = ["direct", NASTY + "__proto__"]
    runs = [make_run(tmp_path / str(number), method, pairs=pairs, images=2) for number, method in enumerate(methods)]
    (runs[0] / "config.yaml").write_text("</pre><script>alert(3)</script>")
    write_joint_report(runs, tmp_path)
    with opened(chromium, tmp_path) as page:
        assert methods[1] in rows(page)
        hover(page, f"{MATRIX}[data-image]")
        page.locator(f"{MATRIX}[data-image]").first.click()
        assert pairs[0][0] in page.locator("#title").inner_text()
        close_image(page)
        for summary in page.locator("main summary").all():
            summary.click()
        page.locator('[data-filter="row"] summary').click()
        page.locator(".only").last.click(force=True)
        page.reload()
        assert (
            page.locator("script").count() == 3
            and page.evaluate("document.querySelectorAll('img[onerror]').length") == 0
        )


def test_two_thousand_images(chromium: Browser, tmp_path: Path) -> None:
    """Only images near the viewport are loaded, before and after scrolling."""
    pairs = [(f"content_{i}", f"style_{j}") for i in range(5) for j in range(5)]
    folder = make_run(tmp_path / "run", pairs=pairs, images=16)
    write_report(folder)
    with opened(chromium, folder) as page:
        assert page.evaluate("JSON.parse(document.getElementById('data').textContent).images.length") == 2000
        page.locator("#matrix-images").scroll_into_view_if_needed()
        assert page.evaluate("document.images.length") < 200
        start, seen = time.perf_counter(), 0
        for at in range(0, page.evaluate("document.documentElement.scrollHeight"), 800):
            page.evaluate(f"scrollTo(0, {at})")
            page.wait_for_timeout(20)
            seen = max(seen, page.evaluate(DECODED))
            assert page.evaluate("document.images.length") < 300
        assert seen > 20 and time.perf_counter() - start < 10
        page.locator("#strips summary").last.click()
        page.locator("#strips .shot").last.scroll_into_view_if_needed()
        page.locator("#strips .shot").last.click()
        assert page.locator("#count").inner_text() == "84 of 84"  # 16 images in each of 5 rows, and 4 references
