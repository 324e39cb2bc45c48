"""The steps from noise to latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from lorabench.models.schedulers import SAMPLERS, check_deterministic


class Sampler(ABC):
    """One deterministic run from noise to latents.

    Attributes:
        timesteps: Noise level of each step.
    """

    timesteps: Tensor

    @abstractmethod
    def start(self, noise: Tensor) -> Tensor:
        """Return the latents at the first noise level, from noise of variance 1."""

    @abstractmethod
    def scaled(self, latents: Tensor, t: Tensor) -> Tensor:
        """Return the latents as the model expects them at a noise level."""

    @abstractmethod
    def noised(self, clean: Tensor, noise: Tensor, index: int) -> Tensor:
        """Return clean latents with noise at the level before step `index`; after the last step they stay clean."""

    @abstractmethod
    def step(self, prediction: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        """Return the latents at the next noise level."""


class ScheduledSampler(Sampler):
    """A run of a scheduler of diffusers.

    Args:
        scheduler: Scheduler of a diffusers pipeline; it is copied.
        steps: Number of sampling steps.
        device: Device of the latents.
        kind: "model" for the scheduler itself, or a key of SAMPLERS for another one with its noise levels.

    Raises:
        UserError: If the scheduler draws random numbers.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device, kind: str = "model"):
        scheduler = other_scheduler(scheduler, kind) if kind != "model" else deepcopy(scheduler)
        check_deterministic(type(scheduler).__name__, scheduler.config, "the model")
        self.scheduler = scheduler
        self.scheduler.set_timesteps(steps, device=device)
        self.timesteps = self.scheduler.timesteps

    def start(self, noise: Tensor) -> Tensor:
        return noise * self.scheduler.init_noise_sigma

    def scaled(self, latents: Tensor, t: Tensor) -> Tensor:
        return self.scheduler.scale_model_input(latents, t)

    def noised(self, clean: Tensor, noise: Tensor, index: int) -> Tensor:
        if index >= len(self.timesteps):
            return clean
        return self.scheduler.add_noise(clean, noise, self.timesteps[index : index + 1].expand(len(clean)))

    def step(self, prediction: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        return self.scheduler.step(prediction, t, latents, return_dict=False)[0]


def other_scheduler(scheduler: Any, kind: str) -> Any:
    """Return a scheduler of SAMPLERS with the noise schedule and the prediction type of another one."""
    import diffusers

    name, settings = SAMPLERS[kind]
    return getattr(diffusers, name).from_config(scheduler.config, **settings)
