"""Asymmetric guidance: schedules, and one batched forward against separate predictions written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from merges import draw, merged, sampled

from lorabench.base import UserError
from lorabench.config.schemas import GenerateSpec
from lorabench.data.concepts import ROLES
from lorabench.merging.method import load
from lorabench.sampling.sampler import sample_latents

SPEC = GenerateSpec(images=2, steps=4, guidance=3.0, batch=2)
PROMPTS = ["a sks mug in szn style", "a boat in szn style"]


def alphas(ablation: str, steps: int) -> torch.Tensor:
    rule: Any = load("direct+sampling.acfg", ablation).sampling
    return torch.tensor([[rule.alpha(role, i / steps) for role in ROLES] for i in range(steps)])


def test_windows_are_steps_of_publication() -> None:
    on = alphas("none", 50)
    content, style = ((on[:, k].nonzero().flatten() + 1).tolist() for k in (0, 1))
    assert content == list(range(1, 36)) and style == list(range(15, 51))


def test_cosine_moves_from_content_to_style() -> None:
    content, style = alphas("cosine_schedule", 50).T
    torch.testing.assert_close(content + style, torch.ones(50))
    assert content[0] == 1 and (content.diff() < 0).all() and content[-1] < 0.01
    torch.testing.assert_close(content[25], torch.tensor(0.5))


@pytest.mark.parametrize("ablation", ["none", "cosine_schedule", "constant_schedule", "symmetric_cfg"])
def test_one_forward_equals_separate_predictions(model, loras, ablation: str) -> None:
    method = load("direct+sampling.acfg", ablation)
    scales, branches = sampled(model, method, loras, ROLES, SPEC.steps, SPEC.guidance)
    with model.attach(loras) as adapters:
        found = sample_latents(model, PROMPTS, [3, 4], SPEC.steps, SPEC.guidance, adapters, scales, branches)
    sampler = model.sampler(SPEC.steps)
    latents = sampler.start(model.initial_noise([3, 4]))
    words, empty = model.encode_prompts(PROMPTS), model.unconditional(2)
    for i, t in enumerate(sampler.timesteps):
        rule: Any = method.sampling
        alpha = [rule.alpha(role, i / SPEC.steps) for role in ROLES]
        adapted = [lora.times(scale) for lora, scale in zip(loras, alpha, strict=True)]
        rows = sampler.scaled(latents, t)
        with torch.no_grad():
            base = model.predict(rows, t, empty)
            with model.attach(adapted):
                conditional = model.predict(rows, t, words)
                if ablation == "symmetric_cfg":
                    base = model.predict(rows, t, empty)
        latents = sampler.step(base + SPEC.guidance * (conditional - base), t, latents)
    torch.testing.assert_close(found, latents, rtol=1e-4, atol=1e-4)


def test_constant_symmetric_guidance_is_plain_sampling(model, loras, pair) -> None:
    same = load("direct+sampling.acfg", "symmetric_cfg", schedule="constant")
    result = merged(model, load("direct"), loras, pair)
    images = [
        draw(model, method, lambda: loras, ROLES, result, PROMPTS, [3, 4], SPEC) for method in (same, load("direct"))
    ]
    assert np.abs(images[0].astype(int) - images[1].astype(int)).max() <= 1
    other = draw(model, load("direct+sampling.acfg"), lambda: loras, ROLES, result, PROMPTS, [3, 4], SPEC)
    assert np.abs(images[0].astype(int) - other.astype(int)).max() > 1


def test_merge_without_parts_is_guided_as_whole(model, loras, pair) -> None:
    with pytest.raises(UserError, match="method/merge=ties computes one update"):
        load("ties+sampling.acfg")
    method = load("ties+sampling.acfg", "constant_schedule")
    result = merged(model, method, loras, pair)
    found = draw(model, method, lambda: loras, ROLES, result, PROMPTS, [3, 4], SPEC)
    alone = draw(model, load("direct+sampling.acfg", "constant_schedule"), lambda: [result.file], ["content"], None,
                 PROMPTS, [3, 4], SPEC)  # fmt: skip
    assert np.array_equal(found, alone)


def test_embedded_guidance_is_refused(model, loras, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "guidance", "embedded", raising=False)
    with pytest.raises(
        UserError, match=r"sums predictions with and without the prompt, and the guidance of this model is embedded"
    ):
        draw(model, load("direct+sampling.acfg"), lambda: loras, ROLES, None, PROMPTS, [3, 4], SPEC)


def test_window_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(UserError, match=r"method.style_window=\[0.7, 0.2\] must be a start and a later end"):
        load("direct+sampling.acfg", style_window=[0.7, 0.2])
