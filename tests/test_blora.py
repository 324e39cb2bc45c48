"""B-LoRA: two blocks, each of one role, on the live UNet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import CPU
from merges import merge_all

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec
from lorabench.data.concepts import ROLES, Concept
from lorabench.data.microworld_pairs import style, subject
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Prompts, Scene
from lorabench.lora.adapter import LoRA
from lorabench.merging.merge import MergeItem
from lorabench.merging.method import load
from lorabench.personalization.training import Environment

W4, W5 = "up_blocks.0.attentions.0.", "up_blocks.0.attentions.1."


@pytest.mark.parametrize("squared", [False, True])
def test_merge_is_one_block_of_each(model, loras, pair, squared) -> None:
    method = load("blora", content=0.9, style=1.1, squared=squared)
    [result] = merge_all(model, method, [MergeItem(loras, pair)])
    expected = {W4: (loras[0], 0.9), W5: (loras[1], 1.1)}
    assert {layer for layer in loras[0] if layer.startswith((W4, W5))} == set(result.file)
    for layer, factors in result.file.items():
        lora, alpha = expected[layer[: len(W4)]]
        wanted = lora[layer].up @ lora[layer].down * (alpha**2 if squared else alpha)
        torch.testing.assert_close(factors.up @ factors.down, wanted)


def test_block_of_several_modules_is_their_union(model, loras, pair) -> None:
    found = [
        merge_all(model, load("blora", style_block=block), [MergeItem(loras, pair)])[0].file
        for block in ([W5[:-1], "mid_block"], W5[:-1], "mid_block")
    ]
    assert set(found[0]) == set(found[1]) | set(found[2]) and set(found[1]) != set(found[2])
    for layer, each in found[0].items():
        torch.testing.assert_close(each.up, found[1 if layer in found[1] else 2][layer].up)


def test_loras_are_trained_in_both_blocks_alone(model, pair, lora_spec) -> None:
    pair = replace(pair, contents=(replace(pair.contents[0], token="sks"),))
    for output in load("blora").training.outputs(pair, lora_spec):
        [lora] = output.job.run(model, Environment(0, CPU)).values()
        assert {layer[: len(W4)] for layer in lora} == {W4, W5}


def trained_on(name: str, ablation: str, concept: Concept) -> Concept:
    pair = Pair((concept,), (), Scene("", ""))
    [output] = load(name, ablation).training.outputs(pair, LoRASpec())
    return output.shown


def test_it_trains_on_one_image_under_its_identifier() -> None:
    for concept, prompt in (subject("mug_1", 2, 1, Prompts()), "a sks"), (style("ink_1", 2, 1, Prompts()), "a szn"):
        shown = trained_on("blora", "none", concept)
        [image] = shown.images
        assert image == replace(concept.images[0], prompt=prompt) and shown.references == concept.references
        assert trained_on("blora", "all_images", concept) == trained_on("direct", "none", concept) == concept


def test_block_that_is_not_there_is_named(model, loras) -> None:
    method: Any = load("blora", style_block="up_blocks.0.attentions.7")
    with pytest.raises(
        UserError, match=r"method.style_block=up_blocks.0.attentions.7 must have a layer that a style LoRA"
    ):
        method.merge.check(model.layers.adapted(loras, ROLES))


def test_lora_without_its_block_is_told(model, loras) -> None:
    """Otherwise the merge would be empty."""
    swapped = [
        LoRA({layer: each for layer, each in lora.items() if layer.startswith(block)})
        for lora, block in zip(loras, (W5, W4), strict=True)
    ]
    with pytest.raises(
        UserError, match=r"method.content_block=up_blocks.0.attentions.0 must have a layer that a content LoRA"
    ):
        load("blora").merge.check(model.layers.adapted(swapped, ROLES))
