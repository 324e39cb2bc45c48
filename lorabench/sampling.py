"""Sampling: diffusers' schedulers, guidance as rows of one forward, noise from each image's own seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorabench.adapters import Adapters
from lorabench.method import Branch, Gain
from lorabench.models.sdxl import SDXL, Conditioning


def initial_noise(model: SDXL, seeds: Sequence[int]) -> Tensor:
    """[n, c, h, w] of variance 1; an image's noise depends on its seed alone, not on batch, process or device."""
    shape = (1, model.unet.config.in_channels, model.latent_edge, model.latent_edge)
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat(draws).to(model.device)


@torch.no_grad()
def sample(
    model: SDXL,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    adapters: Adapters | None = None,
    gain: Gain | None = None,
    branches: Sequence[Branch] | None = None,
) -> Tensor:
    """Images uint8 [n, H, W, 3], one a prompt and seed; arguments as in `sample_latents`."""
    images = model.decode(sample_latents(model, prompts, seeds, steps, guidance, adapters, gain, branches)) * 255
    return images.round().byte().permute(0, 2, 3, 1).cpu()


@torch.no_grad()
def sample_latents(
    model: SDXL,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    adapters: Adapters | None = None,
    gain: Gain | None = None,
    branches: Sequence[Branch] | None = None,
) -> Tensor:
    """Latents [n, c, h, w] of unit scale.

    guidance: scale of classifier-free guidance; 1 leaves the unconditional rows out.
    gain: strength of each adapter by (site, progress), progress = step / steps; None leaves them as they are set.
    branches: instead of classifier-free guidance, the predictions to be summed; they are rows of one forward.
    """
    if branches is not None:
        assert adapters is not None and gain is not None
        return branched_latents(model, prompts, seeds, steps, adapters, gain, branches)
    scheduler = model.new_scheduler()
    scheduler.set_timesteps(steps, device=model.device)
    latents = initial_noise(model, seeds) * scheduler.init_noise_sigma
    conditioning = model.encode_prompts(prompts)
    guided = guidance > 1
    if guided:
        conditioning = Conditioning.join([model.encode_nothing(len(prompts)), conditioning])
    for index, t in enumerate(scheduler.timesteps):
        if adapters is not None and gain is not None:
            _set_gains(adapters, gain, index / steps)
        rows = torch.cat([latents, latents]) if guided else latents
        prediction = model.predict(scheduler.scale_model_input(rows, t), t, conditioning)
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance * (conditional - unconditional)
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    return latents


@torch.no_grad()
def branched_latents(
    model: SDXL,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    adapters: Adapters,
    gain: Gain,
    branches: Sequence[Branch],
) -> Tensor:
    """eps = sum_b w_b eps_b, every branch b with its own adapters and prompt; arguments as in `sample_latents`."""
    n = len(prompts)
    scheduler = model.new_scheduler()
    scheduler.set_timesteps(steps, device=model.device)
    latents = initial_noise(model, seeds) * scheduler.init_noise_sigma
    words, nothing = model.encode_prompts(prompts), model.encode_nothing(n)
    conditioning = Conditioning.join([words if branch.prompted else nothing for branch in branches])
    switches = torch.tensor([branch.gain for branch in branches]).repeat_interleave(n, dim=0)
    weights = torch.tensor([branch.weight for branch in branches], device=model.device)
    for index, t in enumerate(scheduler.timesteps):
        own = {site: torch.tensor(gain(site, index / steps)) * switches for site in adapters.layers}
        adapters.rows(own)
        rows = scheduler.scale_model_input(latents.repeat(len(branches), 1, 1, 1), t)
        each = model.predict(rows, t, conditioning).unflatten(0, (len(branches), n))
        prediction = torch.einsum("b,bnchw->nchw", weights, each)
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    return latents


def _set_gains(adapters: Adapters, gain: Gain, progress: float) -> None:
    """Same gains in every row: as in diffusers, the unconditional branch sees the adapters too."""
    by_site = {site: gain(site, progress) for site in adapters.layers}
    if len(set(by_site.values())) == 1:
        adapters.rows(torch.tensor([next(iter(by_site.values()))]))
    else:
        adapters.rows({site: torch.tensor([value]) for site, value in by_site.items()})
