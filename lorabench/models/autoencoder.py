"""Latents of unit scale: the autoencoder's codes, shifted and scaled by its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LARGE = 512  # pixels, from which images are decoded one by one


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """Return RGB images of one size as [n, 3, H, W] in [-1, 1]."""
    stack = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2) / 127.5 - 1


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
