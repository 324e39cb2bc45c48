"""Calibration of metrics with known results: the ground truth, a constant, the wrong role, the negative."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose

from lorabench.config.dataset_schemas import MicroworldSpec
from lorabench.config.schemas import ScorerSpec
from lorabench.data.scenes import Prompts
from lorabench.scoring.files import MICRO_SCORERS, scorer_set
from lorabench.scoring.load import load_scorer
from lorabench.tasks.calibration import ideals, pictures, readings, run, world_of
from lorabench.tasks.calibration_figures import CHECKS, calibrate
from lorabench.tasks.calibration_world import Metric, World

SUBJECTS, STYLES = ["mug_1", "mug_2", "cat_1", "fish_3"], ["ink_1", "ink_2", "neon_1"]
SMALL = [
    "task=calibration", f"dataset.subjects=[{','.join(SUBJECTS)}]", f"dataset.styles=[{','.join(STYLES)}]",
    "dataset.content_images=2", "dataset.references=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    spec = MicroworldSpec(
        name="microworld",
        subjects=SUBJECTS,
        styles=STYLES,
        contents=None,
        content_images=1,
        style_images=1,
        references=1,
    )
    return world_of(spec, Prompts())[0]


def figures(metric: Metric, world: World, figure: str) -> dict[str, float]:
    found = calibrate(metric, world, holds=0.95)
    rows = found.query("figure == @figure")
    return {f"{row['of']} {row['kind']}".strip(): row["value"] for row in rows.to_dict("records")}


def ideal(world: World, name: str) -> Metric:
    return next(metric for metric in ideals(world) if metric.measures == name)


@pytest.mark.parametrize("name", ["content", "style", "text"])
def test_truth_is_perfectly_calibrated(world: World, name: str) -> None:
    metric = ideal(world, name)
    for figure in ("spearman", "kendall"):
        assert list(figures(metric, world, figure).values()) == pytest.approx([1.0] * (1 if name == "text" else 2))
    checks = calibrate(metric, world, 1.0).query("figure == 'check'")
    assert set(checks["value"]) == {1.0} and set(checks["passes"]) == {True}
    assert set(checks["of"]) == {f"{better} > {worse}" for better, worse in CHECKS[name]}


def test_leakage_of_truth_is_none(world: World) -> None:
    assert figures(ideal(world, "content"), world, "variance") == pytest.approx({"content": 1, "style": 0, "rest": 0})
    assert figures(ideal(world, "style"), world, "variance") == pytest.approx({"content": 0, "style": 1, "rest": 0})


def test_constant_has_no_order_and_answers_by_chance(world: World) -> None:
    dead = replace(ideal(world, "content"), renderings=np.ones((4, 4, 3)), photographs=np.ones((4, 4, 1)))
    assert np.isnan(list(figures(dead, world, "spearman").values())).all()
    assert np.isnan(list(figures(dead, world, "variance").values())).all()
    assert set(figures(dead, world, "check").values()) == {0.5}
    assert set(calibrate(dead, world, 0.95).query("figure == 'check'")["passes"]) == {False}


def test_opposite_of_truth_fails_everywhere(world: World) -> None:
    truth = ideal(world, "content")
    assert truth.photographs is not None
    swapped = replace(truth, renderings=-truth.renderings, photographs=-truth.photographs)
    assert list(figures(swapped, world, "spearman").values()) == pytest.approx([-1.0, -1.0])
    assert set(figures(swapped, world, "check").values()) == {0.0}


def test_style_taken_for_content_is_seen_as_leakage(world: World) -> None:
    style = np.broadcast_to(np.array([0.9, 0.1, 0.4]), (4, 4, 3))
    wrong = Metric("wrong/content", "test", "content", style, np.full((4, 4, 1), 0.2))
    assert figures(wrong, world, "variance") == pytest.approx({"content": 0, "style": 1, "rest": 0})
    assert figures(wrong, world, "spearman")["all"] == pytest.approx(0.0, abs=1e-9)
    assert figures(wrong, world, "check")["perfect > style_only other"] == 0.5  # the same style, so values are equal


def test_distances_are_factors_own(world: World) -> None:
    assert (np.diag(world.content) == 0).all() and (np.diag(world.style) == 0).all()
    assert world.content[0, 1] < 0.5 < world.content[0, 2]  # another mug is more similar than a cat
    assert world.text.shape == (3 * 2, 4, 3) and set(np.unique(world.text)) == {0.0, 0.5, 1.0}


def test_factors_that_are_read_order_renderings_as_truth_does() -> None:
    spec = MicroworldSpec(
        "microworld", ["mug_1", "mug_2", "cat_1", "fish_3"], ["ink_1", "neon_1", "clay_1"], None, 1, 1, 1
    )
    world, pairs = world_of(spec, Prompts())
    reader = scorer_set(ScorerSpec("micro", "micro", [], {})).reader
    assert reader is not None and MICRO_SCORERS in reader.config.parents
    content, style = readings(world, pictures(world, pairs), load_scorer(reader))
    assert content.renderings.shape == (4, 4, 3) and style.renderings.shape == (3, 4, 3)
    for metric in (content, style):
        assert figures(metric, world, "spearman")["all"] > 0.6  # ink and neon hide the colors of a subject
        assert figures(metric, world, "check")["perfect > swapped other"] == 1.0


@pytest.mark.usefixtures("hydra")
def test_run_writes_all_three_files(scorers: Path, tmp_path: Path, capsys) -> None:
    run(compose("config", [*SMALL, f"scorers.path={scorers}", f"output={tmp_path}"]), tmp_path)
    found = pd.read_csv(tmp_path / "calibration.csv")
    keys = ["metric", "backbone", "measures", "figure", "of", "kind"]  # these name a line in docs/figures.py
    assert list(found)[: len(keys)] == keys and not found.duplicated(keys).any()
    metrics = {"dino/content", "clip_i/content", "clip_i/style", "clip_t", "csd/content", "csd/style"}
    assert metrics <= set(found["metric"])
    assert all(abs(value) <= 1 + 1e-9 for value in found.query("figure == 'spearman'")["value"])
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "calibration.md").read_text()
    assert "| truth/content | the factors | 1.00 [1.00, 1.00] |" in text and text in capsys.readouterr().out
    assert "checks fail, worst first:" in text  # random scorers


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset=folder", "only the microworld has; use dataset=microworld"),
        ("dataset.subjects=[mug_1,cat_1]", "dataset.subjects has 2, too few to rank"),
        ("dataset.styles=[ink_1]", "dataset.styles has 1, too few to rank"),
        ("dataset.pairs=[mug_1/ink_1,cat_1/ink_2,fish_3/neon_1]", "use dataset.pairs=crossed"),
        ("dataset.subjects=[mug_1+cat_1,mug_2,cat_2]", "one subject and one style per pair"),
    ],
)
def test_mistakes_are_one_line(refused, override: str, words: str) -> None:
    small = [each for each in SMALL if not (override == "dataset=folder" and each.startswith("dataset."))]
    refused(run, [*small, override], words)
