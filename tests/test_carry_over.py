"""The same rows on two models: differences, agreement of orders, and the task that measures them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose
from scipy.stats import kendalltau
from transformers_tiny import save_micro_sd3

from lorabench.models import files
from lorabench.report import averages, carry_over
from lorabench.tasks.models import run

PAIRS = pd.MultiIndex.from_tuples([("d", f"c{k}", f"s{k}") for k in range(6)], names=averages.PAIR)


def values(means: dict[str, float], spread: float, seed: int) -> pd.DataFrame:
    noise = np.random.default_rng(seed).normal(0, spread, (len(means), len(PAIRS)))
    return pd.DataFrame(np.array(list(means.values()))[:, None] + noise, list(means), PAIRS)


@pytest.mark.parametrize("digits", [0, 3])  # 0: with ties
def test_tau_is_that_of_scipy(digits: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (np.round(3 * rng.normal(size=(7, 20)), digits) for _ in range(2))
    expected = [float(kendalltau(x, y)[0]) for x, y in zip(a.T, b.T, strict=True)]
    np.testing.assert_allclose(carry_over.tau_b(a, b), expected)
    assert np.isnan(carry_over.tau_b(np.zeros(4), np.arange(4.0)))


def test_order_that_carries_over_has_tau_of_one() -> None:
    means = {"direct": 0.5, "ties": 0.1, "klora": 0.9, "svd": 0.3}
    found = {"unet": values(means, 0.01, 0), "transformer": values(means, 0.01, 1)}
    [order] = carry_over.agreement("score", found).to_dict("records")
    assert (order["models"], order["tau"], order["low"], order["high"]) == ("unet, transformer", 1, 1, 1)
    found["transformer"] = values({name: -mean for name, mean in means.items()}, 0.01, 1)
    assert carry_over.agreement("score", found)["tau"].tolist() == [-1]
    found = {"unet": values(means, 0.5, 0), "transformer": values(means, 0.5, 1)}
    [order] = carry_over.agreement("score", found).to_dict("records")
    assert order["low"] < order["tau"] < order["high"]
    few = {name: table.iloc[:2] for name, table in found.items()}
    assert np.isnan(carry_over.agreement("score", few)["tau"]).all()


def test_differences_refer_to_row_of_same_model() -> None:
    found = {"a": values({"direct": 0.5, "ties": 0.1}, 0.01, 0), "b": values({"direct": 0.2, "ties": 0.2}, 0.01, 1)}
    lines = carry_over.differences("score", found, "direct").set_index(["model", "label"])
    assert lines.at[("a", "ties"), "difference"] == pytest.approx(
        (found["a"].loc["ties"] - found["a"].loc["direct"]).mean()
    )
    assert lines["separated"].tolist() == [False, True, False, False]
    assert np.isnan(lines.at[("b", "direct"), "difference"])
    text = carry_over.write(
        lines.reset_index()[carry_over.LINE], carry_over.agreement("score", found), "direct", "6 pairs", 2
    )
    assert "| row | a | b |" in text and "needs 3 rows" in text and " ~)" in text


SMALL = [
    "experiments=sdxl_against_dit", "trainer.workers=0", "logger=none", "dataset.subjects=[mug_1,cat_1]",
    "dataset.styles=[ink_1,neon_1]", "dataset.count=2", "dataset.references=1", "dataset.content_images=1",
    "dataset.style_images=1", "task.rows=[direct,ties,lora_composite]", "lora.steps=1", "generate.images=1",
]  # fmt: skip


@pytest.mark.usefixtures("hydra")
def test_experiment_runs_on_both_models(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transformer has random weights and few channels; both models share pairs, noise and scorers."""
    monkeypatch.setitem(files.TRAINED, "micro_sd3", save_micro_sd3(tmp_path / "micro_sd3"))
    run(compose("config", [*tiny, *SMALL, f"output={tmp_path}"]), tmp_path)
    lines, orders = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("models", "orders"))
    assert set(lines["model"]) == {"micro", "micro_sd3"}
    assert {"direct", "ties", "lora_composite", "base", "oracle"} <= set(lines["label"])
    assert set(orders["rows"]) == {3} and set(orders["pairs"]) == {2}
    oracle = lines[lines["label"] == "oracle"].pivot(index="score", columns="model", values="mean")
    assert oracle["micro"].tolist() == oracle["micro_sd3"].tolist(), "the oracle's images do not depend on the model"
    assert "| row | micro | micro_sd3 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "model=micro_sd3 has no weights; train them with `python -m pretraining build --model micro_sd3`"),
        (["task.others=[micro_sd4]"], "task.others=micro_sd4 is unknown, did you mean micro_sd3"),
        (["task.others=[micro]"], "task.others=micro is compared already"),
        (["task.others=[]"], "task.others must name a model"),
        (["task.rows=[ties]"], "task.rows must have reference=direct"),
    ],
)
def test_mistakes_are_one_line(refused, tmp_path: Path, overrides: list[str], words: str, monkeypatch) -> None:
    monkeypatch.setitem(files.TRAINED, "micro_sd3", tmp_path / "nowhere")
    monkeypatch.setattr(files, "ASSETS", tmp_path)
    refused(run, [*SMALL, *overrides], words)
