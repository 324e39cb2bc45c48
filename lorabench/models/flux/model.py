"""FLUX.1 dev and schnell: double and single blocks, packed latents, embedded guidance or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from diffusers.models.transformers.transformer_flux import (
    FluxSingleTransformerBlock,
    FluxTransformer2DModel,
    FluxTransformerBlock,
)
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor, nn

from lorabench.models import autoencoder
from lorabench.models.checkpointing import recomputed
from lorabench.models.conditioning import Conditioning
from lorabench.models.families import FLUX as FAMILY
from lorabench.models.files import ModelFiles
from lorabench.models.flow import SCALE, FlowMatching, FlowSampler, sampled_levels, trained_levels
from lorabench.models.flux.layers import layers_of
from lorabench.models.model import DiffusionModel
from lorabench.models.reading import load_pipeline
from lorabench.models.sampler import Sampler
from lorabench.models.schedulers import check_own_sampler
from lorabench.models.sd3.model import refuse_own

TRAINING_GUIDANCE = 1.0  # embedded guidance during training, as in the README of diffusers' script
PATCH = 2  # edge of the square of latents that is one token


class Flux(DiffusionModel):
    """The parts of a FluxPipeline.

    Latents are [n, 16, h, w] outside this class and packed to [n, h w / 4, 64] for the transformer. A conditioning
    holds the hidden states of T5 [n, tokens, width] and the pooled state of CLIP [n, width].

    Args:
        pipeline: Pipeline with its weights.
        files: Settings of the model; defaults if None.

    Attributes:
        guidance: "embedded" for dev, "none" for schnell, "cfg" with `files.true_guidance`.
    """

    def __init__(self, pipeline: FluxPipeline, files: ModelFiles | None = None):
        self.pipeline, self.vae, self.transformer = pipeline, pipeline.vae, pipeline.transformer
        encoders = {name: getattr(pipeline, name) for name in FAMILY.encoders}
        factor: int = pipeline.vae_scale_factor
        config: Any = self.transformer.config
        resolution = (files.resolution if files else None) or pipeline.default_sample_size * factor
        self.embeds_guidance: bool = config.guidance_embeds
        own: Literal["embedded", "none"] = "embedded" if self.embeds_guidance else "none"
        self.guidance = "cfg" if files is not None and files.true_guidance else own
        super().__init__(
            self.transformer,
            encoders,
            FlowMatching(trained_levels(pipeline.scheduler.config).to(self.transformer.device)),
            layers_of(config, {name: encoders[name].config.to_dict() for name in FAMILY.adapted}),
            resolution,
            (config.in_channels // PATCH**2, resolution // factor, resolution // factor),
            files is not None and files.offload == "encoders",
        )
        autoencoder.prepare(self.vae, resolution)
        if files is not None and files.checkpointing:
            self.transformer.enable_gradient_checkpointing(recomputed)

    @classmethod
    def load(cls, files: ModelFiles | str | Path, device: str = "cpu") -> Self:
        """Load a model from its files or its folder (`load_pipeline`)."""
        return cls(*load_pipeline(FluxPipeline, FluxTransformer2DModel, files, device))

    def predict(
        self,
        xt: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        own: Sequence[Conditioning] | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """See `DiffusionModel.predict`. The guidance embedding is 1 if no guidance is given."""
        refuse_own(own)
        states, pooled = conditioning.tensors
        n, _, height, width = xt.shape
        scale = torch.full((n,), TRAINING_GUIDANCE if guidance is None else guidance, device=xt.device)
        prediction = self.transformer(
            pack(xt).to(self.dtype),
            timestep=(t.expand(n) / SCALE).to(self.dtype),
            guidance=scale if self.embeds_guidance else None,
            pooled_projections=pooled,
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, device=xt.device, dtype=self.dtype),
            img_ids=positions(height // PATCH, width // PATCH).to(xt.device, self.dtype),
            return_dict=False,
        )[0]
        return unpack(prediction.float(), height, width)

    def sampler(self, steps: int, kind: str = "model") -> Sampler:
        """Return Euler steps along the levels that diffusers' pipeline uses."""
        check_own_sampler(kind)
        _, height, width = self.latent_shape
        unshifted = np.linspace(1.0, 1 / steps, steps).tolist()
        levels = sampled_levels(self.pipeline.scheduler, steps, height * width // PATCH**2, unshifted)
        return FlowSampler(levels.to(self.device))

    def recomputed_blocks(self) -> list[nn.Module]:
        kinds = FluxTransformerBlock | FluxSingleTransformerBlock
        return [each for each in self.transformer.modules() if isinstance(each, kinds)]

    def _encode(self, prompts: list[str]) -> Conditioning:
        pipeline: Any = self.pipeline  # its annotation of `encode_prompt` allows one prompt only
        states, pooled, _ = pipeline.encode_prompt(prompts, None, device=self.device)
        return Conditioning((states.to(self.dtype), pooled.to(self.dtype)))


def pack(latents: Tensor) -> Tensor:
    """Return latents [n, c, h, w] as tokens [n, h w / 4, 4 c], one per square of 2 x 2."""
    n, c, height, width = latents.shape
    squares = latents.view(n, c, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(n, (height // PATCH) * (width // PATCH), c * PATCH**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens [n, h w / 4, 4 c] as latents [n, c, h, w]."""
    n, _, channels = tokens.shape
    squares = tokens.view(n, height // PATCH, width // PATCH, channels // PATCH**2, PATCH, PATCH)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(n, channels // PATCH**2, height, width)


def positions(rows: int, columns: int) -> Tensor:
    """Return the position ids of image tokens [rows columns, 3]: 0, row, column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).view(-1, 3).float()
