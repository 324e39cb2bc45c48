"""The verdict in words, the grid of a single pair, and the demo that ends with both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from made_run import PAIRS, make_run
from PIL import Image

from lorabench.base import EXPERIMENTS
from lorabench.data import microworld as mw
from lorabench.report import contact_sheet, pair_sheet, stats, write_joint_report
from lorabench.report.figures import draw_grid
from lorabench.report.pooling import load_runs
from lorabench.report.words import in_words

KEYS = {"dataset": "microworld", "prompt": "p", "reference": "0", "version": "1"}
BACKBONES = {"dino/content": "dino@micro", "csd/style": "csd@micro", "both": "dino@micro+csd@micro"}


def scores(values: Mapping[str, Mapping[str, Sequence[float]]], pairs: int = 1) -> pd.DataFrame:
    """Return scores by label and metric; the values of a label are those of its images, pair by pair."""
    rows = [
        {**KEYS, "content": f"c{at % pairs}", "style": f"s{at % pairs}", "label": label, "metric": metric,
         "backbone": BACKBONES[metric], "seed": at, "value": value}
        for label, metrics in values.items() for metric, own in metrics.items() for at, value in enumerate(own)
    ]  # fmt: skip
    return pd.DataFrame(rows)


DIRECT = {"dino/content": [0.5, 0.6, 0.7, 0.4], "csd/style": [0.8, 0.7, 0.9, 0.6], "both": [0, 1, 0, 1]}
OTHER = {"dino/content": [0.61, 0.7, 0.79, 0.51], "csd/style": [0.7, 0.8, 0.8, 0.7], "both": [1, 1, 0, 1]}
ORACLE = {"dino/content": [1, 1, 1, 1], "csd/style": [1, 1, 1, 1], "both": [1, 1, 1, 1]}


def test_verdict_has_differences_with_intervals_over_images_of_single_pair() -> None:
    [text] = in_words(scores({"direct": DIRECT, "duolora": OTHER, "oracle": ORACLE}), "direct")
    delta = stats.interval(np.subtract(OTHER["dino/content"], DIRECT["dino/content"]))
    better = f"(dino/content {delta.mean:+.3f} [{delta.low:+.3f}, {delta.high:+.3f}])"
    assert text.startswith(f"duolora keeps the subject better than direct {better}; it is not separated from direct")
    assert "in the style (csd/style +0.000 [" in text
    assert "both recognized in 75 % of its images, against 50 % of direct and 100 % of the oracle." in text
    assert "are over the images of this pair and hold for no other pair;" in text
    [text] = in_words(scores({"direct": OTHER, "duolora": DIRECT}), "direct")
    assert "keeps the subject worse than direct (dino/content -0.103" in text


def test_verdict_is_over_pairs_and_for_few_methods_only() -> None:
    [text] = in_words(scores({"direct": DIRECT, "a": OTHER, "b": DIRECT}, pairs=4), "direct")
    delta = stats.interval(np.subtract(OTHER["dino/content"], DIRECT["dino/content"]))
    assert f"[{delta.low:+.3f}, {delta.high:+.3f}]" in text and "The 95 % intervals are over pairs;" in text
    assert "b is not separated from direct in the subject (dino/content +0.000" in text
    assert in_words(scores({"direct": DIRECT} | dict.fromkeys("abcd", OTHER)), "direct") == []
    assert in_words(scores({"direct": DIRECT, "base": OTHER}), "direct") == []
    assert in_words(scores({"a": DIRECT, "b": OTHER}), None) == []
    assert in_words(scores({"direct": DIRECT, "a": {"both": [1, 1, 1, 1]}}), "direct") == []


def test_grid_of_single_pair_has_row_per_table_row(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, name, pairs=PAIRS[:1], images=2) for name in ("direct", "duolora")]
    grid = draw_grid(load_runs(folders))
    rows = 1 + len(("base", "content_only", "style_only", "direct", "duolora", "oracle"))
    height = contact_sheet.TITLE + contact_sheet.EDGE + contact_sheet.GAP
    assert grid.height == contact_sheet.GAP + rows * height + contact_sheet.LINE
    place = contact_sheet.GAP + 5 * height + contact_sheet.LINE + contact_sheet.TITLE + contact_sheet.EDGE // 2
    with Image.open(folders[1] / "images" / "duolora" / "mug_1+halftone_1" / "01.png") as image:
        shown = grid.getpixel((contact_sheet.GAP * 2 + contact_sheet.EDGE * 3 // 2, place))
        assert shown == image.getpixel((32, 32))
    write_joint_report(folders, tmp_path)
    with Image.open(tmp_path / "grid.png") as written:
        assert written.size == grid.size
    assert set(pair_sheet.MEANING) == {"base", "content_only", "style_only", "oracle"}


def test_demo_has_first_heldout_pair_of_registry() -> None:
    experiment = yaml.safe_load((EXPERIMENTS / "demo.yaml").read_text())
    assert experiment["dataset"]["pairs"] == [f"{mw.HELDOUT_SUBJECTS[0]}/{mw.HELDOUT_STYLES[0]}"]
    assert "experiments=demo" in (Path(__file__).parents[1] / "Makefile").read_text()


def test_single_image_has_no_interval() -> None:
    one, two = ({metric: values[:1] for metric, values in own.items()} for own in (DIRECT, OTHER))
    [text] = in_words(scores({"direct": one, "duolora": two}), "direct")
    assert "from a single image" in text and "[" not in text
