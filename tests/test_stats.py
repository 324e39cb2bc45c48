"""Intervals and tests on simulated data with known true values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats

from lorabench.report import averages, stats
from lorabench.report.clusters import Design, clustered, counts, variance


def simulate(
    effect: float, seed: int, pairs: int = 10, images: int = 4, references: int = 2, shared: bool = True, run: int = 0
) -> pd.DataFrame:
    """Simulate images of one method: difficulty of pair and image (`shared` by all methods) + noise + effect."""
    own = np.random.default_rng([seed, int(1000 * effect) + 7, run])
    common = np.random.default_rng([seed, run]) if shared else own
    rows = []
    for pair in range(pairs):
        difficulty = common.normal(0, 0.1)
        for image in range(images):
            noise = common.normal(0, 0.05)
            for reference in range(references):
                value = 0.5 + effect + difficulty + noise + own.normal(0, 0.01)
                rows.append(("world", f"c{pair}", f"s{pair}", "p", 1000 * run + image, reference, value))
    return averages.image_means(pd.DataFrame(rows, columns=[*averages.UNIT, "reference", "value"]))


# --- intervals


def ends_of(values: np.ndarray) -> np.ndarray:
    """Compute stats.limits of tables [n, pairs] in small parts -> [4, n]."""
    return np.concatenate([stats.limits(part, np.ones(part.shape[1])) for part in np.split(values, 8)], axis=1)


@pytest.mark.parametrize("pairs", [8, 20])
def test_coverage_is_within_point_of_nominal(pairs: int) -> None:
    """Both intervals shift with the mean, which for normal data is independent of the deviations from it.

    So the coverage given the deviations is exact. 2,000 tables are then as precise (0.15 points) as 20,000 tables with
    a binary result each.
    """
    values = np.random.default_rng(0).normal(size=(2000, pairs))
    ends = ends_of(values - values.mean(axis=1, keepdims=True)) * np.sqrt(pairs)
    for low, high in (ends[:2], ends[2:]):
        held = scipy_stats.norm.cdf(-low) - scipy_stats.norm.cdf(-high)
        assert np.mean(held) == pytest.approx(0.95, abs=0.01) and np.std(held) / np.sqrt(2000) < 0.002


def test_skewed_data_is_covered_less_and_by_bca_more() -> None:
    ends = ends_of(np.random.default_rng(1).exponential(size=(2000, 20)))
    percentile, bca = (np.mean((low <= 1.0) & (high >= 1.0)) for low, high in (ends[:2], ends[2:]))
    assert 0.91 < percentile < 0.94 and bca > percentile + 0.005  # an exact 95 % interval does not exist here


GRIDS = [(4, 2, 0.45, 0.45), (8, 4, 0, 0), (8, 4, 0, 0.5), (8, 8, 0.45, 0.45)]


@pytest.mark.parametrize(("subjects", "styles", "by_subject", "by_style"), GRIDS)
def test_crossed_pairs_are_covered_as_table_in_stats_says(
    subjects: int, styles: int, by_subject: float, by_style: float
) -> None:
    """One-way intervals are too narrow if subjects or styles matter; two-way ones are not."""
    rng, tables = np.random.default_rng(3), 1000
    parts = ((by_subject, (subjects, 1)), (by_style, (1, styles)), (1 - by_subject - by_style, (subjects, styles)))
    values = sum(np.sqrt(share) * rng.normal(size=(tables, *shape)) for share, shape in parts)
    values = np.asarray(values).reshape(tables, -1)
    names = [("world", f"c{i}", f"s{j}") for i in range(subjects) for j in range(styles)]
    two_way = Design.of(pd.MultiIndex.from_tuples(names, names=averages.PAIR))
    expected = {
        (4, 2, 0.45): (0.90, 0.71, 0.0, 0.27),
        (8, 4, 0): (1.0, 0.95, 0.006, 0.05),
        (8, 8, 0.45): (0.97, 0.52, 0.038, 0.49),
    }  # fmt: skip
    one = two_way.pairs
    found = []
    for design in (two_way, Design.independent(one)):
        low, high = stats.ends(stats.draws(values[:500], np.ones((500, one)), design), design.units)
        found += [np.mean((low <= 0) & (high >= 0)), np.mean(stats.p_value(values, np.ones(one), design) <= 0.05)]
    covered, false, covered_one, false_one = found
    if by_style != 0.5:
        at = expected[subjects, styles, by_subject]
        assert (covered, covered_one, false, false_one) == pytest.approx(at, abs=0.05)
    assert false <= 0.06 and covered >= (0.95 if min(subjects, styles) > 2 else 0.87)
    assert by_style == 0 or false_one > 0.2 > 0.25 - covered_one


def test_clustered_error_is_that_of_statsmodels() -> None:
    """A weighted mean is a regression on a constant; its clustered error is known there."""
    rng = np.random.default_rng(5)
    content, style = np.repeat(range(5), 4), np.tile(range(4), 5)
    values, weights = rng.normal(size=20) + rng.normal(size=5)[content], rng.uniform(0.5, 2, 20)
    one = Design(tuple(content), tuple(range(20)))
    assert one.shared.keys() == {"content"} and one.units == 5
    fit = sm.WLS(values, np.ones(20), weights).fit(
        cov_type="cluster", cov_kwds={"groups": content, "use_correction": False}, use_t=True
    )
    mean = stats.weighted_mean(values, weights)
    off = weights * (values - mean) / weights.sum()
    assert variance(off, one) == pytest.approx(5 / 4 * fit.bse[0] ** 2)
    both = Design(tuple(content), tuple(style))
    ways = [clustered(off, codes) for codes in (both.contents, both.styles, tuple(range(20)))]
    assert variance(off, both) == pytest.approx(max(ways[0] + ways[1] - ways[2], *ways[:2])) and both.units == 4


def test_product_bootstrap_multiplies_counts_and_skips_empty_grids() -> None:
    grid = Design((0, 0, 1, 1), (0, 1, 0, 1))
    times = counts(grid)
    assert np.allclose(times[0] * times[3], times[1] * times[2])  # w_0 v_0 w_1 v_1
    assert set(np.unique(times[0])) == {0, 1, 2, 4} and times[0].mean() == pytest.approx(1, abs=0.05)
    sparse = Design((0, 0, 1, 2), (0, 1, 0, 2))
    assert (counts(sparse).sum(axis=0) > 0).all()
    one_subject = Design((0, 0, 0), (0, 1, 2))  # one subject: fixed
    assert one_subject.is_independent and one_subject.units == 3
    assert np.array_equal(counts(one_subject), counts(Design.independent(3)))


def test_limits_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=(3, 12))
    weights = np.array([1.0, 2.0, 0.5] * 4)
    ends = stats.limits(values, weights)
    drawn = stats.draws(values, np.broadcast_to(weights, values.shape))
    for row in range(3):
        own = np.random.default_rng(1).integers(0, 12, (20000, 12))
        means = (values[row][own] * weights[own]).sum(1) / weights[own].sum(1)
        assert np.quantile(drawn[row], [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(means, [0.1, 0.5, 0.9]), abs=0.02)
        for method, low, high in (("percentile", *ends[:2]), ("BCa", *ends[2:])):
            other: Any = scipy_stats.bootstrap(
                (values[row], weights), stats.weighted_mean, paired=True, n_resamples=20000, method=method,
                confidence_level=1 - 2 * stats.tail(12), rng=np.random.default_rng(2),
            )  # fmt: skip
            width = high[row] - low[row]
            assert (low[row], high[row]) == pytest.approx(tuple(other.confidence_interval), abs=0.08 * width)


def test_images_of_pair_do_not_count_as_independent() -> None:
    few, many = (stats.mean(simulate(0, seed=3, images=n)) for n in (4, 64))
    assert many.high - many.low > 0.7 * (few.high - few.low)  # still ten independent pairs


def test_more_seeds_are_more_images_of_same_pairs() -> None:
    """A pair's value is the mean over its seeds; the number of pairs does not change."""
    one, other = simulate(0, seed=3), simulate(0, seed=3, run=1)
    both = pd.concat([one, other])
    means = [averages.pair_values(images)["value"] for images in (one, other, both)]
    assert means[2].to_numpy() == pytest.approx(((means[0] + means[1]) / 2).to_numpy())
    assert stats.mean(both).pairs == 10
    assert stats.difference(both, both + 0.1).mean == pytest.approx(-0.1)


