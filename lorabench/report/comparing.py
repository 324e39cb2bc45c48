"""Comparison of several methods in one column: p-values corrected for multiple tests, and ranks with intervals.

A table with ten methods makes nine comparisons with the reference, and one in twenty is separated by chance. Holm's
procedure (Scandinavian Journal of Statistics 6, 1979) limits the probability of any false one to 5 %. It allows
dependent comparisons, which these are, because all share the reference's images.

Ranks are as uncertain as means. Their intervals come from one bootstrap over the pairs that all methods share. All
methods use the same resamples, so a pair that is difficult for all methods changes no rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from lorabench.report import averages, stats
from lorabench.report.clusters import Design

ALPHA = 0.05  # probability of any false difference in a column
DECIMALS = 12  # means that agree to so many decimals are equal


def holm(p: Sequence[float] | np.ndarray | pd.Series, tests: int = 0) -> np.ndarray:
    """Adjust a family of p-values [n] with Holm's procedure; NaN entries are ignored and stay NaN.

    The k-th smallest of m p-values is multiplied by m - k + 1, and adjusted values never decrease. statsmodels has
    this too, but runs the garbage collector in every call, which takes a second or two per table.

    Args:
        p: The p-values.
        tests: Size m of the family, if it has more tests than these; those that are not there count as the greatest.
    """
    given = np.asarray(p, dtype=float)
    adjusted = np.full(len(given), np.nan)
    ascending = np.argsort(given)[: np.count_nonzero(~np.isnan(given))]  # NaN is sorted last
    left = max(tests, len(ascending)) - np.arange(len(ascending))
    adjusted[ascending] = np.minimum(np.maximum.accumulate(left * given[ascending]), 1.0)
    return adjusted


def ranks(images: Mapping[str, pd.DataFrame], rule: str = "pair", of: str = "content") -> pd.DataFrame:
    """Rank methods by their mean over the images that all of them share.

    Args:
        images: Method -> result of averages.image_means.
        rule: See averages.pair_values.
        of: See averages.pair_values.

    Returns:
        By method: rank, rank_low, rank_high (95 %). Rank 1 is the largest mean; equal means share the mean of their
        ranks. Ranks are NaN for less than two methods or without shared images, intervals for less than two pairs.
    """
    found = pd.DataFrame(np.nan, index=list(images), columns=["rank", "rank_low", "rank_high"])
    if len(images) < 2 or (shared := shared_images(images.values())).empty:
        return found
    own = [averages.pair_values(each.loc[shared], rule, of) for each in images.values()]
    values, weights = (np.stack([each[column].to_numpy() for each in own]) for column in ("value", "weight"))
    found["rank"] = order(stats.weighted_mean(values, weights))
    design = Design.of(own[0].index)
    drawn = order(stats.draws(values, weights, design))
    found["rank_low"], found["rank_high"] = stats.ends(drawn, design.units if len(own[0]) > 1 else 1, outward=True)
    return found


def order(means: np.ndarray) -> np.ndarray:
    """Return the ranks of means [methods, ...] among the methods."""
    return rankdata(-np.round(means, DECIMALS), axis=0)


def shared_images(images: Iterable[pd.DataFrame]) -> pd.Index:
    """Return the images that all methods have, indexed by averages.UNIT."""
    return reduce(pd.Index.intersection, [frame.index for frame in images]).sort_values()
