"""Sensitivity of the scores: effects of known damage, the rate of false differences, and detectable differences.

All numbers come from one table per score, of labels x pairs. A difference is that of a label to the undamaged merge,
averaged over the images of a pair.

    dose_response   difference, interval and p of each dose; Holm's correction over the doses of a kind and score
    smallest_dose   smallest dose from which on all greater ones are separated too
    null_rates      two seeds of the same method: share of random splits (which of both seeds is called the method, pair
                    by pair, on a random subset of the pairs) with p <= 5 %
    detectable      difference that is found with a probability of 80 %: (t_0.975 + t_0.8) sd / sqrt(pairs), with the
                    standard deviation over pairs of the differences between the direct merge and small damage, methods
                    of a kind (an ablation and its method, a learned method and its closed form), the direct merge and
                    methods of other kinds, and two seeds, which share neither noise nor LoRAs
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
import pandas as pd
from scipy import stats as distributions

from lorabench.base import seed_of
from lorabench.report import comparing, stats
from lorabench.report.clusters import Design

POWER = 0.8
PAIRS = (8, 16, 32)
DAMAGE, LIKE, UNLIKE, SEED = "small damage", "like", "unlike", "another seed"  # kinds of compared rows
# Detectable differences at 32 pairs that the benchmark aims at.
TARGETS = {
    ("dino/content", LIKE): 0.03, ("csd/style", LIKE): 0.03, ("dino/content", UNLIKE): 0.07,
    ("csd/style", UNLIKE): 0.07, ("both", LIKE): 0.10, ("both", UNLIKE): 0.10,
}  # fmt: skip
MOST_PAIRS = 2000  # a search for more pairs ends here


@dataclass(frozen=True)
class Dose:
    """A row with known damage.

    Args:
        kind: Damaged quantity: "energy", "content weight", "style weight", "style of another pair".
        dose: Amount of the damage.
        label: The row.
    """

    kind: str
    dose: float
    label: str


Values = Mapping[str, pd.DataFrame]  # column of the table -> values, labels x pairs


def dose_response(values: Values, doses: Sequence[Dose], undamaged: str) -> pd.DataFrame:
    """Return one row per score and dose, with the difference to the undamaged merge."""
    lines = []
    for column, table in values.items():
        design = Design.of(table.columns)
        for each in doses:
            at = stats.interval(table.loc[each.label] - table.loc[undamaged], design=design)
            lines.append((column, each.kind, each.dose, each.label, at.mean, at.low, at.high, at.p))
    found = pd.DataFrame(lines, columns=["score", "kind", "dose", "label", "difference", "low", "high", "p"])
    found["p_holm"] = nan
    for _, family in found.groupby(["score", "kind"], sort=False):
        found.loc[family.index, "p_holm"] = comparing.holm(family["p"].to_numpy())
    return found.assign(separated=found["p_holm"] <= comparing.ALPHA)


def smallest_dose(response: pd.DataFrame) -> pd.DataFrame:
    """Return the smallest dose that is separated together with all greater ones, by score and kind; NaN for none."""
    lines = []
    for (score, kind), own in response.sort_values("dose", kind="stable").groupby(["score", "kind"], sort=False):
        sure = own["separated"].to_numpy()[::-1].cumprod()[::-1].astype(bool)
        lines.append((score, kind, float(own["dose"][sure].min()) if sure.any() else nan))
    return pd.DataFrame(lines, columns=["score", "kind", "dose"])


def null_rates(values: Values, one: str, other: str, splits: int, pairs: Iterable[int] = PAIRS) -> pd.DataFrame:
    """Return the share of splits of two seeds of one method in which they are separated at 5 %.

    Args:
        values: Values by score.
        one: Row of the first seed.
        other: Row of the second seed.
        splits: Number of random splits.
        pairs: Numbers of pairs; numbers that are not there are left out. All pairs are taken if there are fewer.

    Returns:
        Columns score, pairs, rate and splits; empty if pairs share subjects or styles, because signs that change pair
        by pair would make such pairs independent.
    """
    lines = []
    for column, table in values.items():
        delta, design = (table.loc[one] - table.loc[other]).to_numpy(dtype=float), Design.of(table.columns)
        if not design.is_independent:
            continue
        rng = np.random.default_rng(seed_of("null", column))
        for count in [each for each in pairs if each <= len(delta)] or [len(delta)]:
            signs = rng.choice([-1.0, 1.0], (splits, len(delta)))
            chosen = np.argsort(rng.random((splits, len(delta))), axis=1)[:, :count]
            p = stats.p_value(np.take_along_axis(signs * delta, chosen, axis=1), np.ones(count))
            lines.append((column, count, float(np.mean(p <= comparing.ALPHA)), splits))
    return pd.DataFrame(lines, columns=["score", "pairs", "rate", "splits"])


def detectable(values: Values, compared: Mapping[str, Sequence[tuple[str, str]]]) -> pd.DataFrame:
    """Return the minimal detectable difference by score and kind of rows, for PAIRS pairs.

    Args:
        values: Values by score.
        compared: Labels of two rows each, by DAMAGE, LIKE, UNLIKE and SEED.

    Returns:
        Empty if pairs share subjects or styles, because the formula is that of independent pairs. Otherwise the
        columns score, rows, sd, one column per number of pairs, target, and pairs_needed: the number of pairs for which
        the target is met, NaN without a target.
    """
    lines = []
    for column, table in values.items():
        for name, labels in compared.items():
            if not labels or table.shape[1] < 2 or not Design.of(table.columns).is_independent:
                continue
            deltas = [(table.loc[one] - table.loc[other]).to_numpy(dtype=float) for one, other in labels]
            sd = float(np.sqrt(np.mean([delta.var(ddof=1) for delta in deltas])))
            target = TARGETS.get((column, name), nan)
            lines.append(
                (column, name, sd, *(least_difference(sd, count) for count in PAIRS), target, needed(sd, target))
            )
    return pd.DataFrame(lines, columns=["score", "rows", "sd", *map(str, PAIRS), "target", "pairs_needed"])


def least_difference(sd: float, pairs: int) -> float:
    """Return the mean difference that a two-sided t test at 5 % finds with the probability POWER.

    >>> round(least_difference(0.1, 32), 3)
    0.051
    """
    freedom = pairs - 1
    quantiles = distributions.t.ppf(1 - comparing.ALPHA / 2, freedom) + distributions.t.ppf(POWER, freedom)
    return float(quantiles * sd / np.sqrt(pairs))


def needed(sd: float, target: float) -> float:
    """Return the number of pairs for which a difference is detectable; NaN without a target or if they are too many."""
    return next((float(n) for n in range(3, MOST_PAIRS) if least_difference(sd, n) <= target), nan)
