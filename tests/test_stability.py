"""Stability of the order of methods and sources of variance, on simulated values with known parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_run import make_run
from scipy.stats import kendalltau

from lorabench.report import averages, stability, variance
from lorabench.report.__main__ import main


def simulated(
    levels: dict[str, float], pair: float, training: float, sampling: float, pairs: int = 60, seeds: int = 3,
    images: int = 4,
) -> dict[str, pd.DataFrame]:  # fmt: skip
    """Return images of methods; each method has its own random deviations of pairs, trainings and images."""
    rng = np.random.default_rng(4)
    names = [
        ("d", f"c{p}", f"s{p}", "p", 1000 * s + i, s) for p in range(pairs) for s in range(seeds) for i in range(images)
    ]
    index = pd.MultiIndex.from_tuples(names, names=[*averages.UNIT, variance.TRAINING])
    found = {}
    for label, level in levels.items():
        a = np.repeat(rng.normal(0, pair, pairs), seeds * images)
        b = np.repeat(rng.normal(0, training, pairs * seeds), images)
        values = level + a + b + rng.normal(0, sampling, len(names))
        found[label] = pd.DataFrame({"value": values, "count": 1}, index=index)
    return found


def test_components_are_those_of_simulation() -> None:
    images = simulated({"a": 0.5}, pair=0.3, training=0.2, sampling=0.4, pairs=1500)["a"]
    found = variance.components(images["value"])
    assert found is not None and (found["P"], found["T"], found["n"]) == (1500, 3, 4)
    assert [found[each] ** 0.5 for each in ("pair", "training", "sampling")] == pytest.approx([0.3, 0.2, 0.4], abs=0.02)
    shares = variance.shares_of(pd.Series(found))
    assert [shares[each] for each in ("pair", "training", "sampling")] == pytest.approx([0.31, 0.14, 0.55], abs=0.03)
    parts = np.array([0.09, 0.04 / 3, 0.16 / 12])
    expected = [0.5, parts[1:].sum() / 2 / parts.sum(), parts[2] / 2 / parts.sum()]
    removed = [shares[f"twice the {each}"] for each in ("pairs", "trainings", "images")]
    assert removed == pytest.approx(expected, abs=0.02)


def test_one_seed_gives_no_share_of_training() -> None:
    images = simulated({"a": 0.5}, 0.3, 0.2, 0.4, pairs=800, seeds=1)["a"]
    found = variance.components(images["value"])
    assert found is not None and np.isnan(found["training"])
    assert found["pair"] == pytest.approx(0.3**2 + 0.2**2, abs=0.02)  # training is part of the pair
    assert variance.components(images["value"].iloc[:4]) is None  # one pair


def test_order_far_apart_is_stable_and_noise_is_not() -> None:
    levels = {"a": 0.1, "b": 0.4, "c": 0.7, "d": 1.0}
    sure = stability.taus(simulated(levels, 0.05, 0.05, 0.05), "x")
    assert sure == {"pairs": 1.0, "images": 1.0, "trainings": 1.0}
    chance = stability.taus(simulated(dict.fromkeys(levels, 0.5), 0.3, 0.0, 0.001, pairs=20), "x")
    assert chance["pairs"] < 0.4 < 0.8 < chance["images"]  # the pairs decide, and they are the same in both halves
    single = stability.taus(simulated(levels, 0.05, 0.05, 0.05, seeds=1), "x")
    assert np.isnan(single["trainings"]) and single["images"] == 1.0


def test_tau_between_seeds_is_kendalls_of_means() -> None:
    images = simulated({"a": 0.5, "b": 0.52, "c": 0.54, "d": 0.56}, 0.1, 0.3, 0.3, pairs=10, seeds=2)
    means = [[own.xs(seed, level=variance.TRAINING)["value"].mean() for own in images.values()] for seed in (0, 1)]
    assert stability.taus(images, "x")["trainings"] == pytest.approx(kendalltau(*means).statistic)


def test_agreement_with_truth_is_tau_of_both_orders() -> None:
    levels = {"a": 0.1, "b": 0.4, "c": 0.7, "d": 1.0}
    images = simulated(levels, 0.01, 0.01, 0.01, pairs=10)
    swapped = {"a": images["b"], "b": images["a"], "c": images["c"], "d": images["d"]}
    assert stability.agreement(images, images) == 1.0
    assert stability.agreement(images, swapped) == pytest.approx(1 - 2 / 6)  # one of six couples is reversed
    assert np.isnan(stability.agreement(images, {}))
    assert [stability.truth_of(each) for each in ("csd/style", "subject_r1", "clip_t")] == [
        "truth/style", "truth/content", "",
    ]  # fmt: skip


def test_command_prints_both_tables_and_needs_three_methods(tmp_path: Path, capsys) -> None:
    runs = []
    for seed in (0, 1):
        for method in ("direct", "ziplora", "duolora"):
            runs.append(make_run(tmp_path / f"{method}-{seed}", method, seed=seed))
    assert main([*map(str, runs), "--stability"]) == 0
    text = capsys.readouterr().out
    assert "## Order of the methods" in text and "| score | of | pair | training | sampling |" in text
    assert "| dino/content | difference to direct | " in text
    row = next(line for line in text.splitlines() if line.startswith("| clip_t | "))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert len(cells) == 5 and all(cells[:4]) and not cells[4]  # there is no ground truth here
    assert not (tmp_path / "joint").exists()
    assert main([str(runs[0]), str(runs[1]), "--stability"]) == 2
    assert "needs 3 or more methods, not 2" in capsys.readouterr().err
