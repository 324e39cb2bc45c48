"""The report of a small invented run: values against pandas, hostile names, no other files needed."""

import json
from dataclasses import replace
from errno import EACCES
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from made_run import METRICS, PAIRS, make_run, paint, read_table
from PIL import Image, ImageFont

from lorabench.base import UserError
from lorabench.engine.output_folder import OutputFolder
from lorabench.report import figures, write_joint_report, write_report
from lorabench.report.__main__ import main
from lorabench.report.folder import RunFolder
from lorabench.report.pooling import join_pictures, join_scores


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "duolora-none-s0")
    write_report(folder)
    return folder


def test_table_equals_plain_pandas(run: Path) -> None:
    scores = pd.read_parquet(run / "scores.parquet")
    table = read_table(run)
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


def test_macro_average_gives_each_pair_same_weight(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    scores = pd.read_parquet(folder / "scores.parquet")
    few = (scores["content"] == "mug_1") | (scores["image"] == 0)  # bird pairs keep one image of three
    lopsided = scores[few]
    lopsided.to_parquet(folder / "scores.parquet")
    write_report(folder)
    rows = lopsided.query("method == 'duolora' and metric == 'clip_t'")
    expected = np.mean(rows.pivot_table("value", ["content", "style"]).to_numpy())
    table = read_table(folder)
    assert table.loc["duolora", "clip_t"] == pytest.approx(expected, abs=1e-5)
    assert np.mean(rows["value"].to_numpy()) != pytest.approx(expected, abs=1e-3)  # else this test would see nothing


def test_markdown_names_backbones_and_warns_of_micro_scorers(run: Path) -> None:
    text = (run / "table.md").read_text()
    assert "dino@micro" in text and "are not comparable with those of published backbones" in text
    assert text.splitlines()[0].startswith("| method | dino/content | clip_i/style | clip_t | subject_r1 |")


def test_reports_repeat_exactly(run: Path) -> None:
    names = ["table.md", "table.csv", "table.tex", "grid.png", "report.html"]
    before = [(run / name).read_bytes() for name in names]
    write_report(run)
    assert [(run / name).read_bytes() for name in names] == before


def test_one_pair_has_no_interval_and_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pairs=[("mug_1", "ink_1")])
    write_report(folder)
    text = (folder / "table.md").read_text()
    assert "One pair (" in text and "[" not in text and "95 %" not in text


def test_grid_has_row_pair(run: Path) -> None:
    with Image.open(run / "grid.png") as grid:
        assert grid.width > grid.height > 4 * 100
        colors = {color for _, color in grid.convert("RGB").getcolors(1 << 20) or []}
    shown = [("content", "mug_1", 0), ("style", "neon_1", 0), ("duolora", "bird_1", "neon_1", 2)]
    shown += [("oracle", "mug_1", "neon_1", 0), ("content_only", "mug_1", "halftone_1", 0)]
    for names in shown:
        assert paint(*names).getpixel((0, 0)) in colors
    assert paint("oracle", "mug_1", "neon_1", 1).getpixel((0, 0)) not in colors  # the oracle is shown once


def test_joint_report_compares_with_direct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / "direct", "direct"), make_run(tmp_path / "duolora")]
    runs.append(make_run(tmp_path / "ablated", "duolora", "no_cycle"))
    assert main([*map(str, runs), "--out", str(tmp_path / "joint")]) == 0
    table = read_table(tmp_path / "joint")
    methods = ["direct", "duolora", "duolora no_cycle"]
    assert list(table.index) == ["base", "content_only", "style_only", *methods, "oracle"]
    write_report(runs[1])
    single = read_table(runs[1])
    pd.testing.assert_series_equal(table.loc["base"].dropna(), single.loc["base"].dropna())
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert not any("~" in row for row in rows if " - " not in row)  # 0.1 apart, noise 0.01: distinct on four pairs
    assert all("~" in row for row in rows if " - " in row)  # the ablation is as good as its method


def test_not_separated_is_marked(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "direct", "direct"), make_run(tmp_path / "duolora")]
    scores = pd.read_parquet(runs[1] / "scores.parquet")
    scores.loc[(scores["method"] == "duolora") & (scores["metric"] == "clip_t"), "value"] -= 0.1
    scores.to_parquet(runs[1] / "scores.parquet")
    write_joint_report(runs, tmp_path / "joint")
    lines = (tmp_path / "joint" / "table.md").read_text().splitlines()
    cells = next(line for line in lines if line.startswith("| duolora")).split("|")[2:6]
    assert [cell.strip().endswith("~") for cell in cells] == [False, False, True, False]


