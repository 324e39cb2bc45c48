"""Flow matching with straight paths (Lipman et al., arXiv 2210.02747; rectified flow, Liu et al., arXiv 2209.03003).

    x_t = (1 - sigma) x_0 + sigma eps        v = eps - x_0        t = 1000 sigma

The denoiser predicts v. Then

    x_0 = x_t - sigma v        eps = x_t + (1 - sigma) v
    |x_0 error|^2 = sigma^2 |v error|^2        |eps error|^2 = (1 - sigma)^2 |v error|^2

A sampling step from sigma to sigma' is Euler's: x' = x + (sigma' - sigma) v. Only the table of noise levels comes from
diffusers' FlowMatchEulerDiscreteScheduler, because its other functions look levels up by float equality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec
from lorabench.models.noise import NOISY, NoiseProcess, noisy_weights
from lorabench.models.sampler import Sampler

SCALE = 1000  # noise level t of pure noise
LAWS = ("uniform", "logit_normal", "content", "style")


class FlowMatching(NoiseProcess):
    """Straight path between latents and noise.

    Args:
        sigmas: Noise levels that training draws from [T], from the noisiest, as the scheduler of the model lists them.
            A static shift s has been applied to them: sigma' = s sigma / (1 + (s - 1) sigma).
    """

    predicts = "v_prediction"

    def __init__(self, sigmas: Tensor):
        self.sigmas = sigmas.to(torch.float32)
        self.noisiest = float(SCALE)

    def mixture(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t / SCALE, t / SCALE

    def timesteps(self, n: int, rng: torch.Generator, law: str = "uniform") -> Tensor:
        """Draw levels from the table.

        Args:
            n: Number of levels.
            rng: Generator on the CPU.
            law: Distribution of the place u in the table, between 0 (noisiest) and 1: "uniform"; "logit_normal" for
                sigmoid(N(0, 1)) (Esser et al., arXiv 2403.03206, equation 19, with m = 0 and s = 1); "content" for u^3
                of a uniform u, which prefers noisy levels, and "style" for 1 - u^3, both as ai-toolkit draws them;
                "noisy" for the weights of Inspiration Tree, as in `DDPM`.
        """
        count = len(self.sigmas)
        if law == NOISY:
            index = torch.multinomial(noisy_weights(count).flip(0), n, replacement=True, generator=rng)
            return SCALE * self.sigmas[index.to(self.sigmas.device)]
        if law not in LAWS:
            raise UserError(f"timestep law {law} does not exist for a flow-matching model; use {'|'.join(LAWS)}")
        u = torch.randn(n, generator=rng).sigmoid() if law == "logit_normal" else torch.rand(n, generator=rng)
        place = {"content": u**3, "style": 1 - u**3}.get(law, u)
        index = (place * count).long().clamp(max=count - 1)
        return SCALE * self.sigmas[index.to(self.sigmas.device)]

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = level(t)
        return (1 - sigma) * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - x0

    def clean(self, xt: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        return xt - level(t) * prediction

    def noise(self, xt: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        return xt + (1 - level(t)) * prediction

    def loss_weight(self, t: Tensor, spec: LoRASpec) -> Tensor | None:
        """Return the weights of `spec.loss`.

        Raises:
            UserError: If Min-SNR weights are asked for, which are defined for DDPM.
        """
        if spec.min_snr is not None:
            raise UserError("lora.min_snr weighs the timesteps of DDPM models; use lora.min_snr=null")
        return self.of_loss(t, spec.loss)


class FlowSampler(Sampler):
    """Euler steps along a table of noise levels.

    Args:
        sigmas: Noise levels of the steps [steps], falling, without the final 0.
    """

    def __init__(self, sigmas: Tensor):
        self.timesteps = SCALE * sigmas
        self.steps = torch.diff(sigmas, append=sigmas.new_zeros(1))
        self.place = 0

    def start(self, noise: Tensor) -> Tensor:
        return noise

    def scaled(self, latents: Tensor, t: Tensor) -> Tensor:
        return latents

    def noised(self, clean: Tensor, noise: Tensor, index: int) -> Tensor:
        if index >= len(self.timesteps):
            return clean
        sigma = self.timesteps[index] / SCALE
        return (1 - sigma) * clean + sigma * noise

    def step(self, prediction: Tensor, t: Tensor, latents: Tensor) -> Tensor:
        self.place += 1
        return latents + self.steps[self.place - 1] * prediction


def level(t: Tensor) -> Tensor:
    """Return sigma, shaped to multiply latents [n, c, h, w]."""
    return (t / SCALE).view(-1, 1, 1, 1)


def trained_levels(config: Mapping[str, Any]) -> Tensor:
    """Return the table that training draws from, as diffusers' scripts build it: [T], noisiest first."""
    count = int(config.get("num_train_timesteps", SCALE))
    sigmas = torch.arange(count, 0, -1, dtype=torch.float32) / count
    return sigmas if config.get("use_dynamic_shifting") else shifted(sigmas, config.get("shift", 1.0))


def sampled_levels(scheduler: Any, steps: int, tokens: int, sigmas: Sequence[float] | None = None) -> Tensor:
    """Return the table that diffusers' pipelines sample from: [steps], noisiest first, without the final 0.

    Args:
        scheduler: FlowMatchEulerDiscreteScheduler of the pipeline; it is copied.
        steps: Number of sampling steps.
        tokens: Number of image tokens. A dynamic shift exp(mu) is linear in it: mu = base_shift at base_image_seq_len
            tokens, and max_shift at max_image_seq_len.
        sigmas: Levels before the shift; None uses those of the scheduler.
    """
    scheduler, config = deepcopy(scheduler), scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
    scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu)
    return scheduler.sigmas[:-1]


def shifted(sigmas: Tensor, shift: float) -> Tensor:
    """Return levels with a static shift: shift sigma / (1 + (shift - 1) sigma)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)
