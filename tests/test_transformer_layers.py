"""Layers and blocks of the published SD3 and FLUX.1 models, without their weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES
from lorabench.data.pairs import Pair
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors
from lorabench.merging.method import load as load_method
from lorabench.merging.priors import check_prior, dominant_roles, read_prior
from lorabench.models.layer import within
from lorabench.models.shapes import empty_model, layer_map, model_of
from lorabench.personalization.columns import dedicated

COUNTS = {  # layers of the sets attention, script and all, counted on the published models
    "flux": (190, 342, 494),
    "flux_schnell": (190, 342, 494),
    "sd3": (96, 191, 333),
    "sd35_medium": (148, 191, 385),
    "sd35_large": (152, 303, 529),
}


@pytest.mark.parametrize("known", COUNTS)
def test_sets_of_layers_have_published_counts(known: str) -> None:
    layers = layer_map(known)
    assert tuple(len(layers.trained(targets=targets)) for targets in ("attention", "script", "all")) == COUNTS[known]
    modules = empty_model(known).denoiser.named_modules()
    linear = {name for name, each in modules if isinstance(each, torch.nn.Linear) and "transformer_blocks." in name}
    assert set(layers.trained(targets="all")) == linear


# Layers of the groups in the set `all`. FLUX.1: 19 double blocks of 14 layers, 38 single ones of 6. SD3.5 large: 37
# blocks of 14 layers and a last one of 11; medium: 23 and one, with 4 more for image tokens in the first 13 blocks.
GROUPS = {
    "flux": {"double": 266, "single": 228, "image": 133, "text": 133, "early": 266, "middle": 114, "late": 114},
    "sd3": {"double": 333, "image": 168, "text": 165, "early": 112, "middle": 112, "late": 109},
    "sd35_medium": {"double": 385, "image": 220, "text": 165, "early": 144, "middle": 132, "late": 109},
    "sd35_large": {"double": 529, "image": 266, "text": 263, "early": 182, "middle": 182, "late": 165},
}


@pytest.mark.parametrize("known", GROUPS)
def test_groups_have_counts_of_published_models(known: str) -> None:
    layers = layer_map(known)
    assert {name: len(layers.trained([name], "all")) for name in GROUPS[known]} == GROUPS[known]
    parts = [("early", "middle", "late"), ("image", "text", *(["single"] if known == "flux" else []))]
    for names in parts:  # of all layers, without an overlap
        assert len(layers.trained(names, "all")) == sum(GROUPS[known][name] for name in names)
        assert list(layers.trained(names, "all")) == list(layers.trained(targets="all"))
    depths = {name: [each.depth for each in layers.trained([name]).values()] for name in parts[0]}
    assert min(depths["early"]) > max(depths["middle"]) and min(depths["middle"]) > max(depths["late"])


def test_streams_are_those_of_layers_of_double_blocks() -> None:
    layers, block = layer_map("flux").trained(["transformer_blocks.3"], "all"), "transformer_blocks.3."
    text = {name.removeprefix(block) for name, layer in layers.items() if layer.inside("text")}
    projections = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    assert text == {
        "norm1_context.linear", "ff_context.net.0.proj", "ff_context.net.2", *(f"attn.{name}" for name in projections)
    }  # fmt: skip
    assert {name.removeprefix(block) for name, layer in layers.items() if layer.inside("image")} == {
        "norm1.linear", "ff.net.0.proj", "ff.net.2", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"
    }  # fmt: skip


def test_group_without_layers_of_set_names_set_that_has_them() -> None:
    with pytest.raises(
        UserError, match=r"^lora\.blocks=text has no layer of lora.targets=attention; use lora.targets=script$"
    ):
        layer_map("flux").trained(["text"])
    with pytest.raises(
        UserError, match=r"lora\.blocks=single has no layer to adapt; use one of double, early, image, "
    ):
        layer_map("sd35_large").trained(["single"])


@pytest.mark.parametrize("known", ["sdxl", "koala_700m", "micro"])
def test_sdxl_has_no_groups(known: str) -> None:
    assert not any(layer.groups for layer in layer_map(known).values())


def test_methods_take_groups_as_blocks(lora_spec: LoRASpec, pair: Pair) -> None:
    """B-LoRA, CRAFT-LoRA, UnZipLoRA, the layer prior and weights by block read names of groups."""
    layers, recipe, blocks = layer_map("flux"), replace(lora_spec, targets="script"), ("early", "single")
    sets: dict[str, Any] = {"content": ["early"], "style": ["single"]}
    planned = layers.planned(4, ROLES)
    content, style = ({name for name, layer in planned.items() if layer.inside(block)} for block in blocks)

    blora: Any = load_method("blora", content_block="early", style_block="single")
    blora.training.check(layers, recipe)
    for output in blora.training.outputs(pair, recipe):
        assert list(output.job.ranks(layers)) == list(layers.trained(blocks, "script"))
    blora.merge.check(planned)
    craft: Any = load_method("craft", layer_sets=sets).training
    craft.check(layers, recipe)
    trained = [set(output.job.ranks(layers)) for output in craft.outputs(pair, lora_spec)]
    assert trained == [content, style]
    roles = dominant_roles(read_prior(sets), planned)
    weights: Any = load_method("custom_weights", blocks={"single": {"content": 0.0}, "early": {"style": 0.0}}).merge
    weights.check(planned)
    columns = dedicated(planned, "names", *sets.values())
    for name, layer in planned.items():
        scales = (float(name in content), float(name in style))
        assert blora.merge.scales(layer) == weights.scales(layer) == columns[name] == scales
        assert roles[name] == ("content" if name in content else "style")
    with pytest.raises(UserError, match=r"method.layer_sets gives transformer_blocks.0.* to both roles"):
        load_method("craft", layer_sets={"content": ["early"], "style": ["double"]}).training.check(layers, lora_spec)


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
