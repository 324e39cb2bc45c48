"""Stability of the order of methods. report/variance.py has the repeats that would increase it.

    python -m lorabench.report outputs/all_methods --stability        # best with runs of several seeds
    python run.py experiments=stability                               # all methods, some of them with several seeds

Kendall's tau (tau-b) of the methods' means between disjoint halves of the pairs, between halves of each
pair's images (sampling), and between seeds of the run (other LoRAs and other noise), for the methods that have all of
them. 1 is the same order, 0 is chance. Halves are the mean of SPLITS random splits. The last column is the agreement
with the ground truth: tau of a score's order and that of `truth/content` or `truth/style`, which shows how well the
score ranks methods. Its interval resamples pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import ProtocolSpec
from lorabench.report import averages, carry_over, comparing, protocols
from lorabench.report.folder import RunFolder
from lorabench.report.labels import BASELINES_AND_ORACLE
from lorabench.report.pooling import join_scores
from lorabench.report.table import common_reference
from lorabench.report.variance import TRAINING, Images, repeated, variance_lines

SPLITS = 100
LEAST = 3  # methods; two have no order to speak of
DIVERSITY = "diversity"  # compares the images of a pair with each other, so they are not repeats
TRUTH = ("truth", "truth_low", "truth_high")


def stability(runs: list[RunFolder], protocol: ProtocolSpec = protocols.ALL) -> str:
    """Return the text on the stability of the methods of several runs.

    Raises:
        UserError: If there are fewer than three methods, or the runs are not comparable.
    """
    scores = join_scores(runs)
    columns, _ = protocols.columns(protocol, scores)
    trained = {seed: run.manifest["seed"] for run in runs for seed in run.scores["seed"].unique()}
    labels = [label for label in dict.fromkeys(scores["label"]) if label not in BASELINES_AND_ORACLE]
    if len(labels) < LEAST:
        raise UserError(f"an order needs {LEAST} or more methods, not {len(labels)}; use more runs")
    by_label = {label: scores[scores["label"] == label] for label in labels}
    images = [(column, {label: images_of(own, column, trained) for label, own in by_label.items()})
              for column in columns]  # fmt: skip
    return write_stability(*measured(images, common_reference(runs)))


def measured(
    images: Sequence[tuple[protocols.Column, Images]], reference: str, trainings: int | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one line per score with its taus, and one or two with its sources of variance.

    Args:
        images: Each column with its images by method.
        reference: Row whose differences to the others have sources of variance of their own.
        trainings: See `variance_lines`.
    """
    orders, shares = [], []
    found: dict[str, Images] = {}
    for column, every in images:
        found[column.name] = own = {label: values for label, values in every.items() if len(values)}
        if len(own) >= LEAST:
            truth = agreement(own, found.get(truth_of(column.spec.metric), {}))
            orders.append({"score": column.name, **taus(own, column.name), **truth})
            if column.spec.metric == DIVERSITY:
                orders[-1]["images"] = nan
        if column.spec.metric != DIVERSITY:
            shares += variance_lines(column.name, own, reference, trainings)
    return pd.DataFrame(orders), pd.DataFrame(shares)


def images_of(scores: pd.DataFrame, column: protocols.Column, trained: Mapping[int, int]) -> pd.DataFrame:
    """Return the value of each image of a method, with the seed of its run."""
    images = protocols.image_values(scores, column)
    trainings = images.index.get_level_values("seed").map(trained)
    return images.assign(**{TRAINING: trainings}).set_index(TRAINING, append=True)


