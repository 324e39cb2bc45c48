"""Means with an honest interval: a bootstrap over pairs, and paired differences.

The unit that varies is the *pair* (a content and a style): images of one pair share its LoRAs and references
and are not independent, so a bootstrap over images would promise too much. An average goes reference -> image ->
prompt -> pair -> all, each level with equal weights, or with other weights of the pairs, where a protocol gives every
object or every image the same. Images of several seeds are images of their pair. The mean over all is then a mean of
the pair means, so resampling whole pairs (the cluster bootstrap), each with its weight, is an ordinary bootstrap of
the pair means.

Both intervals are taken at *expanded* levels (Hesterberg, "What Teachers Should Know About the Bootstrap", The American
Statistician 69, 2015): the plain ones are too narrow by sqrt((n-1)/n) and by the ratio of the normal to the t quantile,
which is serious for the 4 to 30 pairs of this field. Coverage of 95 % intervals in 20000 simulated tables:

    pairs   data          percentile   BCa
    4       normal        0.874        0.874
    8       normal        0.945        0.941
    8       exponential   0.900        0.914
    20      normal        0.952        0.951
    20      exponential   0.921        0.934

The percentile interval is the one that tables show: it is easy to say and estimates nothing but the mean. BCa
(bias-corrected and accelerated) moves both ends towards the long tail: it is the better one where pair values are
skewed (scores near 0 or 1) and pairs are 8 or more, and the same where they are symmetric. Neither helps with very few
pairs: there both are about the range of the pair means, the widest that resampling can give.

Pairs that share a content or a style are treated as independent, which they are not where a value, or the difference of
two methods, depends on the content or the style itself. Then intervals are too narrow and p is too small, and tables of
such pairs say so. 20000 simulated tables of 4 contents, each in the same 2 styles, with normal values:

    variance by content, by style    coverage of 95 %    p <= 0.05 without a difference
    0, 0                             0.944               0.050
    0.5, 0                           0.877               0.113
    0, 0.5                           0.741               0.246
    0.45, 0.45                       0.697               0.289

Every method starts from the same noise, so two methods are compared on the differences of the same (pair,
prompt, seed): what is hard for both cancels and the interval shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

PAIR = ["dataset", "content", "style"]
WITHIN = ["prompt", "seed", "image"]  # a pair
UNIT = [*PAIR, *WITHIN]

LEVEL = 0.95
RESAMPLES = 9999
SEED = 0
LEAST_TAIL = 1e-9  # far below one resample: the range of the draws
ROUNDING = 1e-12  # values nearer to each other than this are the same


@dataclass(frozen=True)
class Interval:
    """A mean over pairs with its intervals; NaN what takes two pairs where there are fewer.

    low, high: the percentile interval.  p: of the hypothesis that the true mean is zero, see `p_value`.
    """

    mean: float
    low: float
    high: float
    pairs: int
    bca_low: float = np.nan
    bca_high: float = np.nan
    p: float = np.nan

    @property
    def separated(self) -> bool:
        """Whether p is 5 % or less; of one comparison alone, see lorabench/report/comparing.py."""
        return self.p <= 1 - LEVEL


def interval(
    pair_means: Sequence[float] | np.ndarray | pd.Series,
    weights: Sequence[float] | np.ndarray | pd.Series | None = None,
    level: float = LEVEL,
) -> Interval:
    """Mean of n pair means [n] with its intervals; the seed is fixed, so tables repeat.

    weights: [n] of the pairs, which are drawn together with their values; None is all the same.
    """
    values = np.asarray(pair_means, dtype=float)
    n = len(values)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    heavy = np.ones(n) if weights is None or np.ptp(weights) == 0 else np.asarray(weights, dtype=float)
    mean = float(weighted_mean(values, heavy))
    if n == 1:
        return Interval(mean, np.nan, np.nan, 1)
    if np.ptp(values) <= ROUNDING:
        return Interval(mean, mean, mean, n, mean, mean, float(p_value(values, heavy)))
    low, high, bca_low, bca_high = (float(end) for end in limits(values, heavy, level))
    return Interval(mean, low, high, n, bca_low, bca_high, float(p_value(values, heavy)))


def limits(values: ArrayLike, weights: ArrayLike, level: float = LEVEL) -> tuple[np.ndarray, ...]:
    """Pair values, weights [..., n] -> ends [...] of the expanded intervals: percentile low and high, BCa low and high.

    n is at least 2, and the values of a row are not all the same. scipy takes the limits and the jackknife of BCa; the
    draws are ours, made by one product of matrices.
    """
    values, weights = np.broadcast_arrays(np.asarray(values, dtype=float), np.asarray(weights, dtype=float))
    drawn = SimpleNamespace(bootstrap_distribution=draws(values, weights))
    ends: list[np.ndarray] = []
    for method in ("percentile", "BCa"):
        result = stats.bootstrap(
            (values, weights),
            weighted_mean,
            paired=True,
            n_resamples=0,
            bootstrap_result=drawn,
            confidence_level=1 - 2 * tail(values.shape[-1], level),
            method=method,
            axis=-1,
        )
        ends += [np.asarray(result.confidence_interval.low), np.asarray(result.confidence_interval.high)]
    return tuple(ends)


def tail(pairs: int, level: float = LEVEL) -> float:
    """Of the bootstrap means of so many pairs the share that an expanded interval leaves out at each end."""
    widened = np.sqrt(pairs / (pairs - 1)) * stats.t.ppf((1 - level) / 2, pairs - 1)
    return max(float(stats.norm.cdf(widened)), LEAST_TAIL)


def ends(drawn: np.ndarray, pairs: int, outward: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Of bootstrap draws [..., RESAMPLES] the ends [...] of the expanded percentile interval; NaN of one pair.

    outward: take draws themselves, of which a rank is one, the next beyond each end.
    """
    if pairs < 2:
        return np.full(drawn.shape[:-1], np.nan), np.full(drawn.shape[:-1], np.nan)
    out = tail(pairs)
    low = np.quantile(drawn, out, axis=-1, method="lower" if outward else "linear")
    return low, np.quantile(drawn, 1 - out, axis=-1, method="higher" if outward else "linear")


