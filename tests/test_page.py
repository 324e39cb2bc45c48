"""Data and text of report.html without a browser: contents, no network requests, escaped names."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_run import METRICS, PAIRS, make_run
from PIL import Image

from lorabench.base import UserError
from lorabench.data import microworld as mw
from lorabench.report import write_joint_report, write_report

NASTY = """<script>alert('x')</script><|>"&"""
GROUPS = [("mug_1+cat_1", "ink_1"), ("mug_1+cat_1+bicycle_3+duck_12", "ink_1+watercolor_2")]


class Parsed(HTMLParser):
    """Collect a page's elements, its links and resources, and the text of its scripts by id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self.scripts: dict[str, str] = {}
        self.within: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if own.get("http-equiv") == "Content-Security-Policy":
            self.policy = own["content"] or ""
        if tag == "script":
            self.within = own.get("id") or ""
            self.scripts[self.within] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self.within = None

    def handle_data(self, data: str) -> None:
        if self.within is not None:
            self.scripts[self.within] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts["data"])

    @property
    def pictures(self) -> list[bytes]:
        return [base64.b64decode(line.split(",")[1]) for line in self.scripts["pictures"].split("\n")]


def parsed(folder: Path) -> Parsed:
    return Parsed((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("page") / "duolora-none-s0")
    write_report(folder)
    return folder


def test_it_fetches_nothing(run: Path) -> None:
    page = parsed(run)
    outside = [link for link in page.links if not link.startswith(("data:", "#", "./"))]
    assert not outside and not re.search(
        r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", (run / "report.html").read_text()
    )
    assert "default-src 'none'" in page.policy and "unsafe" not in page.policy


def test_links_lead_to_files_that_are_there(run: Path, tmp_path: Path) -> None:
    files = [link for link in parsed(run).links if link.startswith("./")]
    assert {"./config.yaml", "./scores.parquet", "./table.tex"} <= set(files)
    assert all((run / link).is_file() for link in files)
    assert all((run / image["file"]).is_file() for image in parsed(run).data["images"])
    below = make_run(tmp_path / "sweep" / "a b#1")
    write_joint_report([below], tmp_path / "sweep")
    assert "./a%20b%231/config.yaml" in parsed(tmp_path / "sweep").links
    write_joint_report([run], tmp_path / "elsewhere")
    page = parsed(tmp_path / "elsewhere")
    assert not any(link.startswith("./") for link in page.links) and str(run) not in json.dumps(page.data)


def test_every_image_is_there_once_with_its_scores(run: Path) -> None:
    page = parsed(run)
    data, pictures = page.data, page.pictures
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.glob("images/*/*/*.png")}
    assert {image["file"].removeprefix("./"): pictures[image["picture"]] for image in data["images"]} == files
    assert len(data["images"]) == len(files) and len(set(pictures)) == len(pictures)
    scores = pd.read_parquet(run / "scores.parquet")
    image = data["images"][-1]
    pair = data["pairs"][image["pair"]]
    own = scores[
        (scores["method"] == data["rows"][image["row"]]["label"])
        & (scores["content"] == pair["content"])
        & (scores["style"] == pair["style"])
        & (scores["image"] == image["index"])
    ]
    means = {name: round(own.loc[own["metric"] == name, "value"].mean(), 4) for name in METRICS}
    assert dict(zip(data["scored"], image["scores"], strict=True)) == means


def test_references_of_pair_are_those_of_its_concepts(run: Path) -> None:
    page = parsed(run)
    for pair in page.data["pairs"]:
        for role in ("content", "style"):
            files = sorted((run / "references" / role / pair[role]).glob("*.png"))
            assert [page.pictures[number] for number in pair["references"][role]] == [f.read_bytes() for f in files]


def test_what_runs_share_is_embedded_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / method, method) for method in ("direct", "duolora")]
    write_joint_report(runs, tmp_path)
    page = parsed(tmp_path)
    unique = {
        path.read_bytes() for run in runs for path in [*run.glob("images/*/*/*.png"), *run.glob("references/*/*/*")]
    }
    assert set(page.pictures) == unique and len(page.pictures) == len(unique)
    assert [row["label"] for row in page.data["rows"]] == [
        "base", "content_only", "style_only", "direct", "duolora", "oracle",
    ]  # fmt: skip
    assert page.data["reference"] == "direct"
    duolora = page.data["rows"][4]
    assert duolora["scores"]["clip_t"]["separated"] is True and duolora["scores"]["clip_t"]["rank"] == 1
    assert page.data["rows"][0]["scores"]["clip_t"]["difference"] is None


def test_values_of_pairs_make_mean(run: Path) -> None:
    """The page computes means of the selected pairs; for all pairs they must equal the table's means."""
    for row in parsed(run).data["rows"]:
        assert row["pairs"].keys() == row["scores"].keys() == METRICS.keys()
        for name, pairs in row["pairs"].items():
            assert len(pairs) == len(PAIRS)
            values, weights = zip(*pairs.values(), strict=True)
            assert np.average(values, weights=weights) == pytest.approx(row["scores"][name]["mean"], abs=1e-5)


def test_several_seeds_of_method_are_images_of_one_row(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"s{seed}", "direct", pairs=PAIRS[:1], images=2, seed=seed) for seed in (0, 1)]
    write_joint_report(runs, tmp_path)
    data = parsed(tmp_path).data
    assert data["seeds"] == ["0", "1"]
    own = [image for image in data["images"] if data["rows"][image["row"]]["label"] == "direct"]
    assert [(image["seed"], image["index"]) for image in own] == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]


