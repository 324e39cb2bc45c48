"""Baselines that learn content and style from one stylized image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import CPU
from test_stylised import SPEC

from lorabench.base import UserError, seed_of
from lorabench.config.schemas import LoRASpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.concepts import ROLES
from lorabench.data.pairs import Pair
from lorabench.data.scenes import Prompts
from lorabench.lora.adapter import Factors, LoRA
from lorabench.merging.method import load
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.dreambooth import DreamBoothLoRA, personalize_together
from lorabench.personalization.initial import initial
from lorabench.personalization.training import Environment, is_per_pair


@pytest.fixture
def stylised_pair() -> Pair:
    return load_pairs(SPEC, Prompts())[0]


def test_dreambooth_trains_both_loras_apart_on_image_under_two_prompts(stylised_pair: Pair, lora_spec) -> None:
    outputs = load("dreambooth_lora").training.outputs(stylised_pair, lora_spec)
    assert [output.role for output in outputs] == list(ROLES) and not is_per_pair(outputs)
    shown = [[(image.prompt, image.sha256) for image in output.job.concept.images] for output in outputs]
    image = stylised_pair.contents[0].images[0].sha256
    assert shown == [[("a sks mug", image)], [("a mug in ink style", image)]]


def test_naive_loras_share_one_loss_under_full_prompt(model: SDXL, stylised_pair: Pair, lora_spec: LoRASpec) -> None:
    """Their sum learns as one LoRA of twice the rank that starts from the same factors."""
    outputs = load("joint_naive").training.outputs(stylised_pair, lora_spec)
    [concept] = {output.job.concept for output in outputs}
    assert [image.prompt for image in concept.images] == ["a sks mug in ink style"]
    spec = replace(lora_spec, alpha=float(lora_spec.rank), steps=2)
    found = personalize_together(model, concept, spec, Environment(0, CPU), ROLES)

    item = seed_of("together", concept.identity(), 0)
    layers = model.layers.trained()
    one, two = (initial(layers, spec.rank, seed_of(item, role)) for role in ROLES)
    wide = LoRA({name: Factors(torch.cat([one[name].down, two[name].down]), torch.cat([one[name].up, two[name].up], 1))
                 for name in one})  # fmt: skip
    doubled = replace(spec, rank=2 * spec.rank, alpha=2.0 * spec.rank)
    with model.attach([wide], dtype=torch.float32) as adapters:
        from lorabench.engine.lightning import fit

        module = DreamBoothLoRA(model, adapters, concept, doubled, item)
        fit(module, 2, model.device, "32-true", gradient_clip_val=spec.max_grad_norm)
        [together] = adapters.loras()
    content, style = (found[role] for role in ROLES)
    for layer, each in together.items():
        sum_of_both = content[layer].up @ content[layer].down + style[layer].up @ style[layer].down
        torch.testing.assert_close(sum_of_both, each.up @ each.down, rtol=1e-4, atol=1e-6)
    assert any(float((content[layer].up - style[layer].up).abs().max()) > 1e-6 for layer in content)


def test_naive_training_refuses_parts_it_lacks(stylised_pair: Pair, lora_spec: LoRASpec) -> None:
    for changes, words in (({"text_encoders": True}, "lora.text_encoders=True"), ({"prior_weight": 1.0}, "prior_weig")):
        with pytest.raises(UserError, match=words):
            load("joint_naive").training.outputs(stylised_pair, replace(lora_spec, **changes))


def test_blora_takes_both_blocks_of_one_training_from_one_image(stylised_pair: Pair, lora_spec, pair: Pair) -> None:
    content, style = load("blora").training.outputs(stylised_pair, lora_spec)
    assert content.job == style.job and (content.role, style.role) == ROLES
    assert content.job.recipe.blocks == ["up_blocks.0.attentions.0", "up_blocks.0.attentions.1"]
    assert [image.prompt for image in content.job.concept.images] == ["a sks"]
    assert (content.shown.name, style.shown.name) == ("mug_1", "ink_1")
    apart = load("blora").training.outputs(pair, lora_spec)
    assert apart[0].job != apart[1].job


def test_blora_file_is_content_block_and_style_block(model: SDXL, stylised_pair: Pair, lora_spec: LoRASpec) -> None:
    from merges import merged

    method = load("blora")
    outputs = method.training.outputs(stylised_pair, lora_spec)
    adapters = outputs[0].job.run(model, Environment(0, CPU))
    lora = adapters["lora"]
    result = merged(model, method, [adapters[output.name] for output in outputs], stylised_pair).file
    assert set(result) == set(lora) and len(lora)
    for layer, factors in result.items():
        torch.testing.assert_close(factors.up @ factors.down, lora[layer].up @ lora[layer].down)


def test_upper_bound_trains_on_images_that_are_neither_stylized_nor_references(stylised_pair: Pair, lora_spec) -> None:
    outputs = load("dreambooth_photographs", own_images=5).training.outputs(stylised_pair, lora_spec)
    used = {image.sha256 for concept in stylised_pair.concepts for image in (*concept.images, *concept.references)}
    for output, concept in zip(outputs, stylised_pair.concepts, strict=True):
        images = output.job.concept.images
        assert len({image.sha256 for image in images}) == 5 and not used & {image.sha256 for image in images}
        assert output.shown.references == concept.references and output.role == concept.role
    content, style = (output.job.concept.images for output in outputs)
    assert {image.prompt for image in content} == {"a sks mug"}
    assert all(image.word != "mug" and image.prompt == f"a {image.word} in ink style" for image in style)
