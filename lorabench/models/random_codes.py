"""Seeded random encodings of prompts and images, for denoisers without text encoders and autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorabench.base import seed_of
from lorabench.models.model import DiffusionModel


def code(model: DiffusionModel, name: str, *sizes: int) -> Tensor:
    """Return numbers [1, *sizes] of unit variance on the model's device, seeded by a name."""
    rng = torch.Generator().manual_seed(seed_of(name))
    return torch.randn(1, *sizes, generator=rng).to(model.device, model.dtype)


def prompt_codes(model: DiffusionModel, kind: str, prompts: Sequence[str], *sizes: int) -> Tensor:
    """Return one code [n, *sizes] per prompt."""
    return torch.cat([code(model, f"{kind} {prompt}", *sizes) for prompt in prompts])


def image_codes(model: DiffusionModel, images: Tensor) -> Tensor:
    """Return latents [n, c, h, w], seeded by the mean of each image."""
    return torch.cat([code(model, f"image {float(image.mean())}", *model.latent_shape) for image in images]).float()
