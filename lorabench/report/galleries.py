"""Images worth inspecting: the worst ones of each method, and those on which a metric and the ground truth disagree.

Only images of methods are listed, because baseline and oracle images are bad or good by design.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

# Metrics that judge a role, in order of preference: the first one with scores is used.
JUDGES = {"content": ("dino/content", "clip_i/content"), "style": ("csd/style", "clip_i/style")}
TRUTH = {"content": "subject_r1", "style": "style_r1"}  # 1 if the image shows exactly this subject or style
HIGH = 0.75  # quantile among all images of the methods
APART = 0.5  # difference of quantiles, used if there is no ground truth


@dataclass(frozen=True)
class Case:
    """One listed image: its row number in `values`, the kind of case and the reason."""

    image: int
    kind: str
    why: str


def worst(values: pd.DataFrame) -> list[Case]:
    """Return all images in ascending order of min(content z-score, style z-score).

    Args:
        values: One row per image and one column per metric, named as in the table; NaN if missing. A z-score is
            computed over all rows, so it compares a method's images with those of all methods.

    Returns:
        The cases; empty if a role has no metric or if a metric is constant.
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
    """Return images that a learned metric puts in the best quarter although the ground truth is 0, highest first.

    Without ground truth, return images whose content and style quantiles differ by at least 0.5.
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
                Case(image, f"{judge} high, {truth} 0", f"{described(values, judge, below, image)}, but {truth} 0")
                for image in fooled
            ]
    return cases


def judges_apart(values: pd.DataFrame) -> list[Case]:
    """Return images with a high score for one role and a low one for the other, largest difference first."""
    judges = [judge for role in JUDGES if (judge := judge_of(role, values))]
    if len(judges) < 2:
        return []
    below = {judge: shares(values, judge) for judge in judges}
    gaps = {image: below[judges[0]][image] - below[judges[1]][image] for image in values.index}
    cases = []
    for image in sorted((i for i, gap in gaps.items() if abs(gap) >= APART), key=lambda image: -abs(gaps[image])):
        high, low = judges if gaps[image] > 0 else reversed(judges)
        why = "; ".join(described(values, judge, below[judge], image) for judge in (high, low))
        cases.append(Case(int(image), f"{high} high, {low} low", why))
    return cases


def shares(values: pd.DataFrame, judge: str) -> dict[Any, float]:
    """Return image -> share of images with a lower value; NaN if it has no value."""
    column = pd.Series(values[judge])
    return dict(((column.rank(method="min") - 1) / column.count()).items())


def described(values: pd.DataFrame, judge: str, below: dict[Any, float], image: Any) -> str:
    """Return an image's value and the share of images below it, as text."""
    return f"{judge} {values.at[image, judge]:.3f}, above {int(100 * below[image])} % of images"


def judge_of(role: str, values: pd.DataFrame) -> str | None:
    """Return the column that judges a role, or None."""
    return next((name for metric in JUDGES[role] for name in named(metric, values)), None)


def named(metric: str, values: pd.DataFrame) -> list[str]:
    """Return the columns of a metric; there are several if several backbones scored it."""
    return [str(name) for name in values if str(name).split(" ")[0] == metric]
