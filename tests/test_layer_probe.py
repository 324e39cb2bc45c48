"""The layer probe: shares against invented numbers, modules of the UNet, and a prior that DuoLoRA can read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import merges
import pandas as pd
import pytest
from transformers_tiny import save_sd3

from lorabench.base import UserError
from lorabench.data.pairs import Pair
from lorabench.merging.method import load
from lorabench.merging.priors import dominant_roles
from lorabench.models.files import model_folder
from lorabench.models.sdxl.model import SDXL
from lorabench.models.shapes import layer_map
from lorabench.report.probe import draw_probe
from lorabench.tasks.layer_probe import measure, modules_of, names_of, table, write_prior

BLOCKS = ["down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"]


def scores(content: float, style: float) -> pd.DataFrame:
    """Return scores of six pairs with two images; the differences between pairs cancel in a comparison."""
    rows = []
    for pair in range(6):
        for image in range(2):
            at = {"dataset": "d", "content": f"c{pair}", "style": "s", "prompt": "p", "seed": image, "image": image}
            rows.append({**at, "metric": "dino/content", "value": content + pair / 10})
            rows.append({**at, "metric": "csd/style", "value": style - pair / 10})
    return pd.DataFrame(rows)


@pytest.fixture
def drawn() -> dict[str, pd.DataFrame]:
    return {
        "custom_weights": scores(0.8, 0.9),
        "style_only": scores(0.6, 0.9),
        "content_only": scores(0.8, 0.1),
        "content mid_block": scores(0.65, 0.9),
        "style mid_block": scores(0.8, 0.82),
        "content up_blocks.1": scores(0.8, 0.9),
        "style up_blocks.1": scores(0.8, 0.3),
    }


def test_shares_are_of_what_whole_lora_gives(drawn) -> None:
    found: Any = measure(drawn, "block", ["mid_block", "up_blocks.1"])
    assert found["content"].tolist() == pytest.approx([0.75, 0.0])
    assert found["style"].tolist() == pytest.approx([0.1, 0.75])
    assert found["carries"].tolist() == ["content", "style"] and found["separated"].all()
    assert "| mid_block | 0.75 [0.75, 0.75] | 0.10 [0.10, 0.10] | content |" in table(found)


def test_lora_that_does_nothing_has_no_layers_to_tell_apart(drawn) -> None:
    with pytest.raises(UserError, match="csd/style does not fall without the style LoRA"):
        measure(drawn | {"content_only": scores(0.8, 0.9)}, "block", ["mid_block"])


def test_modules_in_order_of_forward_pass(folder: Path) -> None:
    assert names_of(model_folder(folder), "block") == BLOCKS
    layers = names_of(model_folder(folder), "layer")
    assert layers[0] == "down_blocks.1.attentions.0.transformer_blocks.0"
    assert len(layers) == len(set(layers)) and all(".attn" not in name for name in layers)


def test_blocks_of_transformer_are_probed_once(folder: Path, tmp_path: Path) -> None:
    sd3 = model_folder(save_sd3(tmp_path / "sd3"))
    assert modules_of(sd3, ["block", "layer"]) == {"block": [f"transformer_blocks.{i}" for i in range(3)]}
    assert modules_of(sd3, ["layer"]) == {"layer": [f"transformer_blocks.{i}" for i in range(3)]}
    assert list(modules_of(model_folder(folder), ["layer", "block"])) == ["block", "layer"]


def test_prior_is_one_that_duolora_reads(folder: Path, model: SDXL, loras, pair, drawn, tmp_path: Path) -> None:
    found = measure(drawn, "block", ["mid_block", "up_blocks.1"])
    plan = SimpleNamespace(model_name="tiny", pairs=[pair], generation=SimpleNamespace(images=2))
    write_prior(tmp_path / "prior.yaml", found, plan)  # pyright: ignore[reportArgumentType]
    method: Any = load("duolora", prior=str(tmp_path / "prior.yaml")).merge
    assert method.prior == {"content": ["mid_block"], "style": ["up_blocks.1"]}
    roles = dominant_roles(method.prior, model.layers.adapted(loras, pair.roles))
    assert {role for layer, role in roles.items() if layer.startswith("mid_block.")} == {"content"}
    assert {role for layer, role in roles.items() if layer.startswith("down_blocks.2.")} == {None}
    draw_probe(found, tmp_path / "probe.png")
    assert (tmp_path / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_prior_of_transformer_is_one_that_duolora_reads(
    commands: Any, tiny: list[str], pair: Pair, tmp_path: Path
) -> None:
    """The whole probe runs on the blocks of an SD3, and its file assigns all of them."""
    sd3 = save_sd3(tmp_path / "sd3")
    done = commands.run(
        *tiny, "task=layer_probe", f"model.path={sd3}", "model.resolution=16", "dataset.subjects=[mug_1]",
        "dataset.styles=[ink_1]", "lora.lr=0.02", "lora.steps=4", f"output={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "adhoc" / "layer_probe-s0"
    blocks = [f"transformer_blocks.{i}" for i in range(3)]
    assert pd.read_csv(run / "layer_probe.csv")["module"].tolist() == blocks
    method: Any = load("duolora", prior=str(run / "prior_block.yaml"))
    assert sorted(block for each in method.merge.prior.values() for block in each) == blocks
    layers = layer_map(model_folder(sd3)).planned(2, pair.roles)
    method.merge.check(layers)
    assert None not in dominant_roles(method.merge.prior, layers).values()


def test_custom_weights_scale_roles_and_modules(model: SDXL, loras, pair) -> None:
    method = load("custom_weights", style=0.5, blocks={"mid_block": {"content": 0.25}})
    result = merges.merged(model, method, loras, pair)
    content, style = loras
    for layer, merged in result.file.items():
        weight = 0.25 if layer.startswith("mid_block.") else 1.0
        dense = weight * content[layer].up @ content[layer].down + 0.5 * style[layer].up @ style[layer].down
        assert (merged.up @ merged.down - dense).abs().max() < 1e-5
    with pytest.raises(UserError, match=r"method\.blocks\.mid_block must have content: or style: weights"):
        load("custom_weights", blocks={"mid_block": {"subject": 0.5}})


def test_interval_of_crossed_pairs_resamples_subjects_and_styles() -> None:
    """Six subjects in two styles, which react differently: two styles separate nothing."""

    def crossed(content: float, style: float) -> pd.DataFrame:
        rows = scores(content, style)
        other = rows.assign(style="t", value=rows["value"] - 0.1 * (rows["metric"] == "dino/content") * (content < 0.7))
        return pd.concat([rows, other])

    names = ("custom_weights", "style_only", "content_only", "content mid_block", "style mid_block")
    levels = ((0.8, 0.9), (0.6, 0.9), (0.8, 0.1), (0.65, 0.9), (0.8, 0.82))
    found: Any = measure(dict(zip(names, (crossed(*each) for each in levels), strict=True)), "block", ["mid_block"])
    [line] = found.to_dict("records")
    assert line["content"] > line["style"] and not line["separated"]
    assert line["content_high"] - line["content_low"] == pytest.approx(0.4)  # the range of the two styles
