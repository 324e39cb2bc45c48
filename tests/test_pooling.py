"""Runs share a table, or a row, only if all settings that define their numbers are equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from made_run import make_run, read_table

from lorabench.base import UserError
from lorabench.report import write_joint_report
from lorabench.report.folder import RunFolder
from lorabench.report.formats import format_difference
from lorabench.report.pooling import join_pictures, join_scores, load_runs
from lorabench.report.table import Table
from lorabench.report.text import write_markdown


def configured(run: Path, manifest: dict[str, Any] | None = None, **groups: Any) -> Path:
    """Return the run with these groups in its configuration."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name, values in groups.items():
        config[name] = (config.get(name) or {}) | values if isinstance(values, dict) else values
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    known = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(known | (manifest or {})))
    return run


def rescored(run: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    change(pd.read_parquet(run / "scores.parquet")).to_parquet(run / "scores.parquet")
    return run


@pytest.mark.parametrize(
    ("one", "two", "key"),
    [
        ({"lora": {"rank": 4}}, {"lora": {"rank": 8}}, r"lora\.rank"),
        ({"lora": {"steps": 4}}, {"lora": {"steps": 8}}, r"lora\.steps"),
        ({"dataset": {"references": 1}}, {"dataset": {"references": 4}}, r"dataset\.references"),
        ({"dataset": {"content_images": 1}}, {"dataset": {"content_images": 4}}, r"dataset\.content_images"),
        ({"generate": {"steps": 4}}, {"generate": {"steps": 8}}, r"generate\.steps"),
        ({"generate": {"guidance": 3.0}}, {"generate": {"guidance": 5.0}}, r"generate\.guidance"),
        ({"model": {"dtype": "fp32"}}, {"model": {"dtype": "bf16"}}, r"model\.dtype"),
        ({"trainer": {"precision": "32-true"}}, {"trainer": {"precision": "bf16-mixed"}}, r"trainer\.precision"),
        ({"prompts": {"style_token": "szn"}}, {"prompts": {"style_token": "sbu"}}, r"prompts\.style_token"),
        ({"manifest": {"inputs": {"weights": "a"}}}, {"manifest": {"inputs": {"weights": "b"}}}, "weights"),
    ],
)
def test_runs_made_otherwise_are_refused_with_key(tmp_path: Path, one: dict, two: dict, key: str) -> None:
    """Seeds differ, so that no image has two values."""
    runs = [make_run(tmp_path / str(seed), "direct", images=1, seed=seed) for seed in (0, 1)]
    others = [make_run(tmp_path / name, name, images=1, seed=seed) for seed, name in enumerate(("ziplora", "duolora"))]
    for pair in (runs, others):
        for run, groups in zip(pair, (one, two), strict=True):
            configured(run, **groups)
        with pytest.raises(UserError, match=f"differ in {key}; use only one of them"):
            write_joint_report(pair, tmp_path / "joint")
    assert not (tmp_path / "joint").exists()


def test_runs_that_differ_in_seed_pairs_and_places_are_pooled(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), "direct", images=1 + seed, seed=seed) for seed in (0, 1)]
    for number, run in enumerate(runs):
        configured(
            run,
            dataset={"subjects": [str(number)], "root": str(number)}, generate={"images": 1 + number, "steps": 9},
            model={"path": str(number), "offload": str(number)}, manifest={"inputs": {"weights": "same"}},
        )  # fmt: skip
    write_joint_report(runs, tmp_path / "joint")
    assert read_table(tmp_path / "joint").loc["direct", "clip_t_pairs"] == 4


def test_settings_of_method_make_rows_of_their_own(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(steps), "ziplora", images=1, seed=steps) for steps in (50, 100)]
    for run, steps in zip(runs, (50, 100), strict=True):
        configured(run, method={"name": "ziplora", "fit": {"steps": steps, "lr": 0.1}})
    with pytest.raises(UserError, match=r"cannot share the row ziplora: they differ in method\.fit\.steps"):
        join_scores([RunFolder.load(run) for run in runs])
    write_joint_report(runs, tmp_path / "joint")
    table = read_table(tmp_path / "joint")
    assert [name for name in table.index if "ziplora" in name] == ["ziplora fit.steps=50", "ziplora fit.steps=100"]
    page = (tmp_path / "joint" / "report.html").read_text()
    assert "ziplora fit.steps=100" in page


