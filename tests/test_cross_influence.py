"""Cross-influence in three readings, on scores and adapters whose values are known."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors
from lorabench.lora.projection import overlap
from lorabench.report import stats
from lorabench.report.cross_influence import DATA, FILE, OVERLAP, quantities, table, write_cross_influence
from lorabench.report.planned import contrasts

# clip_i of each use with the references of content and style
VALUES = {"joint": (0.6, 0.5), "content": (0.8, 0.2), "style": (0.3, 0.9)}


def scores(uses: tuple[str, ...] = ("joint", "content", "style"), shift: float = 0.0) -> pd.DataFrame:
    rows = []
    for use in uses:
        for pair, add in ((("mug", "ink"), shift), (("cat", "ink"), -shift)):
            for image in range(2):
                for metric, value in zip(("clip_i/content", "clip_i/style"), VALUES[use], strict=True):
                    where = dict(zip(("content", "style"), pair, strict=True))
                    at = {"dataset": "microworld", **where, "prompt": use, "seed": image, "image": image}
                    of = {"method": "craft", "ablation": "none", "use": use, "metric": metric, "backbone": "clip@x"}
                    noise = 0.01 if image else -0.01  # cancels within a pair
                    rows.append({**of, **at, "reference": 0, "value": value + add + noise})
    return pd.DataFrame(rows)


def means(found: pd.DataFrame) -> dict[str, float]:
    return dict(zip(found["quantity"], found["mean"], strict=True))


def test_three_readings_have_their_formulas() -> None:
    found = means(quantities(scores()))
    expected = {"CP": 0.6, "SF": 0.5, "cross": 0.2 * 0.3, "drop": (0.2 / 0.8 + 0.4 / 0.9) / 2, "as worded": 0.3}
    assert found == pytest.approx(expected)


def test_products_are_means_over_pairs_and_not_products_of_means() -> None:
    found = means(quantities(scores(shift=0.1)))
    assert found["cross"] == pytest.approx((0.3 * 0.4 + 0.1 * 0.2) / 2)
    assert found["as worded"] == pytest.approx((0.7 * 0.6 + 0.5 * 0.4) / 2)


def test_negative_similarities_do_not_count_as_influence() -> None:
    found = quantities(
        scores(shift=-0.25)
    )  # by pair: -0.05 and 0.45 with the style's, 0.05 and 0.55 with the content's
    assert means(found)["cross"] == pytest.approx((0 + 0.45 * 0.55) / 2)
    far = quantities(scores(shift=-0.85))  # one pair has no similarity of its own to lose
    assert found.set_index("quantity").at["drop", "pairs"] == 2 and far.set_index("quantity").at["drop", "pairs"] == 1


def test_rows_without_single_images_have_joint_quantities_only() -> None:
    assert set(means(quantities(scores(("joint",))))) == {"CP", "SF", "as worded"}


def test_planned_differences_are_paired_by_pair() -> None:
    """The other row has one pair less, so that the difference of the means is another one."""
    other = scores(shift=0.1).assign(ablation="no_rank_limit").query("content == 'mug'")
    found = quantities(pd.concat([scores(), other]), planned=[("craft", "craft no_rank_limit"), ("craft", "direct")])
    compared = found[found["against"] != ""].set_index("quantity")
    assert set(compared["against"]) == {"craft no_rank_limit"} and set(compared["pairs"]) == {1}
    assert compared.at["CP", "mean"] == pytest.approx(0.6 - 0.7)
    assert compared.at["cross", "mean"] == pytest.approx(0.2 * 0.3 - 0.3 * 0.4)
    assert "| craft - craft no_rank_limit | -0.100 |" in table(found)


def test_comparison_is_reported_once_in_the_published_direction() -> None:
    rows = [("ablations", "craft no_rank_limit", "craft"), ("published by X", "craft", "craft no_rank_limit")]
    lines = pd.DataFrame([("methods", "craft", "direct"), *rows], columns=["family", "label", "against"])
    assert contrasts(lines) == [("craft", "direct"), ("craft", "craft no_rank_limit")]


def test_report_is_written_for_all_uses_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    scores(("joint",)).to_parquet(folder / "scores.parquet")
    write_cross_influence([folder], tmp_path)
    assert not (tmp_path / FILE).exists()
    scores().to_parquet(folder / "scores.parquet")
    names = [{"label": "craft", "dataset": "microworld", "content": each, "style": "ink"} for each in ("mug", "cat")]
    pd.DataFrame(names).assign(overlap=[0.2, 0.4]).to_csv(folder / OVERLAP, index=False)
    write_cross_influence([folder], tmp_path)
    text = (tmp_path / FILE).read_text()
    assert "| row | CP | SF | cross | drop | as worded | overlap |" in text and "0.300 [" in text
    found = pd.read_csv(tmp_path / DATA)
    assert found.loc[found["quantity"] == "overlap", "mean"].tolist() == pytest.approx([0.3])
    assert "2 pairs" in text


def test_overlap_is_mean_squared_cosine_over_common_layers() -> None:
    def lora(**columns: list[int]) -> Adapter:
        eye, down = torch.eye(6), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
        return Adapter({name: Factors(down, 3 * eye[:, each]) for name, each in columns.items()})

    left, right = lora(a=[0, 1], b=[0, 1]), lora(a=[1, 2], c=[0, 1])
    assert overlap([left], [right]) == pytest.approx(0.5)  # one of two directions, in the only common layer
    assert overlap([left], [left]) == pytest.approx(1.0)
    assert overlap([lora(a=[0, 1])], [lora(b=[0, 1])]) == 0.0
    assert overlap([left], [right, lora(b=[4, 5])]) == pytest.approx(0.25)


def test_interval_of_crossed_pairs_is_not_that_of_independent_ones() -> None:
    """Six subjects in two styles."""
    one = scores(("joint",)).query("content == 'mug'")
    crossed = pd.concat(
        [one.assign(content=f"c{k}", style=name, value=one["value"] + add)
         for k in range(6) for name, add in (("a", 0.1), ("b", -0.1))]
    )  # fmt: skip
    found = quantities(crossed).set_index("quantity").loc["CP"]
    assert (found["low"], found["high"]) == pytest.approx((0.5, 0.7))  # the range of the two styles
    independent = stats.interval([0.7, 0.5] * 6)
    assert independent.high - independent.low < 0.16
