"""Many methods in one column: Holm's correction and intervals of ranks, on simulated data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from lorabench.report import averages, comparing, stats

KEY = averages.UNIT


def images(values: np.ndarray, pairs: list[str] | None = None) -> pd.DataFrame:
    """Return values in the form of averages.image_means, with one image per pair."""
    names = pairs or [f"c{number}" for number in range(len(values))]
    rows = [("world", name, "s", "p", 0) for name in names]
    return pd.DataFrame({"value": values, "count": 1}, index=pd.MultiIndex.from_tuples(rows, names=KEY))


def by_hand(p: list[float]) -> list[float]:
    """Holm 1979: in ascending order, p of place i times the number from there on, never less than before."""
    adjusted, least = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = least
    return adjusted


def test_holm_is_formula() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.5, 0.03]
    assert comparing.holm(p).tolist() == pytest.approx(by_hand(p))
    library: Any = multipletests(p, method="holm")
    assert comparing.holm(p).tolist() == pytest.approx(library[1].tolist())
    larger = multipletests([*p, 1.0, 1.0], method="holm")[1][: len(p)]
    assert comparing.holm(p, len(p) + 2).tolist() == pytest.approx(larger.tolist())
    with_gaps = comparing.holm([0.01, np.nan, 0.04])
    assert with_gaps[[0, 2]].tolist() == pytest.approx(by_hand([0.01, 0.04])) and np.isnan(with_gaps[1])
    assert np.isnan(comparing.holm([np.nan])).all() and len(comparing.holm([])) == 0


@pytest.mark.parametrize(("shared", "least", "most"), [(0.0, 0.04, 0.06), (1.0, 0.01, 0.055)])
def test_any_false_difference_is_as_rare_as_promised(shared: float, least: float, most: float) -> None:
    """Seven methods like the reference, eight pairs; with the reference's own noise in all differences it is rarer."""
    tables, methods, pairs = 4000, 7, 8  # standard error 0.35 points
    rng = np.random.default_rng(6)
    deltas = rng.normal(size=(tables, methods, pairs)) - shared * rng.normal(size=(tables, 1, pairs))
    p = stats.p_value(deltas, np.ones(pairs))
    wrong = np.mean([(comparing.holm(each) <= comparing.ALPHA).any() for each in p])
    assert least < wrong < most
    assert np.mean((p <= comparing.ALPHA).any(axis=1)) > 2 * wrong  # without the correction


def test_ranks_of_methods_that_are_far_apart_are_sure() -> None:
    rng = np.random.default_rng(7)
    hard = rng.normal(0, 1.0, 10)  # one offset per pair for all methods changes no rank
    column = {
        name: images(level + hard + rng.normal(0, 0.01, 10)) for name, level in zip("abc", (0.1, 0.5, 0.3), strict=True)
    }
    found = comparing.ranks(column)
    assert found.loc[list("abc"), "rank"].tolist() == [3, 1, 2]
    assert found["rank_low"].tolist() == found["rank_high"].tolist() == found["rank"].tolist()


def test_ranks_of_methods_that_are_alike_are_open_and_equal_ones_share_theirs() -> None:
    rng = np.random.default_rng(8)
    alike = comparing.ranks({name: images(rng.normal(0, 1, 12)) for name in "abcd"})
    assert min(alike["rank_high"] - alike["rank_low"]) >= 2
    values = rng.normal(0, 1, 12)
    same = comparing.ranks({name: images(values) for name in "abc"})
    assert (same.to_numpy() == 2).all()


def test_rank_intervals_hold_true_rank() -> None:
    rng, held = np.random.default_rng(9), []
    for _ in range(60):
        column = {
            name: images(level + rng.normal(0, 0.3, 12)) for name, level in zip("abc", (0.4, 0.2, 0.0), strict=True)
        }
        found = comparing.ranks(column)
        held.append((found["rank_low"] <= [1, 2, 3]) & (found["rank_high"] >= [1, 2, 3]))
    assert np.mean(held) > 0.92  # whole numbers: more than 95 %


def test_ranks_are_of_pairs_that_all_share() -> None:
    a = images(np.array([0.1, 0.2, 0.9]), ["x", "y", "only a"])
    b = images(np.array([0.3, 0.2]), ["y", "x"])
    found = comparing.ranks({"a": a, "b": b})
    assert found["rank"].tolist() == [2, 1]
    one_pair = comparing.ranks({"a": a, "b": b.query("content == 'x'")})
    assert one_pair["rank"].tolist() == [2, 1] and one_pair["rank_low"].isna().to_numpy().all()
    for column in ({"a": a}, {}, {"a": a, "b": images(np.array([0.1]), ["z"])}):
        assert comparing.ranks(column)["rank"].isna().to_numpy().all()


def test_ranks_weigh_pairs_as_column_does() -> None:
    """Two pairs of one object and one of another: by pairs a leads, by objects b."""
    of = [("world", content, style, "p", 0) for content, style in (("x", "s"), ("x", "t"), ("y", "s"))]
    index = pd.MultiIndex.from_tuples(of, names=KEY)
    a = pd.DataFrame({"value": [1.0, 1.0, 0.0], "count": 1}, index=index)
    b = pd.DataFrame({"value": [0.5, 0.5, 0.8], "count": 1}, index=index)
    assert comparing.ranks({"a": a, "b": b}, "pair")["rank"].tolist() == [1, 2]
    assert comparing.ranks({"a": a, "b": b}, "macro", "content")["rank"].tolist() == [2, 1]
