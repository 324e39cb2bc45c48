"""Rank table rows by their comparisons (Bradley-Terry).

    P(i beats j) = 1 / (1 + exp(s_j - s_i))

The strengths s have mean zero; `choix` finds their maximum-likelihood values. A tie counts as half a win for each. Two
rows that were compared at all also get one virtual tie, so that a row that always wins keeps a finite strength; this
pulls strengths towards each other a little. Intervals resample pairs as in `lorabench.report.clusters`.

Source: Bradley and Terry, Biometrika 39, 1952; Maystre and Grossglauser, NeurIPS 2015 (the algorithm).
"""

from __future__ import annotations

import choix
import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from lorabench.report import averages, stats
from lorabench.report.clusters import Design, counts
from lorabench.report.verdicts import QUESTIONS, items

RESAMPLES = 1000
VIRTUAL = 0.5  # wins in each direction
DIGITS = 4  # strengths that agree in them have the same rank


def rankings(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of all questions, best first: question, rank, label, strength, low, high, pairs.

    Strengths are NaN if some rows were never compared, directly or through others.
    """
    counted = items(verdicts)
    found = [
        ranking(own).assign(question=name) for name in QUESTIONS if len(own := counted[counted["question"] == name])
    ]
    columns = ["question", "rank", "label", "strength", "low", "high", "pairs"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def ranking(counted: pd.DataFrame) -> pd.DataFrame:
    """Rank the table rows by the verdicts on one question, from `items`."""
    labels = list(dict.fromkeys([*counted["a"], *counted["b"]]))
    numbers, pairs = pd.factorize(pd.MultiIndex.from_frame(counted[averages.PAIR]))
    wins, design = wins_by_pair(counted, labels, numbers), Design.of(pairs.set_names(averages.PAIR))
    played = ((total := wins.sum(axis=0)) + total.T > 0).astype(float)
    strength = low = high = np.full(len(labels), np.nan)
    if connected_components(played, directed=False)[0] == 1:
        strength = strengths(total, played)
        if design.pairs > 1:
            times = counts(design)[:, :RESAMPLES]
            drawn = np.array([strengths(np.tensordot(each, wins, 1), played, strength) for each in times.T])
            low, high = stats.ends(drawn.T, design.units)
    table = pd.DataFrame({"label": labels, "strength": strength, "low": low, "high": high, "pairs": design.pairs})
    table = table.sort_values("strength", ascending=False, ignore_index=True)
    return table.assign(rank=table["strength"].round(DIGITS).rank(ascending=False, method="min"))


def wins_by_pair(counted: pd.DataFrame, labels: list[str], numbers: np.ndarray) -> np.ndarray:
    """Return how often row i beat row j on each pair, [pairs, rows, rows].

    Args:
        numbers: Number of the pair of each verdict.
    """
    wins = np.zeros((numbers.max() + 1, len(labels), len(labels)))
    a, b = (counted[side].map(labels.index).to_numpy() for side in ("a", "b"))
    points = counted["points"].to_numpy(dtype=float)
    np.add.at(wins, (numbers, a, b), points)
    np.add.at(wins, (numbers, b, a), 1 - points)
    return wins


def strengths(wins: np.ndarray, played: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Return the strengths [rows] with mean zero.

    Args:
        wins: How often row i beat row j.
        played: 1 if rows i and j were compared, else 0.
        start: Strengths to begin with.
    """
    found = choix.ilsr_pairwise_dense(wins + VIRTUAL * played, initial_params=start, max_iter=10_000, tol=1e-6)
    return found - found.mean()
