"""Latents of unit scale: the autoencoder's codes, shifted and scaled by its configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGE = 512  # pixels, from which images are decoded one by one


def encode(vae: Any, images: Tensor) -> Tensor:
    """Return latents [n, c, h, w] for images [n, 3, H, W] in [-1, 1]: the mode of the encoder's distribution."""
    code = vae.encode(images.to(vae.dtype)).latent_dist.mode().float()
    return (code - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Return images [n, 3, H, W] in [0, 1] for latents of unit scale."""
    code = latents.float() / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    with torch.autocast(latents.device.type, enabled=False):  # bf16 would show as banding
        images = vae.decode(code.to(vae.dtype)).sample
    return (images.float() / 2 + 0.5).clamp(0, 1)


def prepare(vae: Any, resolution: int) -> None:
    """Freeze an autoencoder. A whole batch of large images needs more memory to decode than any training step."""
    vae.requires_grad_(False).eval()
    if resolution >= LARGE:
        vae.enable_slicing()
