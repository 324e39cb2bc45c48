"""Noise processes: how noise is added to latents, and which target a denoiser predicts.

Every process mixes latents and noise at a noise level t,

    x_t = signal(t) x_0 + spread(t) eps

and defines the training target of the denoiser. Losses, cycles and weights need nothing else of a model.

A squared error of one prediction is a weighted squared error of another. For DDPM (v = signal eps - spread x_0) and for
flow matching (v = eps - x_0) alike,

    |eps error|^2 = signal^2 |v error|^2        |x_0 error|^2 = spread^2 |v error|^2
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lorabench.base import UserError
from lorabench.config.schemas import LoRASpec

Predicts = Literal["epsilon", "v_prediction"]
LOSSES: dict[str, str] = {"epsilon": "eps", "v_prediction": "v"}  # by prediction of the model, named as in `lora.loss`
NOISY = "noisy"  # a law of timesteps
MIN_SIGNAL = 2**-24  # lower bound of alphas_bar in diffusers' schedulers: the clean estimate divides by its root


class NoiseProcess(ABC):
    """Mixture of latents and noise for each noise level.

    Attributes:
        noisiest: Noise level at which sampling starts.
        predicts: Prediction of the denoiser.
    """

    noisiest: float
    predicts: Predicts

    @abstractmethod
    def mixture(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return signal(t) and spread(t) [n]."""

    @abstractmethod
    def timesteps(self, n: int, rng: torch.Generator, law: str = "uniform") -> Tensor:
        """Sample n noise levels [n] for training, on the device of the process.

        Args:
            n: Number of levels.
            rng: Generator on the CPU, so that draws do not depend on the device.
            law: Distribution of the levels: "uniform", or "noisy" for p(t) proportional to 1 - cos(pi t / T) / 2
                (Inspiration Tree, arXiv 2305.18203), which prefers high noise.

        Raises:
            UserError: If the process does not have the law.
        """

    @abstractmethod
    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t [n, c, h, w] for levels t [n]."""

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the training target for the prediction at x_t."""

    @abstractmethod
    def clean(self, xt: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """Return the estimate of x_0 from x_t and a prediction."""

    @abstractmethod
    def noise(self, xt: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """Return the estimate of the noise from x_t and a prediction."""

    @abstractmethod
    def loss_weight(self, t: Tensor, spec: LoRASpec) -> Tensor | None:
        """Return the weight [n] of each squared error at levels t, or None if all weights are 1."""

    def of_loss(self, t: Tensor, loss: str) -> Tensor | None:
        """Return the weight [n] that makes the squared error of the denoiser's prediction that of another one.

        Args:
            t: Noise levels [n].
            loss: Quantity of the squared error: "v", "x0" or "eps", or "native" for the denoiser's prediction.
        """
        native = LOSSES[self.predicts]
        if loss in ("native", native):
            return None
        signal, spread = self.mixture(t)
        weights = {"v": torch.ones_like(signal), "eps": signal**2, "x0": spread**2}
        return weights[loss] / weights[native]


class DDPM(NoiseProcess):
    """Variance-preserving process in discrete timesteps (Ho et al., arXiv 2006.11239).

    Args:
        alphas_bar: Squared signal of each timestep [T], descending.
        predicts: "epsilon" for the noise, "v_prediction" for the velocity
            v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (Salimans and Ho, arXiv 2202.00512).
    """

    def __init__(self, alphas_bar: Tensor, predicts: Predicts):
        self.alphas_bar = alphas_bar.to(torch.float32).clamp(min=MIN_SIGNAL)
        self.predicts = predicts
        self.noisiest = len(alphas_bar) - 1

    def timesteps(self, n: int, rng: torch.Generator, law: str = "uniform") -> Tensor:
        count = len(self.alphas_bar)
        if law == "uniform":
            return torch.randint(count, (n,), generator=rng).to(self.alphas_bar.device)
        if law != NOISY:
            raise UserError(f"timestep law {law} does not exist for a DDPM model; use uniform or {NOISY}")
        return torch.multinomial(noisy_weights(count), n, replacement=True, generator=rng).to(self.alphas_bar.device)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        signal, spread = self._signal_and_spread(t)
        return signal * x0 + spread * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        signal, spread = self._signal_and_spread(t)
        return noise if self.predicts == "epsilon" else signal * noise - spread * x0

    def clean(self, xt: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        signal, spread = self._signal_and_spread(t)
        if self.predicts == "epsilon":
            return (xt - spread * prediction) / signal
        return signal * xt - spread * prediction

    def noise(self, xt: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        signal, spread = self._signal_and_spread(t)
        return prediction if self.predicts == "epsilon" else signal * prediction + spread * xt

    def loss_weight(self, t: Tensor, spec: LoRASpec) -> Tensor | None:
        """Return Min-SNR weights (Hang et al., ICCV 2023, equations 7 and 8) if `spec.min_snr` is set.

        The weights are min(snr, gamma) / snr for the noise and min(snr, gamma) / (snr + 1) for the velocity. Both weigh
        the error of the clean estimate by min(snr, gamma).
        """
        if spec.min_snr is None:
            return self.of_loss(t, spec.loss)
        signal = self.alphas_bar[t]
        snr = signal / (1 - signal)
        return snr.clamp(max=spec.min_snr) / (snr if self.predicts == "epsilon" else snr + 1)

    def mixture(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alphas_bar[t]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def _signal_and_spread(self, t: Tensor) -> tuple[Tensor, Tensor]:
        signal, spread = self.mixture(t)
        return signal.view(-1, 1, 1, 1), spread.view(-1, 1, 1, 1)


def noisy_weights(count: int) -> Tensor:
    """Return the weights of `count` timesteps under the law "noisy", from the cleanest."""
    return 1 - torch.cos(torch.pi * torch.arange(count, dtype=torch.float64) / count) / 2
