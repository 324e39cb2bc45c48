"""Training, merging and sampling with KOALA's structure (one layer per block; KOALA-700M has no middle block)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import CPU, build_koala
from merges import merge_all

from lorabench.base import UserError
from lorabench.merging.merge import MergeItem
from lorabench.merging.method import load
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.dreambooth import personalize
from lorabench.personalization.training import Environment
from lorabench.sampling.sampler import decoded, sample_latents

FIT = {"steps": 2, "lr": 0.1, "batch": 1}


@pytest.fixture(params=["koala_1b", "koala_700m"])
def koala(request: pytest.FixtureRequest, tmp_path: Path) -> SDXL:
    return build_koala(tmp_path, middle=request.param == "koala_1b")


def test_layers_are_those_of_model_card(koala: SDXL) -> None:
    blocks = {layer.partition(".transformer_blocks")[0] for layer in koala.layers.trained()}
    middle = {"mid_block.attentions.0"} if koala.unet.mid_block is not None else set()
    both = {f"up_blocks.{block}.attentions.{index}" for block in (0, 1) for index in (0, 1)}
    assert blocks == {"down_blocks.1.attentions.0", "down_blocks.2.attentions.0", *both, *middle}
    assert {layer.depth for layer in koala.layers.trained().values()} == {0.0, 1.0}


@pytest.mark.parametrize("method", ["direct", "ziplora", "duolora", "ziprank_closed"])
def test_from_images_to_image(koala: SDXL, pair, lora_spec, method: str) -> None:
    loras = tuple(personalize(koala, concept, lora_spec, Environment(0, CPU)) for concept in pair.concepts)
    settings: dict[str, Any] = {"fit": FIT} if hasattr(load(method).merge, "fit") else {}
    chosen = load(method, **settings)
    [result] = merge_all(koala, chosen, [MergeItem(loras, pair)])
    assert set(result.file) == set(koala.layers.trained())
    assert result.file.rank == 2 * lora_spec.rank
    assert decoded(koala, sample_latents(koala, ["a dog"], [0], 2, 2.0)).shape == (1, 64, 64, 3)


def test_lora_of_sdxl_does_not_fit(koala: SDXL, loras, pair) -> None:
    with pytest.raises(UserError, match="not a linear layer here; give a LoRA trained on this model"):
        merge_all(koala, load("direct"), [MergeItem(tuple(loras), pair)])


def test_blocks_that_are_not_there_are_named(koala: SDXL) -> None:
    with pytest.raises(UserError, match=r"lora\.blocks=up_blocks\.0\.attentions\.2 .* use one of down_blocks\.1"):
        koala.layers.trained(["up_blocks.0.attentions.2"])