@pytest.mark.filterwarnings("error")
def test_intervals_repeat_and_small_cases_are_defined() -> None:
    values = np.random.default_rng(2).normal(size=6)
    assert stats.interval(values) == stats.interval(values)
    one = stats.interval([0.4])
    assert one.mean == 0.4 and np.isnan([one.low, one.bca_low, one.p]).all() and not one.separated
    assert stats.interval([]).pairs == 0 and np.isnan(stats.interval([]).p)
    two = stats.interval([0.2, 0.6])
    assert (two.low, two.high, two.bca_low, two.bca_high) == pytest.approx((0.2, 0.6, 0.2, 0.6))  # their range


def test_pairs_that_differ_all_same_are_as_sure_as_sign_test() -> None:
    """Recognition rates often have equal differences, for which the t test would give p = 0."""
    for same, n in ((0.25, 2), (-0.25, 5), (0.125, 6), (0.0, 8)):
        at, p = stats.interval([same] * n), 1.0 if same == 0 else 2.0 ** (1 - n)
        assert (at.low, at.high, at.bca_low, at.bca_high, at.p) == pytest.approx((same, same, same, same, p))
        sign: Any = scipy_stats.binomtest(n * (same > 0), n) if same else None
        assert sign is None or at.p == pytest.approx(sign.pvalue)
        assert at.separated is (n == 6)


