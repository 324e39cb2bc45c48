"""Stability of the order of methods and sources of variance, on simulated values with known parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose
from made_run import make_run
from scipy.stats import kendalltau

from lorabench.report import averages, stability, variance
from lorabench.report.__main__ import main
from lorabench.tasks.stability import run


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
    assert sure == {"pairs": 1.0, "images": 1.0, "trainings": 1.0, "methods": 4, "repeated": 4}
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
    assert stability.agreement(images, images) == {"truth": 1.0, "truth_low": 1.0, "truth_high": 1.0}
    found = stability.agreement(images, swapped)
    assert found["truth"] == pytest.approx(1 - 2 / 6)  # one of six couples is reversed
    assert found["truth_low"] == found["truth_high"] == found["truth"]  # in every sample of pairs
    assert np.isnan(stability.agreement(images, {})["truth"])
    assert [stability.truth_of(each) for each in ("csd/style", "subject_r1", "clip_t", "copy/content")] == [
        "truth/style", "truth/content", "", "",
    ]  # fmt: skip


def test_agreement_of_noise_has_interval_around_chance() -> None:
    one, other = (simulated(dict.fromkeys("abcdef", 0.5), 0.2, 0, spread, pairs=30, seeds=1) for spread in (0.1, 0.2))
    swapped = dict(zip(one, reversed(list(other.values())), strict=True))  # values of another method
    found = stability.agreement(one, swapped)
    assert found["truth_low"] < 0 < found["truth_high"] and found["truth_high"] - found["truth_low"] > 0.5


def test_methods_with_all_seeds_give_tau_between_seeds_and_sources() -> None:
    """Six methods, of which four have three seeds, on half of the pairs."""
    images = simulated({name: 0.3 + 0.1 * k for k, name in enumerate("abcdef")}, 0.1, 0.1, 0.2, pairs=40)
    few = dict(list(images.items())[:4])
    mixed = {
        label: own[(own.index.get_level_values(variance.TRAINING) == 0)
                   | (own.index.get_level_values("content").isin([f"c{p}" for p in range(20)]) & (label in few))]
        for label, own in images.items()
    }  # fmt: skip
    found = stability.taus(mixed, "x")
    assert (found["methods"], found["repeated"]) == (6, 4)
    first = {label: own.xs(0, level=variance.TRAINING, drop_level=False) for label, own in images.items()}
    alone = stability.taus(first, "x")
    assert (found["pairs"], found["images"]) == (alone["pairs"], alone["images"])  # all methods, one seed
    half = {label: own[own.index.get_level_values("content").isin([f"c{p}" for p in range(20)])]
            for label, own in few.items()}  # fmt: skip
    assert found["trainings"] == stability.taus(half, "x")["trainings"]
    [value, delta] = variance.variance_lines("x", mixed, "a")
    expected = list(variance.variance_lines("x", half, "a"))
    assert value == expected[0] and delta == expected[1]
    [single, _] = variance.variance_lines("x", mixed, "a", trainings=1)
    assert single["training"] == value["training"]
    assert float(str(single["twice the trainings"])) > float(str(value["twice the trainings"]))


def test_estimates_below_zero_do_not_raise_mean() -> None:
    """Without variance of trainings, half of the estimates are negative, and their mean is near zero."""
    images = simulated(dict.fromkeys([f"m{k}" for k in range(40)], 0.5), 0.0, 0.0, 0.3, pairs=6)
    [line] = variance.variance_lines("x", images, "none")
    assert float(str(line["training"])) < 0.02 and float(str(line["pair"])) < 0.02


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


SMALL = [
    "task=stability", "trainer.workers=0", "scorers.path=micro", "task.rows=[direct,ties,klora,svd]",
    "task.repeated=[direct,ties,klora]",
    "task.seeds=[1]", "task.pairs=2", "lora.steps=1", "dataset.pairs=[mug_1/ink_1,cat_1/neon_1,fish_1/gold_1]",
    "dataset.references=1", "dataset.content_images=1", "dataset.style_images=1", "generate.images=2",
]  # fmt: skip


@pytest.mark.usefixtures("hydra")
def test_task_measures_all_orders(tiny, tmp_path: Path, capsys) -> None:
    run(compose("config", [*tiny, *SMALL, f"output={tmp_path}"]), tmp_path)
    text = (tmp_path / "stability.md").read_text()
    assert text in capsys.readouterr().out and "direct, ties, klora were run with 2 seeds on 2 pairs" in text
    assert "means of 4 methods" in text and "and of 3 methods between seeds" in text
    orders = pd.read_csv(tmp_path / "stability.csv").set_index("score")
    assert set(orders["methods"]) == {4} and set(orders["repeated"]) == {3}
    assert orders.loc["dino/content", ["pairs", "images", "trainings", "truth"]].notna().all()
    assert orders.loc["truth/style", "truth"] == 1.0
    assert orders.loc["diversity", ["pairs", "images"]].isna().tolist() == [False, True]
    shares = pd.read_csv(tmp_path / "variance.csv")
    assert (
        "diversity" not in set(shares["score"])
        and shares["training"].notna().any()
        and set(shares["of"]) == {"value", "difference to direct"}
    )
    assert len(list((tmp_path / "store" / "personalize").iterdir())) == 6 + 4  # the third pair has one seed


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.repeated=[direct,ties,dare_ties]", "task.repeated names dare_ties, which is not in task.rows"),
        ("task.repeated=[ties,klora,svd]", "rows with reference=direct; use task.repeated=[direct,"),
        ("task.seeds=[0]", "must be one or more seeds other than seed=0"),
        ("task.seeds=[]", "must be one or more seeds other than seed=0"),
    ],
)
def test_mistakes_are_one_line(refused, override: str, words: str) -> None:
    refused(run, [*SMALL, override], words)


@pytest.mark.usefixtures("hydra")
def test_experiment_has_rows_and_pairs_of_all_methods() -> None:
    own, every = (compose("config", [f"experiments={name}"]) for name in ("stability", "all_methods"))
    assert own.task.rows == every.task.rows and own.dataset == every.dataset and own.merge == every.merge
    assert set(own.task.repeated) <= set(own.task.rows)