def taus(images: Images, name: str) -> dict[str, float]:
    """Return the mean tau between halves of the pairs and of the images, and between the seeds of the runs.

    Also returns the numbers of `methods` and of those that have all seeds, `repeated`.

    Args:
        images: Images by method; only those that all methods have count, for tau between seeds those that all repeated
            methods have.
        name: Name of the score, which seeds the splits.
    """
    shared = Shared.of(images, comparing.shared_images(images.values()))
    rng = np.random.default_rng(seed_of("stability", name))
    count = len(np.unique(shared.pair))
    sizes = np.bincount(shared.pair) if count else np.zeros(1, dtype=int)
    by_pairs, by_images = [], []
    for _ in range(SPLITS):
        if count >= 2:
            by_pairs.append(shared.tau_of_halves(np.isin(shared.pair, rng.permutation(count)[: count // 2])))
        if sizes.min() >= 2:
            order = np.lexsort((rng.random(len(shared.pair)), shared.pair))  # random within each pair
            place = np.empty(len(order), dtype=int)
            place[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            by_images.append(shared.tau_of_halves(place < sizes[shared.pair] // 2))
    again = repeated(images)
    by_seeds = between_seeds(again) if len(again) >= LEAST else []
    found = {"pairs": by_pairs, "images": by_images, "trainings": by_seeds}
    return {kind: average(each) for kind, each in found.items()} | {"methods": len(images), "repeated": len(again)}


def between_seeds(images: Images) -> list[float]:
    """Return tau between each two seeds of the runs, on the pairs that all methods have with all seeds."""
    shared = Shared.of(images, comparing.shared_images(images.values()))
    seeds = np.unique(shared.training)
    complete = [set(shared.pair[shared.training == seed]) for seed in seeds]
    whole = np.isin(shared.pair, list(set.intersection(*complete)) if complete else [])
    runs = [shared.means(whole & (shared.training == seed)) for seed in seeds] if whole.any() else []
    return [tau(one, other) for one, other in combinations(runs, 2)]


def truth_of(metric: str) -> str:
    """Return the score that a metric is to agree with; "" if it is not a score of the content or the style."""
    if metric in protocols.NEAREST:
        return ""
    if metric.endswith("/style") or metric == "style_r1":
        return "truth/style"
    return "truth/content" if metric.endswith("/content") or metric == "subject_r1" else ""


def agreement(images: Images, truth: Images) -> dict[str, float]:
    """Return tau of the order by a score and the order by the ground truth, with its interval over pairs.

    Returns:
        truth, truth_low and truth_high; NaN if they share too few methods.
    """
    both = [label for label in images if label in truth]
    if len(both) < LEAST:
        return dict.fromkeys(TRUTH, nan)
    index = comparing.shared_images([*(images[label] for label in both), *(truth[label] for label in both)])
    tables = {
        name: pd.DataFrame({label: averages.pair_values(of[label].loc[index])["value"] for label in both}).T
        for name, of in (("score", images), ("truth", truth))
    }
    found = carry_over.agreement("", tables).iloc[0]
    return dict(zip(TRUTH, found[["tau", "low", "high"]].astype(float), strict=True))


@dataclass(frozen=True)
class Shared:
    """The images that all methods have.

    Args:
        values: By image and method, [images, methods].
        pair: Number of each image's pair [images].
        cell: Number of each image's pair and prompt [images].
        training: Seed of each image's run [images].
    """

    values: np.ndarray
    pair: np.ndarray
    cell: np.ndarray
    training: np.ndarray

    @classmethod
    def of(cls, images: Images, index: pd.Index) -> Shared:
        """Return the values of methods at these images."""
        keys = index.to_frame(index=False)
        pair, cell = (
            pd.factorize(pd.MultiIndex.from_frame(keys[names]))[0]
            for names in (averages.PAIR, [*averages.PAIR, "prompt"])
        )
        values = np.stack([own["value"].reindex(index).to_numpy(dtype=float) for own in images.values()], axis=1)
        return cls(values, pair, cell, keys[TRAINING].to_numpy())

    def means(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """Return the mean of each method over some images: image -> prompt -> pair -> all."""
        chosen = np.ones(len(self.pair), dtype=bool) if chosen is None else chosen
        pair, cell = self.pair[chosen], self.cell[chosen]
        in_cell = np.bincount(cell)[cell]
        _, first = np.unique(cell, return_index=True)
        cells = np.bincount(pair[first])
        weights = 1 / (in_cell * cells[pair] * np.count_nonzero(cells))
        return weights @ self.values[chosen]

    def tau_of_halves(self, first: np.ndarray) -> float:
        """Return tau of the means over some images and over the others."""
        return tau(self.means(first), self.means(~first))


def tau(one: np.ndarray, other: np.ndarray) -> float:
    """Return Kendall's tau-b of two arrays of means; NaN if all methods of one have the same mean."""
    return float(kendalltau(one.round(comparing.DECIMALS), other.round(comparing.DECIMALS)).statistic)


def average(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN, or NaN if there are none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else nan


def write_stability(orders: pd.DataFrame, shares: pd.DataFrame) -> str:
    """Return the text: a table of taus and a table of shares of variance."""
    spans = [
        "" if np.isnan(at) else f"{at:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")
        for at, low, high in orders[list(TRUTH)].itertuples(index=False)
    ]
    shown = orders.drop(columns=[*TRUTH, "methods", "repeated"]).assign(truth=spans)
    of = f" of {int(orders['repeated'].max())} methods" if orders["repeated"].max() < orders["methods"].max() else ""
    parts = ["## Order of the methods", "", *table(shown, "{:.2f}"), ""]
    parts += [
        f"Kendall's tau of the means of {int(orders['methods'].max())} methods between halves of the pairs and of each "
        f"pair's images ({SPLITS} random splits), and{of} between seeds of the run (LoRAs and noise); truth: with the "
        "order by truth/content or truth/style, with a 95 % interval over pairs. Halves are smaller than the whole, "
        "whose order is more stable. Empty: not measured, as with one seed.",
        "",
    ]
    if len(shares):
        parts += ["## Sources of variance", "", *table(shares, "{:.0%}"), ""]
        parts += [
            f"Shares of the variance of an image's value{of} due to the pair, the training of the LoRAs and sampling, "
            "and the part of the variance of a method's mean that twice as many of each would remove. With one seed, "
            "training is part of the pair.",
            "",
        ]
    return "\n".join(parts)


def table(rows: pd.DataFrame, form: str) -> Iterator[str]:
    """Yield the lines of a markdown table; numbers in a format, NaN empty."""
    yield f"| {' | '.join(rows.columns)} |"
    yield f"|{'---|' * len(rows.columns)}"
    for row in rows.itertuples(index=False):
        cells = [each if isinstance(each, str) else "" if np.isnan(each) else form.format(each) for each in row]
        yield f"| {' | '.join(cells)} |"