# --- paired differences


def test_pairing_shrinks_interval_where_methods_share_their_noise_alone() -> None:
    def widths(shared: bool) -> tuple[float, float]:
        a, b = simulate(0.02, seed=1, shared=shared, pairs=30), simulate(0.0, seed=1, shared=shared, pairs=30)
        paired, single = stats.difference(a, b), stats.mean(a)
        return paired.high - paired.low, single.high - single.low

    paired, single = widths(shared=True)
    assert paired < 0.2 * single
    paired, single = widths(shared=False)
    assert paired == pytest.approx(np.sqrt(2) * single, rel=0.35)  # both variances add up


def test_shared_effect_is_found() -> None:
    a, b = simulate(0.02, seed=1), simulate(0.0, seed=1)
    paired = stats.difference(a, b)
    assert paired.separated and paired.p < 0.001 and paired.mean == pytest.approx(0.02, abs=0.005)
    assert not stats.difference(a, a).separated and stats.difference(a, a).p == 1.0
    test: Any = scipy_stats.ttest_1samp(averages.pair_values(a)["value"] - averages.pair_values(b)["value"], 0.0)
    assert paired.p == pytest.approx(test.pvalue)


def test_only_what_both_have_is_compared() -> None:
    a, b = simulate(0.02, seed=1), simulate(0.0, seed=1)
    half = b.query("content in ['c0', 'c1', 'c2', 'c3', 'c4']")
    assert stats.difference(a, half).pairs == 5
    assert np.isnan(stats.difference(a, b.rename(index=lambda seed: seed + 9, level="seed")).mean)


@pytest.mark.parametrize(("pairs", "effect"), [(8, 1.0), (20, 0.5)])
def test_known_effect_is_found_at_power_that_theory_says(pairs: int, effect: float) -> None:
    """The expected power comes from the non-central t; `effect` is in standard deviations of the differences."""
    tables = 20000  # standard error of at most 0.35 points
    deltas = np.random.default_rng(4).normal(effect, 1.0, (tables, pairs))
    found = np.mean(stats.p_value(deltas, np.ones(pairs)) <= 0.05)
    limit = scipy_stats.t.ppf(0.975, pairs - 1)
    expected = scipy_stats.nct.sf(limit, pairs - 1, effect * np.sqrt(pairs))
    assert 0.5 < expected < 0.7 and found == pytest.approx(expected, abs=0.015)


def test_weighted_p_values_are_those_of_regression() -> None:
    """Compare with the constant of a weighted regression with heteroscedasticity-robust errors (HC1)."""
    rng = np.random.default_rng(5)
    values, weights = rng.normal(0.3, 1.0, 14), rng.uniform(0.2, 3.0, 14)
    model: Any = sm.WLS
    fitted = model(values, np.ones(14), weights=weights).fit(cov_type="HC1", use_t=True)
    assert float(stats.p_value(values, weights)) == pytest.approx(fitted.pvalues[0], rel=1e-9)
    equal: Any = scipy_stats.ttest_1samp(values, 0.0)
    assert float(stats.p_value(values, np.full(14, 0.2))) == pytest.approx(equal.pvalue, rel=1e-9)
    assert np.isnan(stats.p_value([0.4], [1.0]))
