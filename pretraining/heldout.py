"""The held-out loss: the error of v at fixed noise levels, on images that are never used for training.

The numbers of the images start far beyond any bank. Each image has the same noise at every level and in every
call, so that checkpoints are comparable. The loss at 950 is the first to rise when a model overfits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pretraining import bank
from pretraining.encoded import CODE
from pretraining.latents import PatchPCA, encode_bank
from pretraining.loss import Loss
from pretraining.tokens import tokenize

COUNT = 512
BATCH = 64


def heldout_data(count: int = COUNT, first: int = bank.HELDOUT_FROM) -> tuple[Tensor, Tensor]:
    """Return latents [count, 12, 16, 16] and token ids [count, 32] of held-out images."""
    pictures = [bank.picture(first + i) for i in range(count)]
    pca = PatchPCA.load(CODE)
    return encode_bank(pca, [np.stack([image for image, _ in pictures])]), tokenize([text for _, text in pictures])


@torch.no_grad()
def heldout_losses(model: nn.Module, loss: Loss, latents: Tensor, ids: Tensor) -> dict[int, float]:
    """Return the mean squared error of the prediction by noise level, unweighted, in the units of the latents."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    losses = {}
    for level in loss.levels:
        total = 0.0
        for x0, text, e in zip(latents.split(BATCH), ids.split(BATCH), noise.split(BATCH), strict=True):
            x0, t = x0.float(), torch.full((len(x0),), level, device=x0.device)
            noisy, target = loss.noised(x0, e.to(x0.device), t)
            total += (model(noisy, t, text.long()).float() - target).square().mean(dim=(1, 2, 3)).sum().item()
        losses[level] = total / len(latents)
    return losses
