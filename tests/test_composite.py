"""Guidance by branches: LoRA Composite against two plain passes, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CPU
from merges import draw, sampled

from lorabench.merging.method import load
from lorabench.sampling.generate import generate
from lorabench.sampling.parts import StepScales
from lorabench.sampling.rule import Branch
from lorabench.sampling.sampler import sample_latents

PROMPTS, SEEDS = ["a sks mug in szn style", "a boat"], [1, 2]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_composite_is_mean_of_loras_own_guided_predictions(model, loras, guidance) -> None:
    """Sample one step. The scheduler is affine in the prediction, so averaging latents averages predictions."""
    scales, branches = sampled(model, load("lora_composite"), loras, ("content", "style"), 1, guidance)
    with model.attach(loras) as adapters:
        found = sample_latents(model, PROMPTS, SEEDS, 1, guidance, adapters, scales, branches)
    separate = []
    for lora in loras:
        with model.attach([lora]):
            separate.append(sample_latents(model, PROMPTS, SEEDS, 1, guidance))
    torch.testing.assert_close(found, (separate[0] + separate[1]) / 2, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(found, model.initial_noise(SEEDS))


def test_composite_of_identical_adapters_is_one(model, loras, generate_spec) -> None:
    twice = draw(
        model, load("lora_composite"), lambda: [loras[0], loras[0]], ("content", "style"), None, PROMPTS, SEEDS,
        generate_spec,
    )  # fmt: skip
    once = generate(model, [loras[0]], PROMPTS, SEEDS, generate_spec, CPU)
    np.testing.assert_allclose(twice.astype(int), once.astype(int), atol=1)


def test_branches_of_plain_guidance_are_plain_guidance(model, loras) -> None:
    ones = StepScales(list(loras[0]), torch.ones(3, len(loras[0]), 2, dtype=torch.float64), {})
    branches = [Branch(-2.0, (1.0, 1.0), None), Branch(3.0, (1.0, 1.0), "prompt")]
    with model.attach(loras) as adapters:
        found = sample_latents(model, PROMPTS, SEEDS, 3, 3.0, adapters, ones, branches)
    with model.attach(loras):
        expected = sample_latents(model, PROMPTS, SEEDS, 3, 3.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
