"""Means with an honest interval: a bootstrap over pairs, and paired differences.

The unit that varies is the *pair* (a content and a style): images of one pair share its LoRAs and references
and are not independent, so a bootstrap over images would promise too much. An average goes reference -> image ->
prompt -> pair -> all, each level with equal weights, or with other weights of the pairs, where a protocol gives every
object or every image the same. The mean over all is then a mean of the pair means, so resampling whole pairs (the
cluster bootstrap), each with its weight, is an ordinary bootstrap of the pair means.

The interval is the percentile interval at *expanded* levels (Hesterberg, "What Teachers Should Know About the
Bootstrap", The American Statistician 69, 2015): the plain one is too narrow by sqrt((n-1)/n) and by the ratio
of the normal to the t quantile, which is serious for the 4 to 30 pairs of this field. With very few pairs the
expanded interval is the range of the pair means, the widest that resampling can give; below about 6 pairs it
covers less than it says (0.87 instead of 0.95 for 4 pairs of normal data). Pairs that share a content or a
style are treated as independent.

Every method starts from the same noise, so two methods are compared on the differences of the same (pair,
prompt, seed): what is hard for both cancels and the interval shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

PAIR = ["dataset", "content", "style"]
UNIT = [*PAIR, "prompt", "seed", "image"]

LEVEL = 0.95
RESAMPLES = 9999
SEED = 0


@dataclass(frozen=True)
class Interval:
    """A mean over pairs with its interval; low and high are NaN when there are fewer than two pairs."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def separated(self) -> bool:
        """Whether zero lies outside: of a difference, whether the two methods are told apart."""
        return self.low > 0 or self.high < 0


def interval(
    pair_means: Sequence[float] | np.ndarray | pd.Series,
    weights: Sequence[float] | np.ndarray | pd.Series | None = None,
    level: float = LEVEL,
    seed: int = SEED,
) -> Interval:
    """Mean of n pair means [n] with its expanded percentile interval; the seed is fixed, so tables repeat.

    weights: [n] of the pairs, which are drawn together with their values; equal ones are none.
    """
    values = np.asarray(pair_means, dtype=float)
    n = len(values)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    heavy = None if weights is None or np.ptp(weights) == 0 else np.asarray(weights, dtype=float)
    mean = float(values.mean()) if heavy is None else float(np.average(values, weights=heavy))
    if n == 1:
        return Interval(mean, np.nan, np.nan, 1)
    tail = float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - level) / 2, n - 1)))
    result = stats.bootstrap(
        (values,) if heavy is None else (values, heavy),
        np.mean if heavy is None else weighted_mean,
        paired=heavy is not None,
        n_resamples=RESAMPLES,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high), n)


def weighted_mean(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
    return (values * weights).sum(axis=axis) / weights.sum(axis=axis)


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
