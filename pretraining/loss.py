"""The training loss of a denoiser: the weighted error of its prediction at random noise levels.

A model defines its noise levels, its noise and its weights. Captions are dropped for classifier-free guidance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from pretraining.tokens import tokenize

EMPTY_SHARE = 0.1  # captions dropped for classifier-free guidance


class Loss(ABC):
    """The training loss of a batch. All random numbers come from one generator.

    Attributes:
        levels: Noise levels of the held-out loss.
    """

    levels: ClassVar[tuple[int, ...]]

    def __init__(self) -> None:
        self.empty = tokenize([""])[0].long()

    @abstractmethod
    def timesteps(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw the noise levels of training [n]."""

    @abstractmethod
    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noisy latents and the target of the prediction, both [n, c, h, w], at levels t [n]."""

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight of each squared error [n] at levels t [n]."""
        return torch.ones_like(t, dtype=torch.float32)

    def __call__(
        self, model: nn.Module, x0: Tensor, ids: Tensor, seed: int, rows: slice, device: torch.device
    ) -> Tensor:
        """Return the mean weighted error over some rows of a batch.

        Args:
            model: The denoiser.
            x0: Latents of the whole batch [n, 12, 16, 16], on the CPU.
            ids: Token ids of the whole batch [n, 32].
            seed: Seed of timesteps, noise and dropped captions of the whole batch.
            rows: Rows that this process computes, so that the loss does not depend on the number of devices.
            device: Device of the model.
        """
        rng, n = torch.Generator().manual_seed(seed), len(x0)
        ids = torch.where(torch.rand(n, 1, generator=rng) < EMPTY_SHARE, self.empty, ids)
        t = self.timesteps(n, rng)
        noisy, target = self.noised(x0, torch.randn(x0.shape, generator=rng), t)
        weight = self.weight(t).view(-1, 1, 1, 1)
        noisy, target, weight, t, ids = (each[rows].to(device) for each in (noisy, target, weight, t, ids))
        return (weight * (model(noisy, t, ids).float() - target) ** 2).mean()
