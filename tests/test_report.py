"""The report, on a small run folder made here: values against pandas, hostile names, self-containedness."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_run import METRICS, PAIRS, make_run, paint
from PIL import Image, ImageFont

from lorabench.data import microworld as mw
from lorabench.errors import UserError
from lorabench.report import figures, write_joint_report, write_report
from lorabench.report.__main__ import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "duolora-none-s0")
    write_report(folder)
    return folder


class Links(HTMLParser):
    """Collects what a page would fetch, and which elements it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


def test_table_equals_plain_pandas(run: Path) -> None:
    scores = pd.read_parquet(run / "scores.parquet")
    table = pd.read_csv(run / "table.csv", index_col="method")
    assert list(table.index) == ["base", "content_only", "style_only", "duolora", "oracle"]
    images = scores.pivot_table("value", ["method", "content", "style", "image"], "metric")
    pairs = images.reset_index().pivot_table(list(METRICS), ["method", "content", "style"])
    expected = pairs.reset_index().pivot_table(list(METRICS), "method")
    for method in table.index:
        for metric in METRICS:
            mean = expected.at[method, metric]
            assert table.at[method, metric] == pytest.approx(mean, abs=1e-5)
            assert table.at[method, f"{metric}_low"] < mean < table.at[method, f"{metric}_high"]
    assert table.loc["duolora", "learned_parameters"] == 12288
    assert pd.isna(table.loc["oracle", "merge_seconds"])


def test_macro_average_gives_each_pair_the_same_weight(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    scores = pd.read_parquet(folder / "scores.parquet")
    few = (scores["content"] == "mug_1") | (scores["image"] == 0)  # bird pairs keep one image of three
    lopsided = scores[few]
    lopsided.to_parquet(folder / "scores.parquet")
    write_report(folder)
    rows = lopsided.query("method == 'duolora' and metric == 'clip_t'")
    expected = np.mean(rows.pivot_table("value", ["content", "style"]).to_numpy())
    table = pd.read_csv(folder / "table.csv", index_col="method")
    assert table.loc["duolora", "clip_t"] == pytest.approx(expected, abs=1e-5)
    assert np.mean(rows["value"].to_numpy()) != pytest.approx(expected, abs=1e-3)  # else this test would see nothing


def test_markdown_names_backbones_and_warns_of_micro_scorers(run: Path) -> None:
    text = (run / "table.md").read_text()
    assert "dino@micro" in text and "must not be put beside" in text
    assert text.splitlines()[0].startswith("| method | dino/content | clip_i/style | clip_t | subject_r1 |")


def test_reports_repeat_exactly(run: Path) -> None:
    names = ["table.md", "table.csv", "grid.png", "report.html"]
    before = [(run / name).read_bytes() for name in names]
    write_report(run)
    assert [(run / name).read_bytes() for name in names] == before


def test_page_is_self_contained(run: Path) -> None:
    page = (run / "report.html").read_text()
    found = Links(page).found
    assert found and {link.split(",")[0] for link in found} == {"data:", "data:image/png;base64"}
    assert not re.search(r"url\(|@import|https?://", page)


def test_page_shows_every_image_once_with_scores(run: Path) -> None:
    page = (run / "report.html").read_text()
    section = page[page.index('id="images"') :]
    assert section.count('class="shot"') == len(list(run.glob("images/*/*/*.png")))
    assert "subject_r1" in section


def test_images_of_several_scenes_are_told_apart(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=[("mug_1", "ink_1")], images=2)
    scores = pd.read_parquet(folder / "scores.parquet")
    scenes = scores["image"].map({0: "a sks mug in the snow", 1: "a wet sks mug"})
    scores.assign(prompt=scenes).to_parquet(folder / "scores.parquet")
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert 'data-name="mug_1 in ink_1, duolora 1: a wet sks mug"' in page
    assert "a sks mug in the snow<br>a wet sks mug" in page


def test_one_pair_has_no_interval_and_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=[("mug_1", "ink_1")])
    write_report(folder)
    text = (folder / "table.md").read_text()
    assert "Of one pair (" in text and "[" not in text and "95 %" not in text


