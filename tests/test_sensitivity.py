"""Known damage: the damaged merge against its formula, the statistics on simulated tables, and the task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose
from merges import merged
from scipy import stats as scipy_stats
from statsmodels.stats.power import TTestPower

from lorabench.lora.adapter import Factors
from lorabench.merging.method import load
from lorabench.merging.methods.damaged import kept_columns
from lorabench.report import averages, sensitivity, stats
from lorabench.report.sensitivity import Dose
from lorabench.report.sensitivity_page import draw_response, write_sensitivity
from lorabench.tasks.sensitivity import NULL, OTHER_STYLE, rows_of, run

# --- the merge


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.4, 1.0])
def test_share_of_energy_is_removed_by_whole_columns(share: float) -> None:
    draw = torch.Generator().manual_seed(1)
    update = Factors(torch.randn(3, 40, generator=draw), torch.randn(20, 3, generator=draw))
    scales = kept_columns(update, share, seed=5)
    dense = update.up @ update.down
    left = (dense * scales).square().sum() / dense.square().sum()
    assert float(left) == pytest.approx(1 - share, abs=1e-5)
    assert ((scales > 1e-4) & (scales < 1 - 1e-4)).sum() <= 1  # all others are kept or removed whole
    assert torch.equal(scales, kept_columns(update, share, seed=5))
    assert share in (0, 1) or not torch.equal(scales, kept_columns(update, share, seed=6))


def test_damaged_merge_is_sum_of_damaged_updates(model, loras, pair) -> None:
    found = merged(model, load("direct+merge.damaged", removed=0.2), loras, pair).file
    for layer, factors in found.items():
        parts = [lora[layer].up @ lora[layer].down for lora in loras]
        ranks = [lora[layer].rank for lora in loras]
        ours = [up @ down for up, down in zip(factors.up.split(ranks, 1), factors.down.split(ranks, 0), strict=True)]
        for whole, own in zip(parts, ours, strict=True):
            assert float(own.square().sum() / whole.square().sum()) == pytest.approx(0.8, abs=1e-4)
        torch.testing.assert_close(factors.up @ factors.down, sum(ours, torch.zeros(())), rtol=1e-5, atol=1e-5)
    whole = merged(model, load("direct+merge.damaged", removed=0.0), loras, pair).file
    plain = merged(model, load("direct"), loras, pair).file
    assert all(torch.equal(whole[layer].up @ whole[layer].down, plain[layer].up @ plain[layer].down) for layer in plain)


# --- the statistics

DOSES = [Dose("energy", 0.1, "small"), Dose("energy", 0.4, "large"), Dose("style weight", 0.2, "style 0.8")]


def simulated(pairs: int = 32, noise: float = 0.05, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Return values with known effects: none of small, -0.2 of large, -0.1 of style."""
    rng = np.random.default_rng(seed)
    names = pd.MultiIndex.from_tuples([("d", f"c{i}", f"s{i}") for i in range(pairs)], names=averages.PAIR)
    base = rng.normal(0.6, 0.2, pairs)
    effects = {"direct": 0.0, "small": 0.0, "large": -0.2, "style 0.8": -0.1, "null": 0.0}
    rows = {label: base + effect + noise * rng.normal(size=pairs) for label, effect in effects.items()}
    return {"dino/content": pd.DataFrame(rows, index=names).T}


def test_dose_response_is_paired_and_corrected_within_kind() -> None:
    values = simulated()
    found = sensitivity.dose_response(values, DOSES, "direct").set_index("label")
    table = values["dino/content"]
    for label in ("small", "large", "style 0.8"):
        delta = (table.loc[label] - table.loc["direct"]).to_numpy()
        assert found.loc[label, "difference"] == pytest.approx(delta.mean())
        assert found.loc[label, "p"] == pytest.approx(scipy_stats.ttest_1samp(delta, 0).pvalue, rel=1e-6)
    assert found.loc["large", "p_holm"] == pytest.approx(2 * found.loc["large", "p"])  # the smaller of two
    assert found.loc["style 0.8", "p_holm"] == found.loc["style 0.8", "p"]
    assert found["separated"].to_dict() == {"small": False, "large": True, "style 0.8": True}
    smallest = sensitivity.smallest_dose(found.reset_index()).set_index("kind")["dose"]
    assert smallest.to_dict() == {"energy": 0.4, "style weight": 0.2}


