"""SD3's transformer without text encoders and autoencoder, for counts and benchmarks."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor

from lorabench.models.checkpointing import recomputed
from lorabench.models.conditioning import Conditioning
from lorabench.models.flow import FlowMatching, trained_levels
from lorabench.models.model import DiffusionModel
from lorabench.models.random_codes import image_codes, prompt_codes
from lorabench.models.sd3.layers import layers_of
from lorabench.models.sd3.model import SD3, T5_TOKENS

CLIP_TOKENS = 77
SHIFT = 3.0


class SD3DenoiserOnly(SD3):
    """An SD3 model with seeded random encodings of prompts and images.

    Args:
        transformer: Denoiser.
        checkpointing: Use gradient checkpointing.
    """

    network = SD3Transformer2DModel

    def __init__(self, transformer: SD3Transformer2DModel, checkpointing: bool = False):
        self.transformer = transformer
        config: Any = transformer.config
        shape = (config.in_channels, config.sample_size, config.sample_size)
        process = FlowMatching(trained_levels({"shift": SHIFT}).to(transformer.device))
        DiffusionModel.__init__(self, transformer, {}, process, layers_of(config, {}), 8 * shape[1], shape)
        if checkpointing:
            transformer.enable_gradient_checkpointing(recomputed)

    def encode_images(self, images: Tensor) -> Tensor:
        return image_codes(self, images)

    def _encode(self, prompts: list[str]) -> Conditioning:
        config: Any = self.transformer.config
        t5 = T5_TOKENS if config.joint_attention_dim > config.pooled_projection_dim else 0  # none in micro_sd3
        states = prompt_codes(self, "tokens", prompts, CLIP_TOKENS + t5, config.joint_attention_dim)
        return Conditioning((states, prompt_codes(self, "pooled", prompts, config.pooled_projection_dim)))
