"""FLUX.1's transformer without text encoders and autoencoder, for counts and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor, nn

from lorabench.models.checkpointing import recomputed
from lorabench.models.conditioning import Conditioning
from lorabench.models.flow import FlowMatching, trained_levels
from lorabench.models.flux.layers import layers_of
from lorabench.models.flux.model import PATCH, Flux
from lorabench.models.model import DiffusionModel
from lorabench.models.random_codes import image_codes, prompt_codes

TOKENS = 512  # tokens of T5
EDGE = 128  # latents of an image of 1024 pixels


class FluxDenoiserOnly(Flux):
    """A FLUX.1 model with seeded random encodings of prompts and images.

    Args:
        transformer: Denoiser.
        checkpointing: Use gradient checkpointing.
    """

    def __init__(self, transformer: FluxTransformer2DModel, checkpointing: bool = False):
        self.transformer = transformer
        config: Any = transformer.config
        self.embeds_guidance = config.guidance_embeds
        self.guidance = "embedded" if config.guidance_embeds else "none"
        shape = (config.in_channels // PATCH**2, EDGE, EDGE)
        process = FlowMatching(trained_levels({"use_dynamic_shifting": True}).to(transformer.device))
        DiffusionModel.__init__(self, transformer, {}, process, layers_of(config, {}), 8 * shape[1], shape)
        if checkpointing:
            transformer.enable_gradient_checkpointing(recomputed)

    @classmethod
    def empty(cls, config: Mapping[str, Any], dtype: torch.dtype | None = None, checkpointing: bool = False) -> Self:
        """Return the model of a transformer's configuration on torch's meta device."""
        with torch.device("meta"):
            transformer: Any = FluxTransformer2DModel.from_config(dict(config))
        return cls(transformer if dtype is None else nn.Module.to(transformer, dtype), checkpointing)

    def encode_images(self, images: Tensor) -> Tensor:
        return image_codes(self, images)

    def _encode(self, prompts: list[str]) -> Conditioning:
        config: Any = self.transformer.config
        states = prompt_codes(self, "tokens", prompts, TOKENS, config.joint_attention_dim)
        return Conditioning((states, prompt_codes(self, "pooled", prompts, config.pooled_projection_dim)))
