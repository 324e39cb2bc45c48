"""Figures that compare a metric with the true distances of the microworld.

**True distances.** `content_distance` of two subjects and `style_distance` of two styles
(lorabench/data/microworld/factors.py) are computed from the factors that the world renders. They are 0 only for the
same individual and grow with each factor. One half is the class (family), because a teapot instead of a mug is a
different thing in any color; the other half is the identity: proportions, colors, mark (hues, texture, lines, ground).
The weight of the halves is a choice. So correlations are also given within the anchor's class (family), for which it
does not matter. A sentence names only class and family; its distance to an image is the share of these two that the
image has wrong.

**Rank correlation** of value and negative distance over all renderings, for each anchor (see calibration.py); the mean
over anchors, with a bootstrap over them. **Leakage**: for each anchor, the variance of its values over the grid of
subjects and styles is divided into the shares of the subject, of the style, and of their interaction (with the pose).
A content metric that sees only content has 1, 0, 0.

**Known answers**, for each pair of a subject and a style:

    perfect        this subject in this style, as in the oracle row of a table
    content_only   this subject in another style
    photograph     this subject, photographed
    style_only     another subject in this style
    swapped        another subject in another style

A content metric must give the first three higher values than the last two. A style metric must give `perfect` and
`style_only` the highest ones. For a sentence, `perfect` must be highest and `swapped` lowest. The figure is the share
of cases in which this holds, for others of another class (family) and, as the harder case, of the same one. A check
passes if that share is at least `task.holds`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, spearmanr

from lorabench.report import stats
from lorabench.tasks.calibration_world import TEXT, Metric, World

CASES = ("perfect", "content_only", "photograph", "style_only", "swapped")
# (higher, lower) cases by the kind of metric. A photograph is in no style and has no sentence.
CHECKS: dict[str, tuple[tuple[str, str], ...]] = {
    "content": (
        ("perfect", "style_only"), ("perfect", "swapped"), ("content_only", "style_only"), ("content_only", "swapped"),
        ("photograph", "style_only"),
    ),
    "style": (
        ("perfect", "content_only"), ("perfect", "swapped"), ("style_only", "content_only"), ("style_only", "swapped"),
        ("perfect", "photograph"),
    ),
    TEXT: (
        ("perfect", "content_only"), ("perfect", "style_only"), ("content_only", "swapped"), ("style_only", "swapped"),
    ),
}  # fmt: skip


def calibrate(metric: Metric, world: World, holds: float) -> pd.DataFrame:
    """Return all figures of one metric, one row each.

    Columns: metric; backbone; measures; figure (spearman, kendall, variance, value, check); of (its subject: "all" or
    "same kind" for correlations, the source of the variance, the case, or a check such as "perfect > swapped"); kind
    ("other" or "same" class and family of the other images in a case); value, low, high; anchors (their number);
    passes (for checks).

    Args:
        metric: The metric.
        world: The world.
        holds: Share of cases from which a check passes.
    """
    lines = [*correlations(metric, world), *leakage(metric), *answers(metric, world)]
    own = {"metric": metric.name, "backbone": metric.backbone, "measures": metric.measures}
    found = pd.DataFrame(
        [own | {"figure": figure, "of": of, "kind": kind, **summary(each)} for figure, of, kind, each in lines]
    )
    is_check = found["figure"] == "check"
    found["passes"] = (found["value"] >= holds).astype(object).where(is_check & found["value"].notna(), None)
    return found


def summary(by_anchor: np.ndarray) -> dict[str, float | int]:
    """Return the mean over the anchors whose figure is not NaN, with the interval of a bootstrap over them."""
    known = by_anchor[~np.isnan(by_anchor)]
    at = stats.interval(known)
    return {"value": at.mean, "low": at.low, "high": at.high, "anchors": len(known)}


Lines = Iterator[tuple[str, str, str, np.ndarray]]  # figure, of, kind, one value per anchor


def correlations(metric: Metric, world: World) -> Lines:
    """Yield Spearman's and Kendall's (tau-b) correlation of value and closeness; NaN if either is constant."""
    if metric.measures == "content":
        distances = np.broadcast_to(world.content[:, :, None], metric.renderings.shape)
        same = np.broadcast_to((world.classes[:, None] == world.classes)[:, :, None], metric.renderings.shape)
    elif metric.measures == "style":
        distances = np.broadcast_to(world.style[:, None, :], metric.renderings.shape)
        same = np.broadcast_to((world.families[:, None] == world.families)[:, None, :], metric.renderings.shape)
    else:
        distances, same = world.text, None
    for name, correlate in (("spearman", spearmanr), ("kendall", kendalltau)):
        for of, chosen in (("all", np.ones(metric.renderings.shape, bool)), ("same kind", same)):
            if chosen is not None:
                found = [
                    correlation(correlate, values[use], -far[use])
                    for values, far, use in zip(metric.renderings, distances, chosen, strict=True)
                ]
                yield name, of, "", np.array(found)


def correlation(correlate, values: np.ndarray, closeness: np.ndarray) -> float:
    """Return a correlation, or NaN if one side is constant."""
    if np.ptp(values) == 0 or np.ptp(closeness) == 0:
        return np.nan
    return float(correlate(values, closeness).statistic)


def leakage(metric: Metric) -> Lines:
    """Yield the shares of content, style and the rest in each anchor's variance; NaN for a constant anchor."""
    values = metric.renderings
    centered = values - values.mean(axis=(1, 2), keepdims=True)
    total = (centered**2).mean(axis=(1, 2))
    total = np.where(total > 1e-20, total, np.nan)
    content = (centered.mean(axis=2) ** 2).mean(axis=1) / total
    style = (centered.mean(axis=1) ** 2).mean(axis=1) / total
    yield "variance", "content", "", content
    yield "variance", "style", "", style
    yield "variance", "rest", "", 1 - content - style