def test_other_references_of_same_images_are_refused(tmp_path: Path) -> None:
    """References are compared by those in the scores, and not by the configuration."""
    runs = [make_run(tmp_path / name, name, images=1) for name in ("direct", "duolora")]
    rescored(runs[1], lambda scores: scores[scores["reference"] == "0"])
    with pytest.raises(UserError, match=r"has different references \(2 and 1; dataset\.references\)"):
        write_joint_report(runs, tmp_path / "joint")


def test_other_version_of_scorer_is_refused(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, images=1) for name in ("direct", "duolora")]
    rescored(runs[1], lambda scores: scores.assign(version="2"))
    with pytest.raises(UserError, match=r"different versions of .* \(1, 2\)"):
        write_joint_report(runs, tmp_path / "joint")


def test_images_are_known_by_pair_prompt_and_seed(tmp_path: Path) -> None:
    """The images have another order and number; each counts once, and all common ones are paired."""
    runs = [make_run(tmp_path / name, name, images=images) for name, images in (("direct", 3), ("duolora", 2))]
    expected = Table.of([RunFolder.load(run) for run in runs]).lines.set_index(["label", "metric"])
    names = pd.Series({0: 1, 1: 0})
    rescored(runs[1], lambda scores: scores.assign(image=scores["image"].map(names)))
    for image in (runs[1] / "images").glob("*/*/00.png"):
        image.rename(image.with_name("x.png"))
        image.with_name("01.png").rename(image)
        image.with_name("x.png").rename(image.with_name("01.png"))
    loaded = load_runs(runs)
    found = Table.of(loaded).lines.set_index(["label", "metric"])
    pd.testing.assert_frame_equal(found, expected)
    assert found.loc[("base", "clip_t"), "images"] == 12 and found.loc[("duolora", "clip_t"), "shared_images"] == 8
    pictures = join_pictures(loaded)
    assert len([picture for picture in pictures if picture.label == "base"]) == 12


def test_difference_over_part_of_row_says_so(tmp_path: Path) -> None:
    pairs = [("mug_1", "halftone_1"), ("mug_1", "neon_1"), ("bird_1", "halftone_1")]
    runs = [
        make_run(tmp_path / "direct", "direct", pairs=pairs[:2], images=2),
        make_run(tmp_path / "duolora", "duolora", pairs=pairs, images=2),
        make_run(tmp_path / "ziplora", "ziplora", pairs=pairs[:2], images=3),
        make_run(tmp_path / "klora", "klora", pairs=pairs[1:], images=2),
    ]
    table = Table.of(load_runs(runs))
    at = {line["label"]: line for line in table.lines.to_dict("records") if line["metric"] == "clip_t"}
    assert format_difference(at["duolora"]).endswith("(2 of 3 pairs)")
    assert format_difference(at["ziplora"]).endswith("(4 of 6 images)")
    assert format_difference(at["klora"]) == "- (1 of 2 pairs)"
    assert "Rows average over different pairs or prompts" in write_markdown(table)


def test_runs_of_one_row_with_other_scenes_are_refused(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), "direct", images=1, seed=seed) for seed in (0, 1)]
    rescored(runs[1], lambda scores: scores.assign(prompt=scores["prompt"] + " on a beach"))
    with pytest.raises(UserError, match=r"cannot share the row direct: they differ in prompts\.contexts"):
        write_joint_report(runs, tmp_path / "joint")


def test_number_of_threads_is_told_where_it_differs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, images=1) for name in ("direct", "duolora")]
    for run, threads in zip(runs, (1, 2), strict=True):
        configured(run, manifest={"computed_on": [f"cpu, {threads} threads"]})
    notes = " ".join(Table.of(load_runs(runs)).notes)
    assert "differ in the machine or its threads (cpu, 1 threads; cpu, 2 threads)" in notes
    assert "threads" not in " ".join(Table.of(load_runs(runs[:1])).notes)
