"""Curves and hypervolumes of task=tradeoff, from scores by pair.

Both axes are relative to single LoRAs, so that they can be read without knowledge of the metrics:

    content = (C - C of style_only) / (C of content_only - C of style_only)
    style   = (S - S of content_only) / (S of style_only - S of content_only)

At (0, 0), content is that of `style_only` and style is that of `content_only`. The hypervolume is the area that a
method's points dominate from there. It is 1 for a merge with as much content as the content LoRA and as much style as
the style LoRA. Its interval is a bootstrap over pairs; the axes are those of all pairs. The best of several noisy
points is biased upwards, but equally for all methods, since all have the same number of points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import moocore
import numpy as np
import pandas as pd

from lorabench.data.concepts import ROLES, Role
from lorabench.report import stats
from lorabench.report.clusters import Design, counts

Strengths = tuple[float, float]  # scales of content and style


@dataclass(frozen=True)
class Axis:
    """A metric relative to single LoRAs.

    Args:
        metric: Name of the metric.
        off: Its mean without the role's LoRA.
        on: Its mean with the role's LoRA only.
    """

    metric: str
    off: float
    on: float

    def share(self, values: pd.Series) -> pd.Series:
        """Return the values on the axis."""
        return (values - self.off) / (self.on - self.off)


Measured = Mapping[tuple[str, Strengths], Mapping[Role, pd.Series]]  # by method and point, then by role: value by pair


def curves_of(measured: Measured, axes: Mapping[Role, Axis]) -> pd.DataFrame:
    """Return one row per method and point: scales, both metrics, and both axes with their intervals.

    The column `front` marks points that no other point of the same method dominates; `joint_front` marks points that
    no point of any method dominates.
    """
    lines = []
    for (name, point), by_role in measured.items():
        line: dict[str, str | float] = {"method": name, "content_strength": point[0], "style_strength": point[1]}
        for role in ROLES:
            share = axes[role].share(by_role[role])
            at = stats.over_pairs(share)
            line |= {axes[role].metric: float(by_role[role].mean())}
            line |= {role: at.mean, f"{role}_low": at.low, f"{role}_high": at.high}
        lines.append(line)
    curves = pd.DataFrame(lines)
    curves["front"] = False
    for _, own in curves.groupby("method"):
        curves.loc[own.index, "front"] = undominated(own)
    return curves.assign(joint_front=undominated(curves))


def undominated(curves: pd.DataFrame) -> np.ndarray:
    """Return which points no other point dominates."""
    return np.asarray(moocore.is_nondominated(curves[list(ROLES)].to_numpy(), maximise=True))


def volumes_of(measured: Measured, axes: Mapping[Role, Axis], reference: str) -> pd.DataFrame:
    """Return each method's hypervolume with interval, and its paired difference to the reference method."""
    by_method = {name: shares(measured, name, axes) for name, _ in measured}
    whole = {name: hypervolume(points.mean(axis=1)) for name, points in by_method.items()}
    design = design_of(measured)
    drawn = {name: resampled(points, design) for name, points in by_method.items()}
    lines = []
    for name in by_method:
        low, high = map(float, stats.ends(drawn[name], design.units))
        line: dict[str, str | float | bool] = {"method": name, "hypervolume": whole[name], "low": low, "high": high}
        if reference in whole and name != reference:
            least, most = map(float, stats.ends(drawn[name] - drawn[reference], design.units))
            line |= {"reference": reference, "difference": whole[name] - whole[reference]}
            line |= {"difference_low": least, "difference_high": most, "separated": bool(least > 0 or most < 0)}
        lines.append(line)
    return pd.DataFrame(lines)


def shares(measured: Measured, name: str, axes: Mapping[Role, Axis]) -> np.ndarray:
    """Return content and style of a method's points by pair, [points, pairs, 2]."""
    own = [by_role for (method, _), by_role in measured.items() if method == name]
    return np.array([np.stack([axes[role].share(by_role[role]) for role in ROLES], axis=-1) for by_role in own])


def hypervolume(points: np.ndarray) -> float:
    """Return the area that points [n, 2] dominate from (0, 0). A point that is negative on an axis adds nothing."""
    return float(moocore.hypervolume(points, ref=[0.0, 0.0], maximise=True))


def design_of(measured: Measured) -> Design:
    """Return the design of the pairs, which all methods share."""
    by_role = next(iter(measured.values()))
    return Design.of(by_role["content"].index)


def resampled(points: np.ndarray, design: Design) -> np.ndarray:
    """Return the hypervolume of each bootstrap sample of the pairs, for points [points, pairs, 2]."""
    times = counts(design)
    means = np.einsum("kpa,pr->rka", points, times / times.sum(axis=0))
    return np.array([hypervolume(each) for each in np.ascontiguousarray(means)])
