"""The held-out loss: the error of v at fixed noise levels, on images that are never used for training.

The numbers of the images start at FIRST, far beyond any bank. Each image has the same noise at every level and in every
call, so that checkpoints are comparable. The loss at t = 950 is the first to rise when a model overfits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pretraining import bank
from pretraining.architecture import build_scheduler
from pretraining.encoded import CODE
from pretraining.latents import PatchPCA, encode_bank
from pretraining.unet import Denoiser, tokenize

FIRST = 90_000_000
TIMESTEPS = (50, 200, 400, 600, 800, 950)
COUNT = 512
BATCH = 64


def heldout_data(count: int = COUNT, first: int = FIRST) -> tuple[Tensor, Tensor]:
    """Return latents [count, 12, 16, 16] and token ids [count, 32] of held-out images."""
    pictures = [bank.picture(first + i) for i in range(count)]
    pca = PatchPCA.load(CODE)
    return encode_bank(pca, [np.stack([image for image, _ in pictures])]), tokenize([text for _, text in pictures])


@torch.no_grad()
def heldout_losses(model: Denoiser, latents: Tensor, ids: Tensor) -> dict[int, float]:
    """Return the mean squared error of v by timestep, unweighted, in the units of the latents."""
    alphas_cumprod = build_scheduler().alphas_cumprod
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    losses = {}
    for t in TIMESTEPS:
        a, total = alphas_cumprod[t], 0.0
        for x0, text, e in zip(latents.split(BATCH), ids.split(BATCH), noise.split(BATCH), strict=True):
            x0, e = x0.float(), e.to(x0.device)
            v = model(a.sqrt() * x0 + (1 - a).sqrt() * e, torch.full((len(x0),), t, device=x0.device), text.long())
            total += (v.float() - (a.sqrt() * e - (1 - a).sqrt() * x0)).square().mean(dim=(1, 2, 3)).sum().item()
        losses[t] = total / len(latents)
    return losses
