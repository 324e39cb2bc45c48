"""Averages of scores: reference -> image -> prompt -> pair, with equal weights at each level.

A protocol may instead give every object or every image the same weight. Images of several seeds count as images of
their pair.
"""

from __future__ import annotations

import pandas as pd

PAIR = ["dataset", "content", "style"]
WITHIN = ["prompt", "seed"]  # keys of an image within its pair
UNIT = [*PAIR, *WITHIN]


def image_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Average over references. Rows of one method, metric and backbone -> `value` and number of references, by UNIT."""
    by_image = scores.groupby(UNIT)["value"]
    return pd.DataFrame({"value": by_image.mean(), "count": by_image.size()})


def pair_values(images: pd.DataFrame, rule: str = "pair", of: str = "content") -> pd.DataFrame:
    """Average over images and prompts.

    Args:
        images: Result of `image_means`.
        rule: "pair" gives all pairs the same weight, "macro" all objects (values of level `of`), "micro" all values
            (image x reference). Within a pair, prompts have the same weight except for "micro".
        of: Level that "macro" groups by, "content" or "style".

    Returns:
        By PAIR, the `value` and the `weight` of the pair in the overall mean.
    """
    values, counts = pd.Series(images["value"]), pd.Series(images["count"])
    if rule == "micro":
        weights = pd.Series(counts.groupby(level=PAIR).sum())
        return pd.DataFrame({"value": (values * counts).groupby(level=PAIR).sum() / weights, "weight": weights})
    pairs = by_pair(pd.Series(values.groupby(level=[*PAIR, "prompt"]).mean()))
    if rule == "pair":
        return pd.DataFrame({"value": pairs, "weight": 1.0})
    same = pd.Series(pairs.groupby(level=["dataset", of]).transform("size"))  # pairs of the same object
    return pd.DataFrame({"value": pairs, "weight": 1.0 / same})


def by_pair(values: pd.Series) -> pd.Series:
    """Average values indexed by UNIT (or by its first levels) over each pair."""
    return pd.Series(values.groupby(level=PAIR).mean())


def pair_means(scores: pd.DataFrame) -> pd.Series:
    """Average the rows of one method, metric and backbone: reference -> image -> prompt -> pair."""
    return pd.Series(pair_values(image_means(scores))["value"])
