"""The denoiser's passes in one step of a learned merge. Rows with the same masks share a forward pass.

A step may have several pairs. Then rows are ordered by pair, so that each pair's rows are multiplied with its own
factors and masks (see `MaskedLoRA`), and every mean over rows is computed within a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabench.data.concepts import Role
from lorabench.lora.layer import Adapters
from lorabench.models.conditioning import Conditioning
from lorabench.models.layer import Layer
from lorabench.models.model import DiffusionModel


@dataclass(frozen=True)
class Noised:
    """Noised latents and their prompts.

    Args:
        x: [pairs * batch, c, h, w].
        prompt: Conditioning of each row.
    """

    x: Tensor
    prompt: Conditioning

    def under(self, prompt: Conditioning) -> Noised:
        """Return the same latents with another prompt."""
        return Noised(self.x, prompt)


@dataclass(frozen=True)
class MergeStep:
    """The random draws of one step, and the model.

    Args:
        model: The model.
        adapters: The adapters on the denoiser.
        layers: The adapted layers.
        roles: Role of each adapter, contents first.
        images: For each adapter, its noised images x_t^k with their prompts p_k.
        both: The combined prompt p_cs, one row per image.
        noise: Noise, shared by the images of all adapters as in the public codes of ZipLoRA and DuoLoRA.
        t: Timesteps, shared in the same way.
        pairs: Number of pairs.
    """

    model: DiffusionModel
    adapters: Adapters
    layers: Mapping[str, Layer]
    roles: tuple[Role, ...]
    images: tuple[Noised, ...]
    both: Conditioning
    noise: Tensor
    t: Tensor
    pairs: int = 1

    @torch.no_grad()
    def teachers(self) -> tuple[Tensor, ...]:
        """Return e_k(x_t^k, p_k): the predictions with each LoRA by itself, unmasked, on its own images."""
        return self.unmasked(self.images, [(k,) for k in range(len(self.images))])

    def merged(self, *inputs: Noised) -> tuple[Tensor, ...]:
        """Return the predictions of the masked merge for each input, with gradients to the masks."""
        return self._predict(inputs, [self._switch(range(len(self.roles)))] * len(inputs), masked=True)

    def unmasked(self, inputs: Sequence[Noised], adapters: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        """Return the predictions for each input with some adapters, without masks, with gradients to the input."""
        return self._predict(inputs, [self._switch(on) for on in adapters], masked=False)

    def reconstruction(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return || e_m(x_k, p_k) - e_k(x_k, p_k) ||^2 [pairs] by role, summed over the adapters of a role."""
        terms: dict[str, Tensor] = {}
        for role, prediction, target in zip(self.roles, predictions, targets, strict=True):
            error = self.mse(prediction, target)
            terms[role] = terms[role] + error if role in terms else error
        return terms

    def clean(self, noised: Noised, prediction: Tensor) -> Tensor:
        """Return the one-step clean estimate for a prediction, [pairs * batch, c, h, w]."""
        return self.model.process.clean(noised.x, self.t, prediction)

    def renoised(self, noised: Noised, prediction: Tensor, prompt: Conditioning) -> Noised:
        """Return the clean estimate, noised with the same noise and timestep, with a prompt."""
        return Noised(self.model.process.add_noise(self.clean(noised, prediction), self.noise, self.t), prompt)

    def mse(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the mean squared error of each pair's rows, [pairs]."""
        return (left - right).square().reshape(self.pairs, -1).mean(dim=1)

    def _switch(self, on: Sequence[int]) -> tuple[float, ...]:
        return tuple(float(k in on) for k in range(len(self.roles)))

    def _predict(
        self, inputs: Sequence[Noised], scales: Sequence[tuple[float, ...]], masked: bool
    ) -> tuple[Tensor, ...]:
        if not inputs:
            return ()
        batch = len(self.t) // self.pairs
        rows = torch.tensor(scales, device=self.t.device).repeat_interleave(batch, dim=0).repeat(self.pairs, 1)
        self.adapters.rows(rows, masked)
        prompts = Conditioning.join([each.prompt for each in inputs])
        order = self._by_pair(torch.arange(len(prompts), device=self.t.device).chunk(len(inputs)))
        x, t = self._by_pair([each.x for each in inputs]), self._by_pair([self.t] * len(inputs))
        out = self.model.predict(x, t, prompts.take(order))
        out = out.unflatten(0, (self.pairs, len(inputs), batch))
        return tuple(each.flatten(0, 1) for each in out.unbind(1))

    def _by_pair(self, parts: Sequence[Tensor]) -> Tensor:
        """Join inputs [pairs * batch, ...] to one batch [pairs * inputs * batch, ...], ordered by pair."""
        return torch.stack([part.unflatten(0, (self.pairs, -1)) for part in parts], dim=1).flatten(0, 2)
