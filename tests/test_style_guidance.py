"""StyleDrop and PairCustomization: sums of predictions with several prompts and adapters; QR-LoRA's updates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CPU
from merges import draw, merged, sampled
from torch import Tensor

from lorabench.data.concepts import ROLES
from lorabench.data.scenes import Scene, worded
from lorabench.lora.adapter import Factors, LoRA
from lorabench.merging.method import load
from lorabench.models.sdxl.model import SDXL
from lorabench.personalization.dreambooth import personalize
from lorabench.personalization.initial import core
from lorabench.personalization.training import Environment
from lorabench.sampling.generate import generate
from lorabench.sampling.rule import Branch
from lorabench.sampling.sampler import sample_latents

SEEDS = [1, 2]
SCENES = [
    Scene("a sks mug in szn style", "a mug in ink style", "a sks mug", "a mug in szn style", "a mug"),
    Scene("a sks boat in szn style", "a boat in ink style", "a sks boat", "a boat in szn style", "a boat"),
]
W = 5.0


def test_scenes_are_worded_and_strings_say_same_in_all() -> None:
    assert worded([*SCENES[:1], "a cat"], "plain") == ["a mug", "a cat"]
    assert worded([Scene("a sks dog by hand", "a dog")], "styled") == ["a sks dog by hand"]


def one_step(model: SDXL, loras, method, roles=ROLES) -> Tensor:
    scales, branches = sampled(model, method, loras, roles, 1, W)
    with model.attach(loras) as adapters:
        return sample_latents(model, SCENES, SEEDS, 1, W, adapters, scales, branches)


def single(model: SDXL, loras, words) -> Tensor:
    """Return the latents after one step with one prediction; the scheduler is affine in the prediction."""
    with model.attach(loras):
        branches = [Branch(1.0, (), words)]
        return sample_latents(model, SCENES, SEEDS, 1, 1.0, branches=branches)


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, atol=5e-4, rtol=2e-3)


def test_styledrop_is_style_lora_under_class_word(model, loras) -> None:
    found = one_step(model, loras, load("styledrop"))
    with model.attach([loras[1]]):
        close(found, sample_latents(model, worded(SCENES, "styled"), SEEDS, 1, W))
    assert not torch.allclose(found, model.initial_noise(SEEDS))


@pytest.mark.parametrize("share", [0.6, 0.0])
def test_two_terms_weigh_text_and_lora_apart(model, loras, share) -> None:
    """Without the LoRA's term, this is the base model with a prompt that names the style."""
    found = one_step(model, loras, load("styledrop", "two_term_guidance", two_terms=share))
    u, c, s = single(model, [], None), single(model, [], "styled"), single(model, [loras[1]], "styled")
    close(found, u + W * (c - u) + share * W * (s - c))


def test_style_guidance_is_publication_s_sum(model, loras) -> None:
    u, c, s = single(model, [], None), single(model, [], "plain"), single(model, [loras[1]], "styled")
    close(one_step(model, loras, load("pair_customization")), u + W * (c - u) + 3.0 * (s - c))


def test_style_guidance_with_subject(model, loras) -> None:
    content = [loras[0]]
    u, c, s = single(model, content, None), single(model, content, "subject"), single(model, loras, "prompt")
    close(one_step(model, loras, load("pair_customization", "keep_subject")), u + W * (c - u) + 3.0 * (s - c))


def test_every_style_of_blend_has_term(model, loras) -> None:
    other = LoRA({layer: replace(each, up=-0.5 * each.up) for layer, each in loras[1].items()})
    u, c = single(model, [], None), single(model, [], "plain")
    one, two = (single(model, [style], "styled") for style in (loras[1], other))
    found = one_step(model, [*loras, other], load("pair_customization"), ("content", "style", "style"))
    close(found, u + W * (c - u) + 3.0 * (one - c) + 3.0 * (two - c))


def test_style_weight_of_nothing_is_base(model, loras, generate_spec) -> None:
    method = load("pair_customization", share=0.0)
    found = draw(model, method, lambda: loras, ROLES, None, SCENES, SEEDS, generate_spec)
    base = generate(model, [], worded(SCENES, "plain"), SEEDS, generate_spec, CPU)
    np.testing.assert_allclose(found.astype(int), base.astype(int), atol=1)


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_branches_of_no_weight_are_not_drawn(model, loras, share, generate_spec) -> None:
    """If the style has the weight of the text, two branches remain: classifier-free guidance."""
    rows: list[int] = []
    with model.unet.register_forward_pre_hook(lambda unet, given: rows.append(len(given[0]))):
        method = load("pair_customization", share=share)
        draw(model, method, lambda: loras, ROLES, None, SCENES, SEEDS, generate_spec, CPU)
    assert set(rows) == {len(SEEDS) * (2 if share == 1 else 3)}


@pytest.mark.parametrize("method", ["styledrop", "pair_customization"])
def test_content_s_text_encoders_are_left_out_too(model, loras, method, generate_spec) -> None:
    """No branch of both methods uses the content LoRA, in the UNet or the text encoders."""
    name, layer = next(
        (name, layer) for name, layer in model.pipeline.text_encoder.named_modules() if name.endswith("q_proj")
    )
    loud = Factors(torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2))
    spoken = LoRA(dict(loras[0]), {f"text_encoder.{name}": loud})
    silent, outspoken = (
        draw(model, load(method), lambda own=own: [own, loras[1]], ROLES, None, SCENES, SEEDS, generate_spec, CPU)
        for own in (loras[0], spoken)
    )
    np.testing.assert_array_equal(silent, outspoken)


def test_core_s_basis_is_that_of_greatest_singular_values(model: SDXL) -> None:
    """(W - QR) + Q (R + dR) = W + Q dR holds for the released code's Q and R."""
    layers = model.layers.trained()
    for layer, factors in core(model.denoiser, layers, 3).items():
        weight, q = model.denoiser.get_parameter(f"{layer}.weight").detach(), factors.up
        u, s, vt = torch.linalg.svd(weight)
        top = u[:, :3] * s[:3] @ vt[:3]
        torch.testing.assert_close(q.mT @ q, torch.eye(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(q @ (q.mT @ top), top, atol=1e-5, rtol=1e-4)
        dr = torch.randn(3, weight.shape[1])
        torch.testing.assert_close(weight - top + q @ (q.mT @ top + dr), weight + q @ dr, atol=1e-5, rtol=1e-4)
        assert not factors.down.any()


def test_qr_lora_learns_one_factor_and_merges_in_it(model, pair, lora_spec) -> None:
    spec = replace(lora_spec, alpha=lora_spec.rank)
    loras = [personalize(model, concept, spec, Environment(0, CPU), in_core=True) for concept in pair.concepts]
    method = load("qr_lora")
    start = core(model.denoiser, model.layers.trained(), spec.rank)
    assert all(
        torch.equal(lora[layer].up, start[layer].up) and lora[layer].down.any() for lora in loras for layer in lora
    )
    assert not model.layers.adapted(loras, ROLES).keys() - start.layers
    for layer, factors in merged(model, method, loras, pair).file.items():
        dense = start[layer].up @ (0.9 * loras[0][layer].down + 1.0 * loras[1][layer].down)
        torch.testing.assert_close(factors.up @ factors.down, dense, atol=1e-5, rtol=1e-4)
