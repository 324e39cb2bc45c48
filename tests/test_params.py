"""Sizes of the known denoisers, and the learned parameters that the papers state."""

from __future__ import annotations

import pandas as pd
import pytest
from omegaconf import OmegaConf

from lorabench.base import UserError
from lorabench.data.concepts import ROLES
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.method import load
from lorabench.models.known import KNOWN, denoiser_config
from lorabench.models.shapes import empty_model, layer_map
from lorabench.tasks.params import count, run, table

# Parameters in millions as the model cards state them (of the micro model, its own), and adapted layers.
SIZES = {"sdxl": (2567, 560), "koala_1b": (1161, 240), "koala_700m": (782, 168), "micro": (14, 136)}
MICRO_WIDTHS = [64, 96, 160]


@pytest.fixture(scope="module")
def counts() -> pd.DataFrame:
    return count({"sdxl": 64, "koala_1b": 64, "koala_700m": 64, "micro": 16})


@pytest.mark.parametrize("name", SIZES)
def test_unets_have_published_sizes(name: str) -> None:
    parameters = list(empty_model(name).denoiser.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    millions = sum(parameter.numel() for parameter in parameters) // 10**6
    assert (millions, len(layer_map(name).trained())) == SIZES[name]


def learned(counts: pd.DataFrame, model: str, method: str) -> int:
    rows = counts[(counts["model"] == model) & (counts["method"] == method)]
    return int(rows["learned_parameters"].item())


def test_sdxl_at_rank_64_learns_what_papers_state(counts) -> None:
    assert learned(counts, "sdxl", "duolora") == 71_680
    assert learned(counts, "sdxl", "ziprank") == 71_680
    assert learned(counts, "sdxl", "ziplora (out)") == 1_331_200
    assert learned(counts, "sdxl", "ziplora (in)") == 1_571_840


@pytest.mark.parametrize("model", SIZES)
def test_counts_follow_from_layers(counts, model: str) -> None:
    layers = layer_map(model).trained().values()
    rank = 16 if model == "micro" else 64
    widths = [(layer.in_features, layer.out_features) for layer in layers]
    assert learned(counts, model, "duolora") == 2 * rank * len(widths)
    assert learned(counts, model, "ziplora (in)") == 2 * sum(ins for ins, _ in widths)
    assert learned(counts, model, "ziplora (out)") == 2 * sum(outs for _, outs in widths)
    of_loras = counts.loc[counts["model"] == model, "lora_parameters"].unique().tolist()
    assert of_loras == [2 * rank * sum(ins + outs for ins, outs in widths)]


@pytest.mark.parametrize(("targets", "layers"), [("attention", 190), ("script", 342), ("all", 494)])
def test_counts_name_set_of_layers(targets: str, layers: int) -> None:
    found = count({"flux": 4}, targets)
    assert set(found["targets"]) == {targets} and set(found["layers"]) == {layers}
    assert learned(found, "flux", "ziprank") == 2 * 4 * layers
    assert f"| set of layers | {targets} |\n| adapted layers | {layers} |" in table(found)


def test_layers_carry_what_masks_are_made_of() -> None:
    layers = layer_map("micro").planned(3, ROLES)
    assert {(layer.ranks, layer.roles) for layer in layers.values()} == {((3, 3), ("content", "style"))}
    assert {layer.out_features for layer in layers.values()} == set(MICRO_WIDTHS[1:])
    assert all(layer.name == name for name, layer in layers.items())


def test_methods_that_learn_nothing_are_left_out(counts) -> None:
    methods = {label.split(" ")[0] for label in counts["method"]}
    assert {"ziplora", "ziprank", "duolora"} <= methods
    assert not methods & {"direct", "base", "content_only", "style_only"}
    assert all(isinstance(load(name).merge, LearnedMasks) for name in methods)


def test_run_writes_both_tables(tmp_path, capsys) -> None:
    cfg = OmegaConf.create({"task": {"name": "params", "ranks": {"micro": 4}, "targets": "attention"}})
    run(cfg, tmp_path)
    written = pd.read_csv(tmp_path / "params.csv")
    text = (tmp_path / "params.md").read_text()
    assert set(written["model"]) == {"micro"} and set(written["rank"]) == {4}
    assert "| learned by duolora | 1,088 |" in text and text in capsys.readouterr().out
    assert table(written) == text


@pytest.mark.parametrize(
    ("ranks", "message"),
    [({"micro": 0}, "must be at least 1"), ({"sdxxl": 4}, "did you mean sdxl")],
)
def test_mistakes_are_one_line(ranks: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        count(ranks)
    assert "\n" not in str(error.value)


def test_configs_hold_no_path() -> None:
    for name in KNOWN:
        assert not any("/" in str(value) for value in denoiser_config(name).values())