def answers(metric: Metric, world: World) -> Lines:
    """Yield each anchor's mean value per case, and the share of cases in which each check holds."""
    anchors = world.anchors(metric.measures)
    for kind in ("other", "same"):
        if metric.measures == TEXT and kind == "same":
            continue  # all of one class and family have the same sentence
        lines: dict[tuple[str, str], np.ndarray] = {}
        by_pair = {pair: cases(metric, world, int(anchor), pair, kind) for pair, anchor in np.ndenumerate(anchors)}
        for case in CASES:
            lines["value", case] = np.array(
                [own[case].mean() if own[case].size else np.nan for own in by_pair.values()]
            )
        for better, worse in CHECKS[metric.measures]:
            if kind == "same" and {better, worse} == {"perfect", "photograph"}:
                continue  # both show the subject itself
            shares = [exceeds(own[better], own[worse]) for own in by_pair.values()]
            lines["check", f"{better} > {worse}"] = np.array(shares)
        for (figure, of), found in lines.items():
            if not np.isnan(found).all():  # NaN, for example, for a photograph and a sentence
                means = pd.Series(pd.Series(found).groupby(anchors.ravel()).mean())
                yield figure, of, kind, means.to_numpy()


def cases(metric: Metric, world: World, anchor: int, pair: tuple[int, ...], kind: str) -> dict[str, np.ndarray]:
    """Return the values of each case for a pair (subject, style).

    Args:
        metric: The metric.
        world: The world.
        anchor: Index of the pair's anchor.
        pair: Indices of subject and style.
        kind: "other" or "same": class and family of the other subjects and styles.
    """
    subject, style = pair
    values = metric.renderings[anchor]
    alike = world.classes == world.classes[subject], world.families == world.families[style]
    if kind == "same":
        subjects, styles = (np.setdiff1d(np.flatnonzero(each), own) for each, own in zip(alike, pair, strict=True))
    else:
        subjects, styles = (np.flatnonzero(~each) for each in alike)
    return {
        "perfect": values[subject, [style]],
        "content_only": values[subject, styles],
        "photograph": metric.photographs[anchor, subject] if metric.photographs is not None else np.empty(0),
        "style_only": values[subjects, style],
        "swapped": values[np.ix_(subjects, styles)].ravel(),
    }


def exceeds(better: np.ndarray, worse: np.ndarray) -> float:
    """Return the share of couples in which the first is greater. Ties count a half; NaN if there are no couples.

    >>> exceeds(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    if not better.size or not worse.size:
        return np.nan
    ordered = np.sort(worse)
    below, up_to = (np.searchsorted(ordered, better, side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / worse.size)