def test_dose_counts_only_with_all_greater_ones() -> None:
    response = pd.DataFrame(
        {"score": "s", "kind": ["a"] * 3 + ["b"], "dose": [0.3, 0.1, 0.2, 0.5], "separated": [True, True, False, False]}
    )
    found = sensitivity.smallest_dose(response).set_index("kind")["dose"]
    assert found["a"] == 0.3 and np.isnan(found["b"])


def test_null_rate_is_as_promised_and_shows_test_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    values = simulated()
    rates = sensitivity.null_rates(values, "direct", "null", splits=4000)
    assert rates["pairs"].tolist() == [8, 16, 32] and rates["rate"].tolist() == pytest.approx([0.05] * 3, abs=0.02)

    def too_sure(drawn: np.ndarray, weights: np.ndarray) -> np.ndarray:
        error = drawn.std(axis=1, ddof=1) / np.sqrt(drawn.shape[1])
        return 2 * scipy_stats.norm.sf(np.abs(drawn.mean(axis=1)) / error * 1.3)

    monkeypatch.setattr(stats, "p_value", too_sure)
    assert sensitivity.null_rates(values, "direct", "null", splits=4000)["rate"].min() > 0.1


def test_few_pairs_are_all_taken_and_scores_keep_their_order() -> None:
    few = simulated(pairs=5)
    values = {"b": few["dino/content"], "a": few["dino/content"], "c": few["dino/content"]}
    assert sensitivity.null_rates(values, "direct", "null", splits=50)["pairs"].tolist() == [5, 5, 5]
    smallest = sensitivity.smallest_dose(sensitivity.dose_response(values, DOSES, "direct"))
    assert list(dict.fromkeys(smallest["score"])) == ["b", "a", "c"]


def test_pairs_that_share_names_have_no_null_rate_and_no_limit() -> None:
    table = simulated(pairs=16)["dino/content"]
    names = pd.MultiIndex.from_product([["d"], [f"c{k}" for k in range(4)], [f"s{k}" for k in range(4)]])
    values = {"dino/content": table.set_axis(names.set_names(averages.PAIR), axis=1)}
    nulls = sensitivity.null_rates(values, "direct", "null", splits=50)
    limits = sensitivity.detectable(values, {"like": [("small", "direct")]})
    assert nulls.empty and limits.empty and list(nulls) == ["score", "pairs", "rate", "splits"]
    response = sensitivity.dose_response(values, DOSES, "direct")
    smallest = sensitivity.smallest_dose(response)
    text = write_sensitivity(response, smallest, nulls, limits, "16 pairs", 8, [], ["ties"], ["dino/content"])
    assert "use dataset.pairs=matched" in text and "promised" not in text


def test_detectable_difference_is_found_with_power() -> None:
    """Against statsmodels' exact power, and by simulation."""
    for pairs in (8, 16, 32):
        least = sensitivity.least_difference(0.1, pairs)
        exact = TTestPower().power(least / 0.1, pairs, 0.05)
        assert exact == pytest.approx(0.8, abs=0.02)
    values = simulated()
    found = sensitivity.detectable(
        values,
        {
            "like": [("small", "large")],
            "unlike": [("large", "direct"), ("style 0.8", "direct")],
            "another seed": [("null", "direct")],
        },
    )
    assert found["rows"].tolist() == ["like", "unlike", "another seed"]
    found = found.set_index("rows")
    table = values["dino/content"]
    assert found.loc["like", "sd"] == pytest.approx((table.loc["small"] - table.loc["large"]).std())
    several = [(table.loc[label] - table.loc["direct"]).var() for label in ("large", "style 0.8")]
    assert found.loc["unlike", "sd"] == pytest.approx(np.sqrt(np.mean(several)))
    assert found["target"].tolist()[:2] == [0.03, 0.07] and np.isnan(found.loc["another seed", "target"])
    row = found.loc["like"]
    assert row["32"] == pytest.approx(sensitivity.least_difference(row["sd"], 32)) and row["8"] > row["16"] > row["32"]
    enough = int(row["pairs_needed"])
    assert sensitivity.least_difference(row["sd"], enough) <= row["target"] == 0.03
    assert sensitivity.least_difference(row["sd"], enough - 1) > 0.03


