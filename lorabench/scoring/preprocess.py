"""Preprocessing of a scorer, as its config defines it: orientation, resize, crop and normalization.

Resizing is always antialiased (clean-fid, arXiv 2104.11222: otherwise a 2048 px image changes by 6 % of the range).
Only uint8 images are accepted: dividing floats in [0, 1] by 255 would give almost black images without an error, a
mistake found in published evaluation code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lorabench.base import UserError
from lorabench.data.images import flat

if TYPE_CHECKING:
    import torch
    from PIL import Image

INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side to `resize` px, center-crop to `crop` px, then (x / 255 - mean) / std per channel."""

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.interpolation not in INTERPOLATIONS:
            known = " or ".join(INTERPOLATIONS)
            raise UserError(f"interpolation={self.interpolation} must be {known}; use interpolation=bicubic")
        if not 0 < self.crop <= self.resize:
            raise UserError(f"crop={self.crop} must be positive and at most resize={self.resize}")

    @property
    def geometry(self) -> tuple[int, int, str]:
        """Return the settings that `cut` depends on; scorers with equal ones can share its result."""
        return self.resize, self.crop, self.interpolation

    def __call__(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """Preprocess uint8 RGB images, [n, H, W, 3] or a list of any sizes, to float32 [n, 3, crop, crop]."""
        return self.scale(self.cut(images))

    def cut(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """Resize and center-crop images -> uint8 [n, 3, crop, crop].

        PIL resizes, as is common: torchvision's resize of tensors differs by one gray level, in places by more.
        """
        import torch
        from PIL import Image
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        mode = InterpolationMode(self.interpolation)
        out = torch.empty(len(images), 3, self.crop, self.crop, dtype=torch.uint8)
        for i, image in enumerate(images):
            check_uint8_rgb(image)
            pil_image: Any = Image.fromarray(image)
            resized = F.resize(pil_image, [self.resize], interpolation=mode)
            out[i] = F.pil_to_tensor(F.center_crop(resized, [self.crop, self.crop]))
        return out

    def scale(self, pixels: torch.Tensor) -> torch.Tensor:
        """Convert uint8 [n, 3, h, w] to float32: (x / 255 - mean) / std."""
        import torch

        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (pixels.float() / 255.0 - mean) / std


def check_uint8_rgb(image: np.ndarray) -> None:
    """Raise a TypeError unless the image is uint8 [H, W, 3]."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"scorers take uint8 images [H, W, 3], got {found}")


def to_uint8(image: Image.Image | np.ndarray) -> np.ndarray:
    """Convert a decoded image to uint8 [H, W, 3], rotated by its EXIF tag, with transparency over white."""
    if isinstance(image, np.ndarray):
        check_uint8_rgb(image)
        return image
    return np.array(flat(image))