def test_a_backbone_stands_once_above_its_column(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    scores = pd.read_parquet(folder / "scores.parquet")
    other = scores[scores["metric"] == "dino/content"].assign(backbone="dino@vits8")
    pd.concat([scores, other]).to_parquet(folder / "scores.parquet")
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert '<th scope="col">dino/content<small>dino@vits8</small></th>' in page


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    nasty = """<script>alert('x')<|>"&"""
    folder = make_run(tmp_path / "run", pairs=[(nasty, "'><img src=x onerror=alert(1)>")])
    (folder / "config.yaml").write_text("</pre><script>alert(2)</script>")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"] = {"</dl><iframe>": "<b>", "torch": "<i>"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    plain = make_run(tmp_path / "plain", pairs=[("a", "b")])
    write_report(folder)
    write_report(plain)
    hostile, harmless = (Links((path / "report.html").read_text()) for path in (folder, plain))
    assert hostile.tags == harmless.tags
    assert all(link.startswith("data:") for link in hostile.found)


def test_grid_has_a_row_a_pair(run: Path) -> None:
    with Image.open(run / "grid.png") as grid:
        assert grid.width > grid.height > 4 * 100
        colours = {colour for _, colour in grid.convert("RGB").getcolors(1 << 20) or []}
    shown = [("content", "mug_1", 0), ("style", "neon_1", 0), ("duolora", "bird_1", "neon_1", 2)]
    shown += [("oracle", "mug_1", "neon_1", 0), ("content_only", "mug_1", "halftone_1", 0)]
    for names in shown:
        assert paint(*names).getpixel((0, 0)) in colours
    assert paint("oracle", "mug_1", "neon_1", 1).getpixel((0, 0)) not in colours  # the oracle is shown once


def test_joint_report_compares_with_direct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / "direct", "direct"), make_run(tmp_path / "duolora")]
    runs.append(make_run(tmp_path / "ablated", "duolora", "no_cycle"))
    assert main([*map(str, runs), "--out", str(tmp_path / "joint")]) == 0
    table = pd.read_csv(tmp_path / "joint" / "table.csv", index_col="method")
    methods = ["direct", "duolora", "duolora no_cycle"]
    assert list(table.index) == ["base", "content_only", "style_only", *methods, "oracle"]
    write_report(runs[1])
    alone = pd.read_csv(runs[1] / "table.csv", index_col="method")
    pd.testing.assert_series_equal(table.loc["base"].dropna(), alone.loc["base"].dropna())
    assert "~" not in capsys.readouterr().out  # 0.1 apart, noise 0.01: told apart on four pairs


def test_not_separated_is_marked(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "direct", "direct"), make_run(tmp_path / "duolora")]
    scores = pd.read_parquet(runs[1] / "scores.parquet")
    scores.loc[(scores["method"] == "duolora") & (scores["metric"] == "clip_t"), "value"] -= 0.1
    scores.to_parquet(runs[1] / "scores.parquet")
    write_joint_report(runs, tmp_path / "joint")
    lines = (tmp_path / "joint" / "table.md").read_text().splitlines()
    cells = next(line for line in lines if line.startswith("| duolora")).split("|")[2:6]
    assert [cell.strip().endswith("~") for cell in cells] == [False, False, True, False]
    assert "not separated from direct" in (tmp_path / "joint" / "report.html").read_text()


def test_pictures_of_the_world_are_embedded_as_they_are(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=[("mug_1", "halftone_1")], images=1)
    pose = mw.sample_pose(np.random.default_rng(0))
    oracle = folder / "images" / "oracle" / "mug_1+halftone_1" / "00.png"
    Image.fromarray(mw.render(mw.subject("mug_1"), mw.style("halftone_1"), pose)).save(oracle)
    write_report(folder)
    assert base64.b64encode(oracle.read_bytes()).decode() in (folder / "report.html").read_text()


def test_large_images_are_reduced_on_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=[("a", "b")], images=1)
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / "duolora" / "a+b" / "00.png")
    write_report(folder)
    assert (folder / "report.html").stat().st_size < 500_000


