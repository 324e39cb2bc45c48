"""A UNet without its encoders, under SDXL's noise schedule: no step of a merge or a training uses more.

For counting and for benchmarks, with random weights or with none at all (torch's meta device).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from lorabench.base import seed_of
from lorabench.models.checkpointing import recomputed
from lorabench.models.reading import set_attention
from lorabench.models.sdxl import SDXL, Conditioning

TOKENS = 77


class UNetOnly(SDXL):
    """Prompts and images have seeded random codes.

    checkpointing: of gradients, as in `ModelSpec`.
    """

    def __init__(self, unet: UNet2DConditionModel, checkpointing: bool = False):
        self.unet = unet.requires_grad_(False).eval()
        self.device, self.dtype = unet.device, unet.dtype
        set_attention(unet, "auto")
        if checkpointing:
            unet.enable_gradient_checkpointing(recomputed)
        self.prediction_type, self.offload = "epsilon", False
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
        self.alphas_bar = (1 - betas).cumprod(0).to(self.device)
        self.config: Any = unet.config
        self.resolution, self.latent_edge = 8 * self.config.sample_size, self.config.sample_size
        self._prompts = {}

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        pooled = self.config.projection_class_embeddings_input_dim - 6 * self.config.addition_time_embed_dim
        embeds = [self.random(f"tokens {prompt}", TOKENS, self.config.cross_attention_dim) for prompt in prompts]
        return Conditioning(torch.cat(embeds), torch.cat([self.random(f"pooled {each}", pooled) for each in prompts]))

    def encode_images(self, images: Tensor) -> Tensor:
        codes = [
            self.random(f"image {float(image.mean())}", self.config.in_channels, self.latent_edge, self.latent_edge)
            for image in images
        ]
        return torch.cat(codes).float()

    def random(self, name: str, *sizes: int) -> Tensor:
        """[1, *sizes] of unit variance, drawn from a name."""
        draw = torch.Generator().manual_seed(seed_of(name))
        return torch.randn(1, *sizes, generator=draw).to(self.device, self.dtype)
