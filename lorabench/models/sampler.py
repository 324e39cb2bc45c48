"""The sampling steps from noise to latents with a deterministic scheduler of diffusers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from lorabench.models.schedulers import check_deterministic


class Sampler:
    """One run of a scheduler.

    Args:
        scheduler: Scheduler of a diffusers pipeline; it is copied.
        steps: Number of sampling steps.
        device: Device of the latents.

    Attributes:
        timesteps: Noise level of each step.

    Raises:
        UserError: If the scheduler draws random numbers.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device):
        check_deterministic(type(scheduler).__name__, scheduler.config, "the model")
        self.scheduler = deepcopy(scheduler)
        self.scheduler.set_timesteps(steps, device=device)
        self.timesteps: Tensor = self.scheduler.timesteps

    def start(self, noise: Tensor) -> Tensor:
        """Return the latents at the first noise level, from noise of variance 1."""
        return noise * self.scheduler.init_noise_sigma

    def scaled(self, latents: Tensor, t: Tensor) -> Tensor:
        """Return latents scaled to variance 1, which the model expects."""
        return self.scheduler.scale_model_input(latents, t)

    def step(self, prediction: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        """Return the latents at the next noise level."""
        return self.scheduler.step(prediction, t, latents, return_dict=False)[0]