def draws(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted means [..., RESAMPLES] of pairs drawn with replacement from [..., n]; all rows draw the same pairs."""
    times = counts(values.shape[-1])
    return (values * weights) @ times / (weights @ times)


@lru_cache(maxsize=8)
def counts(pairs: int) -> np.ndarray:
    """How often each resample draws each pair, [pairs, RESAMPLES]."""
    drawn = np.random.default_rng(SEED).multinomial(pairs, np.full(pairs, 1 / pairs), size=RESAMPLES)
    return np.ascontiguousarray(drawn.T, dtype=float)


def weighted_mean(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
    return (values * weights).sum(axis=axis) / weights.sum(axis=axis)


def p_value(values: ArrayLike, weights: ArrayLike) -> np.ndarray:
    """Two-sided p [...] of pair values [..., n] having the true mean zero; NaN for a single pair.

    The t test with n - 1 degrees of freedom; of a weighted mean with its linearised standard error (the sandwich
    estimate, scaled by n / (n - 1)), which for equal weights is the ordinary one.  Values that are all the same
    tell it no spread: theirs is the p of the exact sign test, 2^(1-n), or 1 where they are zero.
    """
    values, weights = np.broadcast_arrays(np.asarray(values, dtype=float), np.asarray(weights, dtype=float))
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], np.nan)
    mean = weighted_mean(values, weights)
    off = weights * (values - mean[..., None]) / weights.sum(axis=-1, keepdims=True)
    error = np.sqrt(n / (n - 1) * (off**2).sum(axis=-1))
    same = np.ptp(values, axis=-1) <= ROUNDING
    p = 2 * stats.t.sf(np.abs(mean) / np.where(same, 1.0, error), n - 1)
    return np.where(same, np.where(np.abs(mean) <= ROUNDING, 1.0, 2.0 ** (1 - n)), p)


def image_means(scores: pd.DataFrame) -> pd.DataFrame:
    """Rows of one method, metric and backbone -> by UNIT, `value` over the references and `count` of them."""
    by_image = scores.groupby(UNIT)["value"]
    return pd.DataFrame({"value": by_image.mean(), "count": by_image.size()})


def pair_values(images: pd.DataFrame, rule: str = "pair", of: str = "content") -> pd.DataFrame:
    """What image_means gives -> by PAIR, `value` and the `weight` that the pair has in the mean over all.

    rule: what weighs the same: pair | macro (objects: those of the level `of`, then their pairs) | micro (the values
    that images stand for). Within a pair, prompts weigh the same but for micro.
    """
    values, counts = pd.Series(images["value"]), pd.Series(images["count"])
    if rule == "micro":
        weights = pd.Series(counts.groupby(level=PAIR).sum())
        return pd.DataFrame({"value": (values * counts).groupby(level=PAIR).sum() / weights, "weight": weights})
    pairs = by_pair(pd.Series(values.groupby(level=[*PAIR, "prompt"]).mean()))
    same = pd.Series(pairs.groupby(level=["dataset", of]).transform("size"))  # pairs of the same object
    return pd.DataFrame({"value": pairs, "weight": 1.0 / same if rule == "macro" else 1.0})


def by_pair(values: pd.Series) -> pd.Series:
    """Values by UNIT, or by what begins like it -> their means by PAIR."""
    return pd.Series(values.groupby(level=PAIR).mean())


def pair_means(scores: pd.DataFrame) -> pd.Series:
    """Rows of one method, metric and backbone -> value by PAIR: reference -> image -> prompt -> pair."""
    return pd.Series(pair_values(image_means(scores))["value"])


def mean(images: pd.DataFrame, rule: str = "pair", of: str = "content") -> Interval:
    """Mean over pairs of what image_means gives."""
    pairs = pair_values(images, rule, of)
    return interval(pairs["value"].to_numpy(), pairs["weight"].to_numpy())


def difference(images: pd.DataFrame, reference: pd.DataFrame, rule: str = "pair", of: str = "content") -> Interval:
    """Mean difference to a reference on the (pair, prompt, seed) that both have; NaN when they share none."""
    delta = (images["value"] - reference["value"]).dropna()
    return mean(pd.DataFrame({"value": delta, "count": images["count"].reindex(delta.index)}), rule, of)