def test_runs_of_other_prompts_cannot_share_row(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, "direct", pairs=PAIRS[:1], images=1) for name in ("one", "two")]
    scores = pd.read_parquet(runs[1] / "scores.parquet")
    scores.assign(prompt="another").to_parquet(runs[1] / "scores.parquet")
    with pytest.raises(UserError, match=r"cannot share the row direct: they differ in prompts\.contexts"):
        write_joint_report(runs, tmp_path)


def test_backbone_stands_once_above_its_column(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=PAIRS[:2])
    scores = pd.read_parquet(folder / "scores.parquet")
    other = scores[scores["metric"] == "dino/content"].assign(backbone="dino@vits8")
    pd.concat([scores, other]).to_parquet(folder / "scores.parquet")
    write_report(folder)
    columns = [column for column in parsed(folder).data["columns"] if column["short"] == "dino/content"]
    assert sorted(column["backbone"] for column in columns) == ["dino@micro", "dino@vits8"]
    assert len({column["name"] for column in columns}) == 2


def test_hostile_names_are_text(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path / "run",
        NASTY.replace("/", ""),
        pairs=[("a\"'><img src=x onerror=alert(1)>", "b</script>".replace("/", "∕"))],
    )
    scores = pd.read_parquet(folder / "scores.parquet")
    scores.assign(prompt=f"</script>{NASTY}").to_parquet(folder / "scores.parquet")
    (folder / "config.yaml").write_text("</pre><script>alert(2)</script>")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"] = {"lorabench": "<i>", "</dl><iframe>": "<b>"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    plain = make_run(tmp_path / "plain", "foo", pairs=[("a", "b")])
    for each in (folder, plain):
        write_report(each)
    hostile, harmless = parsed(folder), parsed(plain)
    assert hostile.tags == harmless.tags and hostile.scripts.keys() == harmless.scripts.keys()
    assert hostile.data["pairs"][0]["prompts"] == [f"</script>{NASTY}"]


def test_pictures_of_world_are_embedded_as_they_are(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=PAIRS[:1], images=1)
    pose = mw.sample_pose(np.random.default_rng(0))
    oracle = folder / "images" / "oracle" / "mug_1+halftone_1" / "00.png"
    Image.fromarray(mw.render(mw.subject("mug_1"), mw.style("halftone_1"), pose)).save(oracle)
    write_report(folder)
    assert oracle.read_bytes() in parsed(folder).pictures


def test_large_page_has_small_copies_of_first_images_and_links_to_others(tmp_path: Path, monkeypatch) -> None:
    runs = [make_run(tmp_path / name, name, images=2) for name in ("direct", "duolora")]
    monkeypatch.setattr("lorabench.report.embed.BUDGET", 1000)
    monkeypatch.setattr("lorabench.report.embed.BATCH", 4 + len(PAIRS) * 6)  # a reference of each concept, first images
    write_joint_report(runs, tmp_path)
    data, texts = parsed(tmp_path).data, parsed(tmp_path).scripts["pictures"].split("\n")
    shown = {image["index"]: {texts[each["picture"]] for each in data["images"] if each["index"] == image["index"]}
             for image in data["images"]}  # fmt: skip
    assert all(text.startswith("webp;base64,") for text in shown[0])
    assert len(shown[1]) == len(PAIRS) * 6 and all((tmp_path / text).is_file() for text in shown[1])
    references = [texts[number] for pair in data["pairs"] for number in pair["references"]["content"]]
    assert [text.startswith("webp") for text in references] == [True, False] * len(PAIRS)
    assert "others are read from the run folders" in (tmp_path / "report.html").read_text()


def test_large_images_are_reduced(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=[("a", "b")], images=1)
    noise = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / "duolora" / "a+b" / "00.png")
    write_report(folder)
    assert (folder / "report.html").stat().st_size < 500_000


def test_several_subjects_in_one_picture(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=GROUPS, oracle=False)
    write_report(folder)
    page = parsed(folder)
    assert [(pair["content"], pair["style"]) for pair in page.data["pairs"]] == GROUPS
    assert len(page.data["images"]) == len(list(folder.glob("images/*/*/*.png")))
    assert "mug_1+cat_1 in ink_1</th>" in (folder / "report.html").read_text()  # in the table of losses


def test_runs_of_different_pairs_and_same_name(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "one" / "direct-none-s0", "direct", images=1),
        make_run(tmp_path / "one" / "duolora-none-s0", pairs=PAIRS[:1], images=1),
        make_run(tmp_path / "two" / "duolora-none-s0", pairs=GROUPS, oracle=False, images=1),
    ]
    write_joint_report(runs, tmp_path)
    text = (tmp_path / "report.html").read_text()
    twice = [f"duolora seed 0 ({name}/duolora-none-s0)" for name in ("one", "two")]
    assert re.findall("<summary>(.*?)</summary>", text)[-3:] == ["direct seed 0", *twice]
    images = {path.relative_to(run).as_posix() for run in runs for path in run.glob("images/*/*/*.png")}
    assert len(Parsed(text).data["images"]) == len(images)
    assert [row["run"] for row in Parsed(text).data["rows"]][3:5] == [0, 1]


def test_same_runs_give_same_bytes(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=PAIRS[:2])
    write_report(folder)
    before = (folder / "report.html").read_bytes()
    write_report(folder)
    assert (folder / "report.html").read_bytes() == before