@pytest.mark.parametrize("lost", ["scores.parquet", "manifest.json", "images/oracle/mug_1+neon_1/01.png"])
def test_incomplete_folder_is_one_line(tmp_path: Path, lost: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    (folder / lost).unlink()
    assert main([str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("broken", ["scores.parquet", "manifest.json"])
def test_a_broken_file_is_one_line(tmp_path: Path, broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    (folder / broken).write_bytes((folder / broken).read_bytes()[:100])
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "broken" in error


def test_a_place_that_is_a_file_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--out", str(run / "table.md")]) == 2
    assert "table.md is a file; type --out" in capsys.readouterr().err


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "direct", "direct"), make_run(tmp_path / "duolora")]
    scores = pd.read_parquet(runs[1] / "scores.parquet")
    scores.replace("dino@micro", "dino@vits16").to_parquet(runs[1] / "scores.parquet")
    with pytest.raises(UserError, match="dino@micro and dino@vits16"):
        write_joint_report(runs, tmp_path / "joint")
    scores.assign(world="2").to_parquet(runs[1] / "scores.parquet")
    with pytest.raises(UserError, match="differ in world"):
        write_joint_report(runs, tmp_path / "joint")
    assert main([*map(str, runs)]) == 2


GROUPS = [("mug_1+cat_1", "ink_1"), ("mug_1+cat_1+bicycle_3+duck_12", "ink_1+watercolor_2")]


def test_several_subjects_in_one_picture(tmp_path: Path) -> None:
    """Their names are long, and the world has no truth of them."""
    folder = make_run(tmp_path / "run", pairs=GROUPS, oracle=False)
    write_report(folder)
    table = pd.read_csv(folder / "table.csv", index_col="method")
    assert list(table.index) == ["base", "content_only", "style_only", "duolora"]
    page = (folder / "report.html").read_text()
    assert "mug_1+cat_1 in ink_1</th>" in page  # of its losses
    assert "mug_1+<wbr>cat_1+<wbr>bicycle_3+<wbr>duck_12<span>in ink_1+<wbr>watercolor_2</span>" in page
    assert page[page.index('id="images"') :].count('class="shot"') == len(list(folder.glob("images/*/*/*.png")))
    with Image.open(folder / "grid.png") as grid:
        colours = {colour for _, colour in grid.convert("RGB").getcolors(1 << 20) or []}
    for names in (("content", GROUPS[1][0], 0), ("duolora", *GROUPS[1], 2)):
        assert paint(*names).getpixel((0, 0)) in colours


def test_long_names_stay_beside_the_pictures_of_the_grid() -> None:
    assert figures.wrap("mug_1", 168, 17) == ["mug_1"]
    for text, size in ((GROUPS[1][0], 17), (f"in {GROUPS[1][1]}", 15), ("grey_sloth_plushie+colorful_sneaker", 17)):
        lines = figures.wrap(text, 168, size)
        assert "".join(lines) == text
        fonts = [figures.fit(line, 168, size) for line in lines]
        assert all(font.getlength(line) <= 168 for line, font in zip(lines, fonts, strict=True))
        assert all(isinstance(font, ImageFont.FreeTypeFont) and font.size >= 14 for font in fonts)  # can be read


def test_runs_of_different_pairs_side_by_side(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "one" / "direct-none-s0", "direct"),
        make_run(tmp_path / "one" / "duolora-none-s0", pairs=PAIRS[:1]),
        make_run(tmp_path / "two" / "duolora-none-s0", pairs=GROUPS, oracle=False),
        make_run(tmp_path / "two" / "ziplora-none-s0", "ziplora", pairs=GROUPS, oracle=False),
    ]
    write_joint_report(runs, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "Mean over 2 to 6 pairs" in text and "Not all rows average over the same pairs" in text
    assert "~" not in text  # a pair or none in common with direct: nothing to tell apart
    page = (tmp_path / "report.html").read_text()
    headings = re.findall("Losses of the merges: (.*?)</h2>", page)
    twice = [f"duolora seed 0 ({name}/duolora-none-s0)" for name in ("one", "two")]
    assert headings == ["direct seed 0", *twice, "ziplora seed 0"]
    section = page[page.index('id="images"') :]
    images = {path.relative_to(run).as_posix() for run in runs for path in run.glob("images/*/*/*.png")}
    assert section.count('class="shot"') == len(images)


def test_rows_of_the_same_pairs_need_no_warning(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "direct", "direct"), make_run(tmp_path / "seed1", "direct", seed=1)]
    runs.append(make_run(tmp_path / "duolora"))
    write_joint_report(runs, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "Mean over 4 pairs (12 to 24 images a row" in text and "same pairs" not in text
