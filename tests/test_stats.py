"""Intervals on simulated data, where the truth is known."""

import numpy as np
import pandas as pd
import pytest

from lorabench import stats


def simulate(effect: float, seed: int, pairs: int = 10, images: int = 4, references: int = 2) -> pd.DataFrame:
    """Images of one method: pair difficulty (shared by seed) + image noise (shared) + own noise + effect."""
    shared = np.random.default_rng(seed)
    own = np.random.default_rng([seed, int(1000 * effect) + 7])
    rows = []
    for pair in range(pairs):
        difficulty = shared.normal(0, 0.1)
        for image in range(images):
            noise = shared.normal(0, 0.05)
            for reference in range(references):
                value = 0.5 + effect + difficulty + noise + own.normal(0, 0.01)
                rows.append(("world", f"c{pair}", f"s{pair}", "p", 0, image, reference, value))
    return stats.image_means(pd.DataFrame(rows, columns=[*stats.UNIT, "reference", "value"]))


@pytest.mark.parametrize("pairs", [8, 20])
def test_coverage_is_near_nominal(pairs: int) -> None:
    draws = np.random.default_rng(0).normal(0.5, 0.1, (600, pairs))
    hits = [low <= 0.5 <= high for low, high in ((i.low, i.high) for i in map(stats.interval, draws))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.03)


def test_images_of_a_pair_do_not_count_as_independent() -> None:
    few, many = (stats.mean(simulate(0, seed=3, images=n)) for n in (4, 64))
    assert many.high - many.low > 0.7 * (few.high - few.low)  # ten pairs stay ten pairs


def test_pairing_shrinks_the_interval_and_finds_the_effect() -> None:
    a, b = simulate(0.02, seed=1), simulate(0.0, seed=1)
    paired = stats.difference(a, b)
    alone = stats.mean(a)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)
    assert paired.separated and paired.mean == pytest.approx(0.02, abs=0.005)
    assert not stats.difference(a, a).separated


def test_only_what_both_have_is_compared() -> None:
    a, b = simulate(0.02, seed=1), simulate(0.0, seed=1)
    half = b.query("content in ['c0', 'c1', 'c2', 'c3', 'c4']")
    assert stats.difference(a, half).pairs == 5
    assert np.isnan(stats.difference(a, b.rename(index={0: 9}, level="seed")).mean)


def test_intervals_repeat_and_small_cases_are_defined() -> None:
    values = np.random.default_rng(2).normal(size=6)
    assert stats.interval(values) == stats.interval(values)
    one = stats.interval([0.4])
    assert one.mean == 0.4 and np.isnan(one.low) and not one.separated
    assert stats.interval([]).pairs == 0
    same = stats.interval([0.3, 0.3, 0.3])
    assert (same.low, same.high) == pytest.approx((0.3, 0.3))
