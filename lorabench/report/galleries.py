"""Which images deserve a look: the worst of each method, and those that a metric and the truth see differently.

Both are of methods' images only; the frame rows are bad, or good, by design.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

# The first that was scored stands for what a role is judged by.
JUDGES = {"content": ("dino/content", "clip_i/content"), "style": ("csd/style", "clip_i/style")}
TRUTH = {"content": "subject_r1", "style": "style_r1"}  # 1 where the image shows this very subject, this very style
HIGH = 0.75  # quantile among all images of the methods
APART = 0.5  # of quantiles, where there is no truth


@dataclass(frozen=True)
class Case:
    """An image with what it is an example of and why; image: its place among the values."""

    image: int
    kind: str
    why: str


def worst(values: pd.DataFrame) -> list[Case]:
    """All images from the lowest min(content z-score, style z-score) up.

    values: a row an image, a column a metric (named as in a table, NaN where there is none).  A z-score is taken over
    all rows, so that a method's worst images are bad by the measure of all methods.  Empty without a metric of each
    role, or with one that never varies.
    """
    judges = [judge for role in JUDGES if (judge := judge_of(role, values))]
    if len(judges) < 2:
        return []
    known = values.dropna(subset=judges)
    scores = known[judges].to_numpy(dtype=float)
    if not len(scores) or not (np.ptp(scores, axis=0) > 0).all():
        return []
    z = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    cases = []
    for at in np.argsort(z.min(axis=1), kind="stable"):
        low = int(z[at].argmin())
        z_score = f"{z[at, low]:+.1f}".replace("-", "−")
        why = f"{judges[low]} {scores[at, low]:.3f}, z\u00a0{z_score}"
        cases.append(Case(int(known.index[at]), judges[low], why))
    return cases


def disagreements(values: pd.DataFrame) -> list[Case]:
    """Images that a learned metric puts in the best quarter while the truth says no, the highest first.

    Where nothing has a truth: images whose content and style judges are half of all images apart.
    """
    known = {role: truth for role, truth in TRUTH.items() if truth in values}
    if not known:
        return judges_apart(values)
    cases: list[Case] = []
    for role, truth in known.items():
        wrong = [int(image) for image in values.index[values[truth].to_numpy() < 0.5]]
        for judge in (name for metric in JUDGES[role] for name in named(metric, values)):
            below = shares(values, judge)
            fooled = sorted((image for image in wrong if below[image] >= HIGH), key=lambda image: -below[image])
            cases += [
                Case(image, f"{judge} high, {truth} 0", f"{told(values, judge, below, image)}, but {truth} 0")
                for image in fooled
            ]
    return cases


def judges_apart(values: pd.DataFrame) -> list[Case]:
    """Images that one role's judge puts high and the other's low, the furthest apart first."""
    judges = [judge for role in JUDGES if (judge := judge_of(role, values))]
    if len(judges) < 2:
        return []
    below = {judge: shares(values, judge) for judge in judges}
    gaps = {image: below[judges[0]][image] - below[judges[1]][image] for image in values.index}
    cases = []
    for image in sorted((i for i, gap in gaps.items() if abs(gap) >= APART), key=lambda image: -abs(gaps[image])):
        high, low = judges if gaps[image] > 0 else reversed(judges)
        why = "; ".join(told(values, judge, below[judge], image) for judge in (high, low))
        cases.append(Case(int(image), f"{high} high, {low} low", why))
    return cases


def shares(values: pd.DataFrame, judge: str) -> dict[Any, float]:
    """Image -> the share of images with a lower value; NaN where it has none."""
    column = pd.Series(values[judge])
    return dict(((column.rank(method="min") - 1) / column.count()).items())


def told(values: pd.DataFrame, judge: str, below: dict[Any, float], image: Any) -> str:
    """A value of an image and where it stands among all."""
    return f"{judge} {values.at[image, judge]:.3f}, above {int(100 * below[image])} % of images"


def judge_of(role: str, values: pd.DataFrame) -> str | None:
    """The column that a role is judged by."""
    return next((name for metric in JUDGES[role] for name in named(metric, values)), None)


def named(metric: str, values: pd.DataFrame) -> list[str]:
    """The columns of a metric: one, or several where several backbones scored it."""
    return [str(name) for name in values if str(name).split(" ")[0] == metric]
