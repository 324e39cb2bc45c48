"""FLUX.1's transformer without text encoders and autoencoder, for counts and benchmarks."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import Tensor

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

    network = FluxTransformer2DModel

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

    def encode_images(self, images: Tensor) -> Tensor:
        return image_codes(self, images)

    def _encode(self, prompts: list[str]) -> Conditioning:
        config: Any = self.transformer.config
        states = prompt_codes(self, "tokens", prompts, TOKENS, config.joint_attention_dim)
        return Conditioning((states, prompt_codes(self, "pooled", prompts, config.pooled_projection_dim)))
