"""Variance of scores by pair, training and image.

A value of pair p, training t and image i is m + a_p + b_pt + e_pti. The variances of a, b and e are
estimated by moments within each method and averaged over the methods, for the values and for the differences to the
reference row on the same images; a mean below zero counts as zero:

    s2_e = mean variance within (p, t)
    s2_b = mean variance over t of the means of (p, t)  -  s2_e / n
    s2_a = variance over p of the means of p  -  s2_b / T  -  s2_e / (T n)

With one seed, b cannot be separated from a. If only some methods have all seeds, only they count. The last columns have
the part of the variance of a method's mean, s2_a / P + s2_b / (P T) + s2_e / (P T n), that would vanish with twice as
many pairs, trainings or images per pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import nan

import numpy as np
import pandas as pd

from lorabench.report import averages

TRAINING = "training"  # level of the index: the seed of the run

Images = Mapping[str, pd.DataFrame]  # method -> values of its images, indexed by averages.UNIT and TRAINING


def repeated(images: Images) -> dict[str, pd.DataFrame]:
    """Return the methods that have all trainings."""
    trainings = {label: frozenset(own.index.get_level_values(TRAINING)) for label, own in images.items()}
    every = frozenset().union(*trainings.values())
    return {label: own for label, own in images.items() if trainings[label] == every}


def variance_lines(
    name: str, images: Images, reference: str, trainings: int | None = None
) -> Iterator[dict[str, object]]:
    """Yield the shares of variance of a score: of its values, and of the differences to the reference row.

    Args:
        name: Name of the score.
        images: Values of the images by method.
        reference: The reference row.
        trainings: Trainings behind a mean whose variance more repeats would reduce; None: all that are there.
    """
    values = {label: own["value"] for label, own in repeated(images).items()}
    deltas = {}
    if reference in values:
        deltas = {label: (own - values[reference]).dropna() for label, own in values.items() if label != reference}
    for of, tables in (("value", values), (f"difference to {reference}", deltas)):
        parts = [found for own in tables.values() if (found := components(own))]
        if parts:
            found = pd.DataFrame(parts).mean()
            if trainings is not None:
                found["T"] = trainings
            yield {"score": name, "of": of, **shares_of(found)}


def components(values: pd.Series) -> dict[str, float] | None:
    """Estimate the variances by pair, by training and by image from the values of one method.

    Returns:
        pair, training (NaN for one seed), sampling, and the numbers P, T, n; None if there are fewer than two pairs
        with all trainings and two images each. The estimates of pair and training may be negative.
    """
    cells = values.groupby(level=[*averages.PAIR, TRAINING]).agg(["mean", "var", "size"])
    trainings = cells.index.get_level_values(TRAINING).nunique()
    whole = cells.groupby(level=averages.PAIR)["mean"].transform("size") == trainings
    cells = cells[whole & (cells["size"] >= 2).groupby(level=averages.PAIR).transform("all")]
    by_pair = cells["mean"].groupby(level=averages.PAIR)
    if by_pair.ngroups < 2:
        return None
    n = len(cells) / (1 / cells["size"]).sum()
    sampling = float(cells["var"].mean())
    training = float(by_pair.var().mean()) - sampling / n if trainings > 1 else nan
    others = (0.0 if trainings == 1 else training / trainings) + sampling / (trainings * n)
    pair = float(by_pair.mean().var()) - others
    counts = {"P": float(by_pair.ngroups), "T": float(trainings), "n": float(n)}
    return {"pair": pair, "training": training, "sampling": sampling, **counts}


def shares_of(found: pd.Series) -> dict[str, float]:
    """Return the shares of the variance, and the part of a mean's variance that doubling each repeat removes."""
    single = bool(np.isnan(found["training"]))  # one seed
    pair, training = max(found["pair"], 0.0), 0.0 if single else max(found["training"], 0.0)
    total = pair + training + found["sampling"]
    runs = found["P"] * found["T"]
    parts = (pair / found["P"], training / runs, found["sampling"] / (runs * found["n"]))
    whole = sum(parts) or nan
    return {
        "pair": pair / (total or nan),
        "training": nan if single else training / (total or nan),
        "sampling": found["sampling"] / (total or nan),
        "twice the pairs": sum(parts) / 2 / whole,
        "twice the trainings": nan if single else (parts[1] + parts[2]) / 2 / whole,
        "twice the images": parts[2] / 2 / whole,
    }
