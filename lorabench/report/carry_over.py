"""Does a finding carry over to another model? The same rows on the same pairs of two models, as text.

For each score: the mean of each row on each model, its paired difference to the reference row of that model, and the
agreement of the two orders,

    tau_b = sum_ij sign(a_i - a_j) sign(b_i - b_j) / sqrt( sum_ij |sign(a_i - a_j)|  sum_ij |sign(b_i - b_j)| ),

with a and b the means of the rows on the two models (Kendall, Biometrika 33, 1945). 1 is the same order, 0 is chance.
Its interval resamples the pairs of both models together, as in `lorabench.report.clusters`. An order of rows that do
not differ is noise, so a low tau means something only if differences are separated.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

import numpy as np
import pandas as pd

from lorabench.report import comparing, stats
from lorabench.report.clusters import Design, counts

LEAST = 3  # rows; two have no order to speak of
RESAMPLES = 2000
LINE = ["score", "model", "label", "mean", "difference", "low", "high", "p", "p_holm", "separated"]

Values = Mapping[str, pd.DataFrame]  # model -> values of a score, labels x pairs


def differences(score: str, values: Values, reference: str) -> pd.DataFrame:
    """Return one line per model and row, with the columns LINE. Holm's correction is made within each model."""
    lines = []
    for model, table in values.items():
        design = Design.of(table.columns)
        for label, own in table.iterrows():
            line = {"score": score, "model": model, "label": label, "mean": float(own.mean())}
            if label != reference:
                at = stats.interval(own - table.loc[reference], design=design)
                line |= {"difference": at.mean, "low": at.low, "high": at.high, "p": at.p}
            lines.append(line)
    found = pd.DataFrame(lines).reindex(columns=LINE)
    for _, family in found.groupby("model", sort=False):
        found.loc[family.index, "p_holm"] = comparing.holm(family["p"].to_numpy(dtype=float))
    return found.assign(separated=found["p_holm"].astype(float) <= comparing.ALPHA)


def agreement(score: str, values: Values) -> pd.DataFrame:
    """Return one line per two models: score, models, tau, low, high, rows, pairs; tau is NaN for less than 3 rows."""
    names, lines = list(values), []
    for first, second in ((a, b) for k, a in enumerate(names) for b in names[k + 1 :]):
        rows = values[first].index.intersection(values[second].index, sort=False)
        pairs = values[first].columns.intersection(values[second].columns)
        a, b = (values[name].loc[rows, pairs].to_numpy(dtype=float) for name in (first, second))
        tau = low = high = nan
        if len(rows) >= LEAST:
            tau = float(tau_b(a.mean(axis=1), b.mean(axis=1)))
            design = Design.of(pairs)
            if design.pairs > 1:
                times = counts(design)[:, :RESAMPLES]
                drawn = tau_b(a @ times, b @ times)
                low, high = (float(end) for end in stats.ends(drawn, design.units, outward=True))
        lines.append((score, f"{first}, {second}", tau, low, high, len(rows), len(pairs)))
    return pd.DataFrame(lines, columns=["score", "models", "tau", "low", "high", "rows", "pairs"])


def tau_b(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b of two arrays of means [rows, ...] over the rows; NaN if all rows of one are equal."""
    i, j = np.triu_indices(len(a), 1)
    left, right = (np.sign(np.round(each[i] - each[j], comparing.DECIMALS)) for each in (a, b))
    scale = np.sqrt(np.abs(left).sum(axis=0) * np.abs(right).sum(axis=0))
    return np.divide((left * right).sum(axis=0), scale, out=np.full(scale.shape, nan), where=scale > 0)


def write(lines: pd.DataFrame, orders: pd.DataFrame, reference: str, pairs: str, images: int) -> str:
    """Return the text.

    Args:
        lines: From `differences`, of all scores.
        orders: From `agreement`, of all scores.
        reference: Row that differences refer to.
        pairs: Number of pairs in words.
        images: Images per pair and row.
    """
    parts = []
    for (score, own), (_, order) in zip(
        lines.groupby("score", sort=False), orders.groupby("score", sort=False), strict=True
    ):
        models = list(dict.fromkeys(own["model"]))
        parts += [f"## {score}", "", f"| row | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
        for label, of_row in own.groupby("label", sort=False):
            found = of_row.set_index("model")
            cells = [cell(found.loc[model]) if model in found.index else "" for model in models]
            parts.append(f"| {label} | {' | '.join(cells)} |")
        parts += ["", *(sentence(each) for _, each in order.iterrows()), ""]
    parts += [
        f"Mean, and difference to {reference} on the same model with 95 % intervals, over {pairs} with {images} images "
        "each; all models have the same pairs, noise and scorers. ~ not separated: p is above 5 % after Holm's "
        "correction over the rows of a model. Baselines and the oracle are not part of the orders.",
        "",
    ]
    return "\n".join(parts)


def cell(line: pd.Series) -> str:
    """Return the mean and the difference of a row on a model."""
    if np.isnan(line["difference"]):
        return f"{line['mean']:.3f}"
    text = f"{line['mean']:.3f} ({line['difference']:+.3f}"
    if not np.isnan(line["low"]):
        text += f" [{line['low']:.3f}, {line['high']:.3f}]"
    return text + (")" if bool(line["separated"]) else " ~)")


def sentence(order: pd.Series) -> str:
    """Return the agreement of two models as a sentence."""
    if np.isnan(order["tau"]):
        return f"Order of the rows on {order['models']}: needs {LEAST} rows that differ."
    span = "" if np.isnan(order["low"]) else f" [{order['low']:.2f}, {order['high']:.2f}]"
    return f"Order of the {order['rows']} rows on {order['models']}: Kendall's tau {order['tau']:.2f}{span}."
