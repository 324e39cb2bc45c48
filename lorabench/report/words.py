"""The comparison of a few methods with the reference in words: the last paragraph below a table.

    duolora keeps the subject better than direct (dino/content +0.031 [+0.010, +0.052]); it is not separated from direct
    in the style (csd/style +0.004 [-0.012, +0.020]). Subject and style are both recognized in 62 % of its images,
    against 50 % of direct and 100 % of the oracle.

Differences are paired by (pair, prompt, seed). With a single pair, intervals are over its images and hold for this pair
only.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan

import pandas as pd

from lorabench.report import protocols, stats
from lorabench.report.headline import BOTH, CONTENT, STYLE
from lorabench.report.labels import BASELINES_AND_ORACLE, ORACLE

MOST = 3  # methods; more are compared in the table only
MEANT = {CONTENT: "the subject", STYLE: "the style"}


def in_words(scores: pd.DataFrame, reference: str | None) -> list[str]:
    """Return one paragraph, or nothing if there is no reference, or more than MOST other methods.

    Args:
        scores: Scores with labels and with the headline scores.
        reference: Label of the reference row.
    """
    by_label = {str(label): own for label, own in scores.groupby("label", sort=False)}
    methods = [label for label in by_label if label not in (*BASELINES_AND_ORACLE, reference)]
    if reference is None or reference not in by_label or not 0 < len(methods) <= MOST:
        return []
    columns, _ = protocols.columns(protocols.ALL, scores)
    values = {
        column.spec.metric: {label: protocols.image_values(own, column) for label, own in by_label.items()}
        for column in reversed(columns)  # the first backbone of a metric is kept
    }
    sentences = [sentence for label in methods if (sentence := compared(label, reference, values))]
    if not sentences:
        return []
    pairs = len(scores[["content", "style"]].drop_duplicates())
    scope = "pairs" if pairs > 1 else "the images of this pair and hold for no other pair"
    return [
        " ".join([*sentences, f"The 95 % intervals are over {scope}; they are not corrected for several comparisons."])
    ]


def compared(label: str, reference: str, values: Mapping[str, Mapping[str, pd.DataFrame]]) -> str:
    """Return the sentences on one method; empty without scores of both roles.

    Args:
        label: The method.
        reference: The reference row.
        values: Result of `protocols.image_values` by metric and label.
    """
    parts = []
    for metric, thing in MEANT.items():
        if metric not in values or values[metric][label].empty or values[metric][reference].empty:
            return ""
        parts.append(part(difference(values[metric][label], values[metric][reference]), metric, thing, reference))
    text = f"{label} {'; it '.join(parts)}."
    if BOTH in values and not values[BOTH][label].empty:
        shares = {each: float(pd.Series(values[BOTH][each]["value"]).mean()) for each in (label, reference, ORACLE)
                  if each in values[BOTH] and not values[BOTH][each].empty}  # fmt: skip
        others = [f"{percent(share)} of {'the ' if each == ORACLE else ''}{each}" for each, share in shares.items()][1:]
        text += f" Subject and style are both recognized in {percent(shares[label])} of its images"
        text += f", against {' and '.join(others)}." if others else "."
    return text


def difference(own: pd.DataFrame, other: pd.DataFrame) -> stats.Interval:
    """Return the mean paired difference, with an interval over the pairs, or over the images of a single pair."""
    over_pairs = stats.difference(own, other)
    if over_pairs.pairs > 1:
        return over_pairs
    shared = own.index.intersection(other.index)
    return stats.interval(own.loc[shared, "value"] - other.loc[shared, "value"])


def part(delta: stats.Interval, metric: str, thing: str, reference: str) -> str:
    """Return how a method differs from the reference in one role."""
    if isnan(delta.low):
        return f"has {delta.mean:+.3f} in {thing} ({metric}) to {reference}, from a single image"
    span = f"[{delta.low:+.3f}, {delta.high:+.3f}]"
    if not delta.separated:
        return f"is not separated from {reference} in {thing} ({metric} {delta.mean:+.3f} {span})"
    return (
        f"keeps {thing} {'better' if delta.mean > 0 else 'worse'} than {reference} ({metric} {delta.mean:+.3f} {span})"
    )


def percent(share: float) -> str:
    """Format a share.

    >>> percent(0.625)
    '62 %'
    """
    return f"{100 * share:.0f} %"
