"""The dominant role of a layer by resolution or depth, by a preset's names or by a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_learned_methods import layer

from lorabench.base import UserError
from lorabench.data.concepts import ROLES
from lorabench.merging.method import load
from lorabench.merging.priors import DEPTH, RESOLUTION, by_depth, check_prior, dominant_roles, read_prior
from lorabench.models.shapes import layer_map

BLOCKS = {"down_blocks.1": 0.0, "down_blocks.2": 1.0, "mid_block": 1.0, "up_blocks.0": 1.0, "up_blocks.1": 0.0}
SDXL = {
    f"{block}.attentions.0.to_q": layer(depth, name=f"{block}.attentions.0.to_q") for block, depth in BLOCKS.items()
}


def roles(prior) -> list[str]:
    return ["" if role is None else role[0] for role in dominant_roles(read_prior(prior), SDXL).values()]


def test_presets_on_blocks_of_sdxl() -> None:
    assert roles(RESOLUTION) == ["s", "c", "c", "c", "s"]
    assert roles("paper_names") == ["s", "c", "c", "", "s"]
    assert roles("released") == ["s", "c", "", "", "s"]
    assert [by_depth(layer(depth)) for depth in (1.0, 0.0, 0.5)] == ["content", "style", None]


def test_prior_by_depth_is_ours_on_transformers_and_by_resolution_on_sdxl() -> None:
    layers = layer_map("flux").planned(4, ROLES)
    halves = {f"{kind}transformer_blocks.{i}": "" for kind, count in (("", 19), ("single_", 38)) for i in range(count)}
    for place, block in enumerate(halves):
        halves[block] = "content" if place < 28 else "style" if place > 28 else ""
    for prior in (RESOLUTION, DEPTH):
        merge = load("duolora", prior=prior).merge
        merge.check(layers)
        found = dominant_roles(read_prior(prior), layers)
        assert {name: role or "" for name, role in found.items()} == {
            name: halves[".".join(name.split(".")[:2])] for name in layers
        }
        assert merge.note(layers) == (
            "the layer prior is by depth, ours: content in the first half of the blocks, style in the last"
        )
        assert merge.note(layer_map("sdxl").planned(4, ROLES)) is None
        assert load("ziprank_closed", prior=prior, lambda_prior=0.1).merge.note(layers)
    assert roles(DEPTH) == roles(RESOLUTION)
    splitflux = load("duolora", prior="splitflux").merge
    assert splitflux.note(layers) is load("duolora", "no_layer_prior").merge.note(layers) is None
    assert load("ziprank_closed").merge.note(layers) is None


def test_messages_fit_transformers() -> None:
    layers = layer_map("flux").planned(4, ROLES)
    with pytest.raises(UserError, match=r"method.prior must name modules of this model; .* use method.prior=depth"):
        load("duolora", prior="released").merge.check(layers)
    with pytest.raises(UserError, match=r"use method.prior=resolution"):
        check_prior({"content": ["middle"], "style": []}, SDXL)
    with pytest.raises(UserError, match=r"^method.prior must have an adapted layer of this model"):
        load("duolora", prior={"content": [], "style": []}).merge.check(layers)


def test_file_is_prior_and_its_blocks_are_in_settings(tmp_path: Path) -> None:
    file = tmp_path / "prior.yaml"
    file.write_text("content: [mid_block]\nstyle: [up_blocks.1, down_blocks.1.attentions.0]\n")
    assert roles(str(file)) == ["s", "", "c", "", "s"]
    method: Any = load("duolora", prior=str(file)).merge
    file.unlink()
    assert method.prior == {"content": ["mid_block"], "style": ["up_blocks.1", "down_blocks.1.attentions.0"]}
    assert load("duolora", prior=method.prior).merge == method


def test_priors_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prior=resolutions is unknown, did you mean resolution"):
        read_prior("resolutions")
    file = tmp_path / "prior.yaml"
    file.write_text("content: [mid_block]\n")
    with pytest.raises(UserError, match="needs lists of module paths"):
        read_prior(str(file))
    file.write_text("content: [")
    with pytest.raises(UserError, match=r"prior\.yaml is not valid YAML"):
        read_prior(str(file))
    with pytest.raises(UserError, match=r"its content layers \(middle\) are not"):
        check_prior({"content": ["middle"], "style": ["up_blocks.1"]}, SDXL)
    with pytest.raises(UserError, match="to content or to style"):
        check_prior({"content": ["mid_block"], "style": ["mid_block"]}, SDXL)
