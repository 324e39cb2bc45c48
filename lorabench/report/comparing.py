"""Several methods in one column: which differences hold when many are looked at, and how sure the order is.

A table of ten methods makes nine comparisons with the reference, of which one in twenty looks separated by chance.
Holm's procedure (Scandinavian Journal of Statistics 6, 1979) keeps the chance of any false one at 5 %, whatever the
dependence among them; here they all share the reference's images.

The order of a table is as uncertain as its means. A rank's interval comes from one bootstrap over the pairs that all
methods share, which draws the same pairs for all: a pair that is hard for every method moves no rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from lorabench.report import stats

ALPHA = 0.05  # the chance of any false difference in a column
DECIMALS = 12  # means that agree so far are the same


def holm(p: Sequence[float] | np.ndarray | pd.Series) -> np.ndarray:
    """Holm's adjusted p values [n] of a family; a NaN is no comparison and stays one.

    The k-th least p times the number of p values from it on, and never less than the one before.  (statsmodels has it
    too, and collects garbage at every call: a second or two a table.)
    """
    given = np.asarray(p, dtype=float)
    adjusted = np.full(len(given), np.nan)
    ascending = np.argsort(given)[: np.count_nonzero(~np.isnan(given))]  # NaN is sorted last
    left = np.arange(len(ascending), 0, -1)
    adjusted[ascending] = np.minimum(np.maximum.accumulate(left * given[ascending]), 1.0)
    return adjusted


def ranks(images: Mapping[str, pd.DataFrame], rule: str = "pair", of: str = "content") -> pd.DataFrame:
    """What stats.image_means gives by method -> by method: rank, rank_low, rank_high (95 %).

    Rank 1 is the greatest mean over the images that all share; equal means share the mean of their ranks. NaN without a
    second method or a shared image, the interval without a second pair.
    """
    found = pd.DataFrame(np.nan, index=list(images), columns=["rank", "rank_low", "rank_high"])
    if len(images) < 2 or (shared := shared_images(images.values())).empty:
        return found
    own = [stats.pair_values(each.loc[shared], rule, of) for each in images.values()]
    values, weights = (np.stack([each[column].to_numpy() for each in own]) for column in ("value", "weight"))
    found["rank"] = order(stats.weighted_mean(values, weights))
    drawn = order(stats.draws(values, weights))
    found["rank_low"], found["rank_high"] = stats.ends(drawn, len(own[0]), outward=True)
    return found


def order(means: np.ndarray) -> np.ndarray:
    """Ranks among the methods, of means [methods, ...]."""
    return rankdata(-np.round(means, DECIMALS), axis=0)


def shared_images(images: Iterable[pd.DataFrame]) -> pd.Index:
    """Return the images that each of them has, by stats.UNIT."""
    return reduce(pd.Index.intersection, [frame.index for frame in images]).sort_values()
