"""The report, on a small run folder made here: values against pandas, hostile names, self-containedness."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lorabench.data import microworld as mw
from lorabench.errors import UserError
from lorabench.report import write_joint_report, write_report
from lorabench.report.__main__ import main

PAIRS = [("mug_1", "halftone_1"), ("mug_1", "neon_1"), ("bird_1", "halftone_1"), ("bird_1", "neon_1")]
QUALITY = {"base": 0.2, "content_only": 0.4, "style_only": 0.35, "direct": 0.5, "duolora": 0.6, "oracle": 0.9}
METRICS = {
    "dino/content": "dino@micro",
    "clip_i/style": "clip@micro",
    "clip_t": "clip@micro",
    "subject_r1": "dino@micro",
}


def paint(*names: object) -> Image.Image:
    """A flat colour that belongs to the names."""
    colour = np.random.default_rng([ord(c) for c in repr(names)]).integers(40, 230, 3)
    return Image.new("RGB", (64, 64), tuple(int(c) for c in colour))


def make_run(folder: Path, method: str = "duolora", ablation: str = "none", pairs=PAIRS, images: int = 3) -> Path:
    """A finished run as the pipeline leaves it, with made-up scores."""
    rows = []
    for row in ("base", "content_only", "style_only", method, "oracle"):
        for content, style in pairs:
            for image in range(images):
                path = folder / "images" / row / f"{content}+{style}" / f"{image:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                paint(row, content, style, image).save(path)
                for metric, backbone in METRICS.items():
                    # the same pair and image are hard for every row: what pairing takes out
                    shared = np.random.default_rng([ord(c) for c in content + style + metric] + [image])
                    own = np.random.default_rng([ord(c) for c in row + ablation + content + style + metric] + [image])
                    for reference in range(1 if metric == "clip_t" else 2):
                        value = QUALITY[row] + 0.1 * shared.normal() + 0.01 * own.normal() + 0.01 * reference
                        rows.append(
                            {
                                "dataset": "microworld",
                                "world": "1",
                                "content": content,
                                "style": style,
                                "prompt": f"a sks {content} in szn style",
                                "seed": 0,
                                "image": image,
                                "method": row,
                                "ablation": ablation if row == method else "none",
                                "model": "micro",
                                "metric": metric,
                                "backbone": backbone,
                                "role": metric.split("/")[-1],
                                "reference": str(reference),
                                "value": value,
                                "version": "1",
                            }
                        )
    pd.DataFrame(rows).to_parquet(folder / "scores.parquet")
    for role, names in zip(("content", "style"), zip(*pairs, strict=True), strict=True):
        for name in set(names):
            (folder / "references" / role / name).mkdir(parents=True)
            for i in range(2):
                paint(role, name, i).save(folder / "references" / role / name / f"{i}.png")
    losses = {"total": list(np.geomspace(1, 0.1, 100)), "cycle": list(np.geomspace(0.3, 0.02, 100))}
    manifest = {
        "method": method,
        "ablation": ablation,
        "dataset": "microworld",
        "model": "micro",
        "seed": 0,
        "costs": {"learned_parameters": 12288, "merge_seconds": 11.4, "seconds_per_image": 0.31},
        "timings": {"personalise": 62.0, "merge": 45.6, "generate": 21.0, "score": 6.0},
        "versions": {"lorabench": "0.1.0", "torch": "2.15.0"},
        "losses": {f"{content}+{style}": losses for content, style in pairs},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(f"method:\n  name: {method}\nseed: 0\n")
    return folder


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
