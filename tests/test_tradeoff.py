"""Trade-off curves: hypervolumes against known areas, dominated points, and scales on shared merges."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose

from lorabench.base import UserError
from lorabench.data.concepts import ROLES, Role
from lorabench.report import averages
from lorabench.report.tradeoff import draw_tradeoff
from lorabench.tasks import tradeoff
from lorabench.tasks.tradeoff import axis_of, fan, run, table
from lorabench.tasks.tradeoff_curves import Axis, Measured, curves_of, volumes_of

AXES: dict[Role, Axis] = {"content": Axis("dino/content", 0.5, 0.9), "style": Axis("csd/style", 0.1, 0.6)}
SMALL = [
    "task=tradeoff", "trainer.workers=0", "task.methods=[direct,klora]", "task.strengths=[0.5]", "lora.steps=1",
    "dataset.subjects=[mug_1]", "dataset.styles=[ink_1,neon_1]", "dataset.references=1", "dataset.content_images=1",
    "dataset.style_images=1", "generate.images=1",
]  # fmt: skip


def by_pair(metric: str, shares: list[float]) -> pd.Series:
    """Return the values with these shares of an axis, one per pair."""
    axis = AXES["content" if metric == "content" else "style"]
    pairs = pd.MultiIndex.from_tuples([("d", f"c{i}", "s") for i in range(len(shares))], names=averages.PAIR)
    return pd.Series([axis.off + share * (axis.on - axis.off) for share in shares], pairs)


def measured(points: dict[str, list[tuple[float, float]]], spread: float = 0.0) -> Measured:
    """Return each method's points in the order of the fan, for six pairs that differ by `spread`."""
    offsets = np.linspace(-spread, spread, 6)
    return {
        (name, at): {role: by_pair(role, list(value + offsets)) for role, value in zip(ROLES, point, strict=True)}
        for name, own in points.items()
        for at, point in zip(fan([0.5]), own, strict=True)
    }


def test_hypervolumes_are_areas_from_floors() -> None:
    found = measured({"direct": [(0.8, 0.2), (0.6, 0.6), (0.2, 0.8)], "better": [(0.8, 0.2), (0.9, 0.9), (0.2, 0.8)]})
    volumes = volumes_of(found, AXES, "direct").set_index("method")
    assert volumes["hypervolume"].tolist() == pytest.approx([0.8 * 0.2 + 0.6 * 0.4 + 0.2 * 0.2, 0.81])
    assert volumes.loc["better", "difference"] == pytest.approx(0.81 - 0.44)
    assert volumes.loc["better", "separated"] and pd.isna(volumes.loc["direct", "difference"])
    assert volumes["low"].tolist() == pytest.approx(volumes["hypervolume"].tolist())  # pairs that are all the same


def test_intervals_are_paired_over_same_resamples() -> None:
    points = {"direct": [(0.8, 0.2), (0.6, 0.6), (0.2, 0.8)]}
    found = measured({**points, "twin": points["direct"]}, spread=0.2)
    volumes = volumes_of(found, AXES, "direct").set_index("method")
    assert volumes.loc["direct", "low"] < 0.44 - 0.02 and volumes.loc["direct", "high"] > 0.44 + 0.02
    assert volumes.loc["twin", ["difference_low", "difference_high"]].tolist() == [0.0, 0.0]
    assert not volumes.loc["twin", "separated"]


def test_points_below_floors_add_nothing() -> None:
    found = measured({"direct": [(-0.2, 0.9), (0.5, 0.5), (0.9, -0.1)]})
    assert volumes_of(found, AXES, "direct")["hypervolume"].item() == pytest.approx(0.25)


def test_fronts_of_method_and_of_all(tmp_path: Path) -> None:
    found = measured({"direct": [(0.8, 0.2), (0.6, 0.6), (0.5, 0.5)], "better": [(0.9, 0.3), (0.7, 0.7), (0.1, 0.9)]})
    curves = curves_of(found, AXES)
    assert curves["front"].tolist() == [True, True, False, True, True, True]
    assert curves["joint_front"].tolist() == [False, False, False, True, True, True]
    assert curves["dino/content"].iloc[0] == pytest.approx(0.5 + 0.8 * 0.4)
    volumes = volumes_of(found, AXES, "direct")
    text = table(curves, volumes, AXES, pairs=6, images=4)
    assert "no correction for the number of methods" in text
    assert "| difference to direct |" in text and "| 0.60, 0.60 | 2 of 3 | 0 of 3 |" in text
    assert "difference" not in table(curves, volumes_of(found, AXES, "ziplora"), AXES, 6, 4).splitlines()[0]
    draw_tradeoff(curves, volumes, {"content": "dino/content", "style": "csd/style"}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_lora_that_does_nothing_spans_no_axis() -> None:
    single = {"content_only": by_pair("content", [0.5, 0.5]), "style_only": by_pair("content", [0.5, 0.6])}
    with pytest.raises(UserError, match="not greater with the content LoRA"):
        axis_of("content", "dino/content", single)


def test_fan_has_whole_point_in_its_middle() -> None:
    assert fan([0.75, 0.25, 1]) == [(1, 0.25), (1, 0.75), (1, 1), (0.75, 1), (0.25, 1)]


@pytest.mark.usefixtures("hydra")
def test_strengths_are_drawn_with_same_merges(tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    """With random weights, LoRAs do not learn their concepts, so the axes are set by hand."""
    monkeypatch.setattr(tradeoff, "axis_of", lambda role, metric, single: Axis(metric, -1.0, 1.0))
    run(compose("config", [*tiny, *SMALL, f"output={tmp_path}"]), tmp_path)
    assert len(list((tmp_path / "store" / "merge").iterdir())) == 2  # one per pair: klora samples with the direct merge
    assert len(list((tmp_path / "store" / "generate").iterdir())) == (2 + 2 * 3) * 2
    curves = pd.read_csv(tmp_path / "tradeoff.csv")
    assert curves.groupby("method").size().to_dict() == {"direct": 3, "klora": 3}
    assert len(set(curves["csd/style"])) > 3  # strengths do something
    printed = capsys.readouterr().out
    assert (tmp_path / "tradeoff.md").read_text() in printed and (tmp_path / "tradeoff.png").is_file()
    assert set(pd.read_csv(tmp_path / "hypervolume.csv")["method"]) == {"direct", "klora"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.methods=[]", "task.methods is empty; use task.methods="),
        ("task.methods=[direct,duolra]", "method=duolra is unknown"),
        ("task.methods=[direct,direct]", "names direct twice"),
        ("task.methods=[base]", "has no trade-off; leave it out"),
        *product(("task.strengths=[]", "task.strengths=[0,0.5]", "task.strengths=[1]"), ["use task.strengths="]),
        ("task.content=csd/style", "task.content=csd/style is unknown"),
        ("task.style=lpips/style", "task.style=lpips/style is unknown"),
    ],
)
def test_mistakes_are_one_line(refused, override: str, words: str) -> None:
    refused(run, [*SMALL, override], words)
