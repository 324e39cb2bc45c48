"""Worst images and disagreements on hand-written values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lorabench.report.galleries import disagreements, worst


def images(**columns: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame({name.replace("__", "/"): values for name, values in columns.items()}, dtype=float)


def test_worst_is_far_below_in_one_of_both() -> None:
    values = images(dino__content=[0.8, 0.8, 0.2, 0.8], csd__style=[0.5, 0.1, 0.6, 0.55])
    found = worst(values)
    assert [case.image for case in found[:2]] == [1, 2] or [case.image for case in found[:2]] == [2, 1]
    content, style = values["dino/content"].to_numpy(), values["csd/style"].to_numpy()
    z = np.minimum((content - content.mean()) / content.std(), (style - style.mean()) / style.std())
    assert [case.image for case in found] == np.argsort(z, kind="stable").tolist()
    assert found[[case.image for case in found].index(2)].why == "dino/content 0.200, z\u00a0−1.7"


def test_images_keep_their_number_where_others_have_no_score() -> None:
    values = images(clip_i__content=[np.nan, 0.8, 0.2], clip_i__style=[0.5, 0.6, 0.1])
    assert [case.image for case in worst(values)] == [2, 1]


def test_nothing_is_worst_without_metric_of_each_role_or_difference() -> None:
    assert not worst(images(dino__content=[0.1, 0.2]))
    assert not worst(images(dino__content=[0.1, 0.2], csd__style=[0.5, 0.5]))


def test_high_metric_where_truth_says_no() -> None:
    values = images(
        dino__content=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2],
        csd__style=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        subject_r1=[1, 0, 0, 0, 0, 0, 0, 1],
        style_r1=[0, 0, 1, 1, 1, 1, 1, 1],
    )
    [case] = disagreements(values)  # one of two images in DINO's upper quarter is wrong, none in CSD's
    assert (case.image, case.kind) == (1, "dino/content high, subject_r1 0")
    assert case.why == "dino/content 0.800, above 75 % of images, but subject_r1 0"


def test_highest_comes_first_and_each_metric_has_its_own() -> None:
    values = images(clip_i__style=list(range(8)), csd__style=list(range(8))[::-1], style_r1=[0] * 8)
    found = [(case.kind.split()[0], case.image) for case in disagreements(values)]
    assert found == [("csd/style", 0), ("csd/style", 1), ("clip_i/style", 7), ("clip_i/style", 6)]


def test_several_backbones_of_metric() -> None:
    values = images(**{"dino/content dino@a": [1, 2, 3, 4], "dino/content dino@b": [4, 3, 2, 1], "subject_r1": [0] * 4})
    assert [case.image for case in disagreements(values)] == [3, 0]


def test_without_truth_two_judges_are_compared() -> None:
    values = images(dino__content=[0.9, 0.1, 0.5, 0.6], csd__style=[0.1, 0.9, 0.5, 0.6])
    found = disagreements(values)
    assert [case.image for case in found] == [0, 1]
    assert found[0].kind == "dino/content high, csd/style low" and found[1].kind == "csd/style high, dino/content low"
    assert not disagreements(images(dino__content=[0.9, 0.1]))