def test_text_and_figure_have_the_scores_that_are_to_be_shown(tmp_path: Path) -> None:
    values = simulated()
    values["csd/style"] = values["dino/content"]
    response = sensitivity.dose_response(values, [*DOSES, Dose("style weight", 0.4, "large")], "direct")
    text = write_sensitivity(
        response, sensitivity.smallest_dose(response), sensitivity.null_rates(values, "direct", "null", 100),
        sensitivity.detectable(values, {"like": [("small", "direct")], "unlike": [("large", "direct")]}), "32 pairs", 8,
        [("klora fixed_choice", "klora")], ["ties"], ["dino/content", "both"],
    )  # fmt: skip
    assert "| damage | dose | dino/content |" in text and "| score | rows |" in text and "| csd/style | like |" in text
    assert (
        "| energy | 0.4 | -0.2" in text and "| dino/content | 0.4 |" in text and "8 pairs | 16 pairs | 32 pairs" in text
    )
    assert "methods of a kind: klora fixed_choice and klora. unlike: the direct merge and ties." in text
    draw_response(response, ["dino/content"], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


# --- the task

SMALL = [
    "task=sensitivity", "trainer.workers=0", "task.unlike=[ties]", "task.like=[klora,klora fixed_choice]",
    "task.energy=[0.4]", "task.weights=[0.5]",
    "lora.steps=1", "task.splits=20",
    "dataset.pairs=[mug_1/ink_1,cat_1/neon_1]", "dataset.references=1", "dataset.content_images=1",
    "dataset.style_images=1", "generate.images=2",
]  # fmt: skip


@pytest.mark.usefixtures("hydra")
def test_task_measures_all_rows_from_same_noise(tiny, tmp_path: Path, capsys) -> None:
    run(compose("config", [*tiny, *SMALL, f"output={tmp_path}"]), tmp_path)
    found = pd.read_csv(tmp_path / "sensitivity.csv")
    assert set(found["label"]) == {"energy -0.4", "content 0.5", "style 0.5", OTHER_STYLE}
    assert (tmp_path / "sensitivity.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "sensitivity.png").is_file()
    assert set(pd.read_csv(tmp_path / "detectable.csv")["rows"]) == {
        "like",
        "unlike",
        "another seed",
    }  # 0.4 is no small damage
    scored = [pd.read_parquet(path) for path in (tmp_path / "store" / "score").glob("*/scores.parquet")]
    seeds = {frozenset(each["seed"]) for each in scored if set(each["content"]) == {"mug_1"}}
    assert len(seeds) == 2  # those of the run, which the exchanged pair shares, and those of the null
    assert len(list((tmp_path / "store" / "personalize").iterdir())) == 2 * 4  # both seeds


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.energy=[]", "must not be empty"),
        ("task.energy=[0]", "task.energy=0 must be greater than 0"),
        ("task.weights=[1.0]", "task.weights=1 must be at least 0 and less than 1"),
        ("task.unlike=[direct]", "task.unlike names direct"),
        ("task.unlike=[]", "task.unlike is empty"),
        ("task.like=[ties]", "task.like names ties without a row of its kind"),
        ("task.like=[ties,ties]", "task.like names ties twice"),
        ("task.null_seed=0", "must differ from seed; use task.null_seed=1"),
    ],
)
def test_mistakes_are_one_line(refused, override: str, words: str) -> None:
    refused(run, [*SMALL, override], words)


def test_doses_increase_and_name_their_rows() -> None:
    rows, doses = rows_of([0.2, 0.05], [0.6, 0.9])
    assert [row.name for row in rows[1:]] == [each.label for each in doses]
    assert [each.dose for each in doses] == pytest.approx([0.05, 0.2, 0.1, 0.4, 0.1, 0.4])
    assert rows[1].own.settings["removed"] == 0.05 and rows[-1].own.settings["style"] == 0.6 and rows[0].name != NULL
