"""Layers and blocks of the published SD3 and FLUX.1 models, without their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec
from lorabench.data.pairs import Pair
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors
from lorabench.merging.method import load as load_method
from lorabench.merging.priors import check_prior, dominant_roles, read_prior
from lorabench.models.layer import within
from lorabench.models.shapes import layer_map, model_of

COUNTS = {  # layers of the sets attention, script and all, counted on the published models
    "flux": (190, 342, 494),
    "flux_schnell": (190, 342, 494),
    "sd35_medium": (148, 191, None),
    "sd35_large": (152, 303, None),
}


@pytest.mark.parametrize("known", COUNTS)
def test_sets_of_layers_have_published_counts(known: str) -> None:
    for targets, count in zip(("attention", "script", "all"), COUNTS[known], strict=True):
        assert count is None or len(layer_map(known).trained(targets=targets)) == count


def test_block_is_matched_by_exact_path() -> None:
    names = layer_map("flux").trained(["transformer_blocks.7"])
    assert names and not any(name.startswith("single") for name in names)


def test_blocks_of_splitflux_are_single_blocks_of_flux() -> None:
    prior = read_prior("splitflux")
    layers = layer_map("flux").trained()
    check_prior(prior, layers)
    roles = dominant_roles(prior, layers)
    single = [name for name, role in roles.items() if role is not None]
    assert len(single) == 38 * 3 and all(name.startswith("single_transformer_blocks.") for name in single)
    assert roles["single_transformer_blocks.9.attn.to_q"] == "content"
    assert roles["single_transformer_blocks.10.attn.to_q"] == "style"


@pytest.mark.parametrize(
    ("source", "known", "counts"),
    [
        ("splitflux", "flux", (10, 28)),
        ("b_lora_flux", "flux", (6, 8)),
        ("b_lora_flux_mixing", "flux", (20, 18)),
        ("stability", "sd35_large", (13, 8)),
    ],
)
def test_blocks_of_sources_are_those_of_their_model(
    source: str, known: str, counts: tuple[int, int], lora_spec: LoRASpec, pair: Pair
) -> None:
    """B-LoRA trains and merges in the blocks that a source names, and refuses them on other models."""
    method, layers = load_method("blora", content_block=source, style_block=source), layer_map(known)
    merge: Any = method.merge
    method.training.check(layers, lora_spec)
    assert (len(merge.content_block), len(merge.style_block)) == counts
    blocks = [*merge.content_block, *merge.style_block]
    for output in method.training.outputs(pair, lora_spec):
        assert {layers.transformer_block_of(name) for name in output.job.ranks(layers)} == set(blocks)
    planned = layers.planned(4, ("content", "style"), {"content": blocks, "style": blocks})
    scales = {block: {merge.scales(each) for each in planned.values() if within(each.name, block)} for block in blocks}
    assert scales == {block: {(1.0, 0.0) if block in merge.content_block else (0.0, 1.0)} for block in blocks}
    for other in {"micro_sd3", "sd3", "flux", "sd35_large"} - {known}:
        with pytest.raises(UserError, match=r"method\.(content|style)_block=.* has no layer to adapt; use one of "):
            method.training.check(layer_map(other), lora_spec)
    with pytest.raises(UserError, match=r"method\.style_block=nowhere\.yaml is unknown"):
        load_method("blora", style_block="nowhere.yaml")


def test_recipe_of_two_layers_is_found_by_exact_path(commands: Any) -> None:
    done = commands.run("--cfg", "job", "--resolve", "model=flux", "lora=lastben")
    recipe = yaml.safe_load(done.stdout)["lora"]
    layers = layer_map("flux").trained(recipe["blocks"], recipe["targets"])
    assert list(layers) == ["single_transformer_blocks.7.proj_out", "single_transformer_blocks.20.proj_out"]
    assert (recipe["rank"], recipe["alpha"]) == (128, 128)


def test_lora_finds_its_model() -> None:
    for known in ("flux", "sd3"):
        layers = layer_map(known)
        lora = Adapter({name: Factors(torch.zeros(1, each.in_features), torch.zeros(each.out_features, 1))
                        for name, each in list(layers.trained().items())[:9]})  # fmt: skip
        assert model_of([lora]) == known
