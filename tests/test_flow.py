"""Flow matching: noise, targets and loss weights of the training scripts, and FLUX.1's packed latents."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec
from lorabench.models.flow import FlowMatching, sampled_levels, trained_levels
from lorabench.models.flux.model import pack, unpack
from lorabench.models.noise import DDPM


def test_packing_is_that_of_pipeline() -> None:
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    latents = torch.randn(2, 16, 8, 4)
    packed = FluxPipeline._pack_latents(latents, 2, 16, 8, 4)
    assert torch.equal(pack(latents), packed) and torch.equal(unpack(packed, 8, 4), latents)


def test_noise_and_target_are_those_of_training_script() -> None:
    """examples/dreambooth/train_dreambooth_lora_sd3.py: x_t = (1 - sigma) x_0 + sigma eps; target eps - x_0."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    process = FlowMatching(trained_levels(scheduler.config))
    assert torch.allclose(1000 * process.sigmas, scheduler.timesteps, atol=1e-3)
    x0, noise = torch.randn(5, 16, 4, 4), torch.randn(5, 16, 4, 4)
    for law in ("uniform", "logit_normal", "content", "style"):
        t = process.timesteps(5, torch.Generator().manual_seed(0), law)
        sigma = (t / 1000).view(-1, 1, 1, 1)
        xt = process.add_noise(x0, noise, t)
        assert torch.equal(xt, (1.0 - sigma) * x0 + sigma * noise)
        assert torch.equal(process.target(x0, noise, t), noise - x0)
        assert torch.allclose(process.clean(xt, t, noise - x0), x0, atol=1e-5)
        assert torch.allclose(process.noise(xt, t, noise - x0), noise, atol=1e-5)
    means = {
        law: process.timesteps(4000, torch.Generator().manual_seed(0), law).mean()
        for law in ("content", "uniform", "style", "noisy")
    }
    assert means["style"] < means["uniform"] < means["noisy"] < means["content"]
    # With density 1 - cos(pi u) / 2 of the level u, the mean of u is 1/2 + 1/pi^2.
    unshifted = FlowMatching(trained_levels({})).timesteps(20_000, torch.Generator().manual_seed(0), "noisy")
    assert unshifted.mean().item() / 1000 == pytest.approx(0.5 + 1 / torch.pi**2, abs=0.01)


def test_level_of_step_follows_from_progress_and_shift() -> None:
    """docs/transformers.md: sigma = s (1 - p) / (1 + (s - 1)(1 - p)) on FLUX.1, and up to 0.1 less on SD3."""
    steps = 28
    left = 1 - torch.arange(steps) / steps  # 1 - p

    def shifted(s: float) -> Tensor:
        return s * left / (1 + (s - 1) * left)

    flux = sampled_levels(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), steps, 4096, left.tolist())
    sd3 = sampled_levels(FlowMatchEulerDiscreteScheduler(shift=3.0), steps, 4096)
    assert torch.allclose(flux, shifted(math.exp(1.15)), atol=1e-6) and math.exp(1.15) == pytest.approx(3.16, abs=0.005)
    assert ((less := shifted(3.0) - sd3) >= 0).all() and less.max() < 0.1 and less.argmax() == steps - 1
    assert all((each > 0.75).float().mean() == pytest.approx(0.5, abs=0.04) for each in (flux, sd3))


@pytest.mark.parametrize("kind", ["flow", "epsilon", "v_prediction"])
@pytest.mark.parametrize("loss", ["v", "x0", "eps"])
def test_loss_weight_is_error_of_other_prediction(kind: Any, loss: str, lora_spec: LoRASpec) -> None:
    torch.manual_seed(0)
    process: Any = FlowMatching(trained_levels({})) if kind == "flow" else DDPM(torch.linspace(0.99, 0.01, 1000), kind)
    x0, noise, t = torch.randn(4, 4, 2, 2).double(), torch.randn(4, 4, 2, 2).double(), torch.tensor([50, 300, 600, 900])
    xt = process.add_noise(x0, noise, t)
    prediction = process.target(x0, noise, t) + 0.1 * torch.randn(4, 4, 2, 2).double()

    def velocity(clean: Tensor, eps: Tensor) -> Tensor:
        signal, spread = (each.view(-1, 1, 1, 1) for each in process.mixture(t))
        return eps - clean if kind == "flow" else signal * eps - spread * clean

    clean, eps = process.clean(xt, t, prediction), process.noise(xt, t, prediction)
    error = {"x0": clean - x0, "eps": eps - noise, "v": velocity(clean, eps) - velocity(x0, noise)}[loss]
    weight = process.loss_weight(t, replace(lora_spec, loss=loss, min_snr=None))
    own = (prediction - process.target(x0, noise, t)).pow(2).mean((1, 2, 3))
    assert torch.allclose(own if weight is None else weight * own, error.pow(2).mean((1, 2, 3)), rtol=1e-3)


def test_min_snr_is_refused_for_flow_matching(lora_spec: LoRASpec) -> None:
    with pytest.raises(UserError, match=r"use lora\.min_snr=null"):
        FlowMatching(trained_levels({})).loss_weight(torch.tensor([500.0]), replace(lora_spec, min_snr=5.0))
    with pytest.raises(UserError, match="law style does not exist for a DDPM model"):
        DDPM(torch.linspace(0.9, 0.1, 10), "epsilon").timesteps(1, torch.Generator(), "style")