@pytest.mark.parametrize("lost", ["scores.parquet", "manifest.json", "images/oracle/mug_1+neon_1/01.png"])
def test_incomplete_folder_is_one_line(tmp_path: Path, lost: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    (folder / lost).unlink()
    assert main([str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("broken", ["scores.parquet", "manifest.json"])
def test_broken_file_is_one_line(tmp_path: Path, broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run")
    (folder / broken).write_bytes((folder / broken).read_bytes()[:100])
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "broken" in error


def test_place_that_is_file_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--out", str(run / "table.md")]) == 2
    assert "table.md is a file; use --out" in capsys.readouterr().err


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "direct", "direct"), make_run(tmp_path / "duolora")]
    scores = pd.read_parquet(runs[1] / "scores.parquet")
    scores.replace("dino@micro", "dino@vits16").to_parquet(runs[1] / "scores.parquet")
    with pytest.raises(UserError, match="dino@micro and dino@vits16"):
        write_joint_report(runs, tmp_path / "joint")
    scores.assign(world="2").to_parquet(runs[1] / "scores.parquet")
    with pytest.raises(UserError, match="must have the same world"):
        write_joint_report(runs, tmp_path / "joint")
    assert main([*map(str, runs)]) == 2


def otherwise(run: Path, off: float, **settings: object) -> Path:
    """Return the run with increased scores and these settings in its configuration."""
    scores = pd.read_parquet(run / "scores.parquet")
    scores.assign(value=scores["value"] + off).to_parquet(run / "scores.parquet")
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | settings))
    return run


def test_runs_with_other_values_for_same_images_are_refused(tmp_path: Path, capsys) -> None:
    one, two = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    otherwise(two, 0.2, name="b", lora={"rank": 8}, method={"name": "duolora", "basis": "raw"})
    assert main([str(one), str(two)]) == 2
    error = capsys.readouterr().err
    assert f"{one} and {two} have different values in the row base: their configs differ in lora.rank;" in error
    with pytest.raises(UserError, match=r"row base: their configs agree"):
        join_scores([RunFolder.load(one), RunFolder.load(otherwise(make_run(tmp_path / "c"), 0.2))])
    own = [replace(run, scores=run.scores[run.scores["label"] == "duolora"]) for run in map(RunFolder.load, (one, two))]
    with pytest.raises(UserError, match=r"row duolora: their configs differ in lora\.rank, method\.basis"):
        join_scores(own)


def test_rounding_of_another_machine_is_not_another_value(tmp_path: Path) -> None:
    runs = [RunFolder.load(make_run(tmp_path / "a")), RunFolder.load(otherwise(make_run(tmp_path / "b"), 1e-5))]
    pd.testing.assert_frame_equal(join_scores(runs), runs[0].scores)
    shown = [picture.path for picture in join_pictures(runs)]
    assert shown == [picture.path for picture in runs[0].pictures]  # images of the run whose scores are shown


GROUPS = [("mug_1+cat_1", "ink_1"), ("mug_1+cat_1+bicycle_3+duck_12", "ink_1+watercolor_2")]


def test_several_subjects_in_one_picture(tmp_path: Path) -> None:
    """Their names are long, and they have no ground truth."""
    folder = make_run(tmp_path / "run", pairs=GROUPS, oracle=False)
    write_report(folder)
    table = read_table(folder)
    assert list(table.index) == ["base", "content_only", "style_only", "duolora"]
    with Image.open(folder / "grid.png") as grid:
        colors = {color for _, color in grid.convert("RGB").getcolors(1 << 20) or []}
    for names in (("content", GROUPS[1][0], 0), ("duolora", *GROUPS[1], 2)):
        assert paint(*names).getpixel((0, 0)) in colors


def test_long_names_stay_beside_pictures_of_grid() -> None:
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
    assert "Mean over 2 to 6 pairs" in text and "Rows average over different pairs" in text
    assert "~" not in text.partition("**Orders published by DuoLoRA")[0]
    assert "not separated from direct" not in text  # less than two pairs in common with direct
    assert "(8 published by DuoLoRA)" in text and "| duolora - ziplora | " in text


def test_rows_of_same_pairs_need_no_warning(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "direct", "direct"), make_run(tmp_path / "seed1", "direct", seed=1)]
    runs.append(make_run(tmp_path / "duolora"))
    write_joint_report(runs, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert (
        "Mean over 4 pairs of 2 subjects and 2 styles (12 to 24 images per row" in text
        and "different pairs" not in text
    )


def test_place_without_rights_is_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    def forbid(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(EACCES, "Permission denied", str(path))

    run = make_run(tmp_path / "run", images=1)
    monkeypatch.setattr(Path, "mkdir", forbid)
    assert main([str(run), "--out", "/usr/report"]) == 2
    line = "error: cannot write to /usr/report: Permission denied; use --out <writable folder>\n"
    assert capsys.readouterr().err == line


def test_unfinished_runs_of_folder_are_named_below_table(tmp_path: Path, capsys) -> None:
    for name in ("direct", "duolora"):
        make_run(tmp_path / name, name, images=1)
    OutputFolder(tmp_path / "killed").claim()
    with OutputFolder(tmp_path / "params").filled() as draft:  # a finished command without scores
        (draft / "params.md").write_text("parameters")
    (tmp_path / "mine").mkdir()
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().err == "note: 1 runs without results are left out: killed\n"
    assert "Runs without results are left out: killed." in (tmp_path / "table.md").read_text()


def test_scenes_that_were_left_out_are_named_below_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "direct", "direct", images=1)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"left_out_scenes": {"a {} on Mars": "too long"}}))
    write_report(run)
    assert "Left out, because a text encoder would cut their prompts: a {} on Mars." in (run / "table.md").read_text()
