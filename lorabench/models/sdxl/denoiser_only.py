"""A UNet with SDXL's noise schedule, without text encoders and autoencoder.

Steps of merges and trainings need only this. It is used for counts and benchmarks, with random weights or on torch's
meta device.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor

from lorabench.models.checkpointing import recomputed
from lorabench.models.conditioning import Conditioning
from lorabench.models.model import DiffusionModel
from lorabench.models.noise import DDPM
from lorabench.models.random_codes import image_codes, prompt_codes
from lorabench.models.sampler import Sampler, ScheduledSampler
from lorabench.models.sdxl.attention import set_attention
from lorabench.models.sdxl.layers import layers_of
from lorabench.models.sdxl.model import SDXL

TOKENS = 77
SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class DenoiserOnly(SDXL):
    """An SDXL model with seeded random encodings of prompts and images.

    Args:
        unet: Denoiser.
        checkpointing: Use gradient checkpointing.
    """

    network = UNet2DConditionModel

    def __init__(self, unet: UNet2DConditionModel, checkpointing: bool = False):
        self.unet = unet
        config: Any = unet.config
        edge = config.sample_size
        process = DDPM(EulerDiscreteScheduler(**SCHEDULE).alphas_cumprod.to(unet.device), "epsilon")
        shape = (config.in_channels, edge, edge)
        DiffusionModel.__init__(self, unet, {}, process, layers_of(config, {}), 8 * edge, shape)
        set_attention(unet, "auto")
        if checkpointing:
            unet.enable_gradient_checkpointing(recomputed)

    def sampler(self, steps: int, kind: str = "model") -> Sampler:
        return ScheduledSampler(EulerDiscreteScheduler(**SCHEDULE), steps, self.device, kind)

    def encode_images(self, images: Tensor) -> Tensor:
        return image_codes(self, images)

    def unconditional(self, n: int) -> Conditioning:
        return self.encode_prompts([""]).take([0] * n)

    def _encode(self, prompts: list[str]) -> Conditioning:
        config: Any = self.unet.config
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        states = prompt_codes(self, "tokens", prompts, TOKENS, config.cross_attention_dim)
        pooled = prompt_codes(self, "pooled", prompts, width)
        return Conditioning((states, pooled, self.whole_image(len(prompts))))
