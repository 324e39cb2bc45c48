"""The UNet passes of one step of a learned merge: rows that need the same gates share one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabench.adapters import Adapters
from lorabench.method import Site
from lorabench.models.sdxl import SDXL, Conditioning

CONTENT, STYLE, MERGED = (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)


@dataclass(frozen=True)
class Noised:
    """Noised latents x [b, c, h, w] with the prompts they are denoised under."""

    x: Tensor
    prompt: Conditioning

    def under(self, prompt: Conditioning) -> Noised:
        return Noised(self.x, prompt)


@dataclass(frozen=True)
class MergeStep:
    """The draws of one step, and the network that answers to them.

    content: content images x_t^c under their prompts p_c.
    style: style images x_t^s under their prompts p_s.
    both: the merged prompt p_cs, one row an image.
    noise, t: shared by content and style images, as in the public codes of ZipLoRA and DuoLoRA.
    """

    model: SDXL
    adapters: Adapters
    sites: Mapping[str, Site]
    content: Noised
    style: Noised
    both: Conditioning
    noise: Tensor
    t: Tensor

    @torch.no_grad()
    def teachers(self) -> tuple[Tensor, ...]:
        """e_c(x_t^c, p_c) and e_s(x_t^s, p_s): each LoRA by itself, whole."""
        return self._predict([self.content, self.style], [CONTENT, STYLE], gated=False)

    def merged(self, *inputs: Noised) -> tuple[Tensor, ...]:
        """The gated merge on each input, with gradients to the gates."""
        return self._predict(inputs, [MERGED] * len(inputs), gated=True)

    def alone(self, inputs: Sequence[Noised], adapters: Sequence[int]) -> tuple[Tensor, ...]:
        """One LoRA by itself on each input (0 content, 1 style), whole, with gradients to the input."""
        if not inputs:
            return ()
        return self._predict(inputs, [(CONTENT, STYLE)[adapter] for adapter in adapters], gated=False)

    def renoised(self, noised: Noised, prediction: Tensor, prompt: Conditioning) -> Noised:
        """One-step clean estimate from a prediction, noised again with the same noise and timestep."""
        clean = self.model.clean_estimate(noised.x, self.t, prediction)
        return Noised(self.model.add_noise(clean, self.noise, self.t), prompt)

    def _predict(self, inputs: Sequence[Noised], gains: Sequence[tuple[float, ...]], gated: bool) -> tuple[Tensor, ...]:
        rows = torch.tensor(gains, device=self.t.device).repeat_interleave(len(self.t), dim=0)
        self.adapters.rows(rows, gated)
        prompts = Conditioning.join([each.prompt for each in inputs])
        sample = torch.cat([each.x for each in inputs])
        return self.model.predict(sample, self.t.repeat(len(inputs)), prompts).chunk(len(inputs))
