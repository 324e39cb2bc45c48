"""What a scorer does to an image before its network: orient, resize, crop, normalise, all written in its config.

Resizing is always antialiased (clean-fid, arXiv 2104.11222: without it a 2048 px picture changes by 6 % of the range).
Input is uint8 only. Float images are refused: dividing [0, 1] floats by 255 again gives a nearly black picture
without any error, a mistake seen in published evaluation code.
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
    """Shorter side to `resize` px, centre crop of `crop` px, (x / 255 - mean) / std per channel."""

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation '{self.interpolation}' is unknown: use one of {', '.join(INTERPOLATIONS)}")
        if not 0 < self.crop <= self.resize:
            raise UserError(f"crop={self.crop} must be positive and at most resize={self.resize}")

    @property
    def geometry(self) -> tuple[int, int, str]:
        """What `cut` depends on: scorers that agree in it can share its result."""
        return self.resize, self.crop, self.interpolation

    def __call__(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """uint8 RGB images, [n, H, W, 3] or a list of [H, W, 3] of any sizes -> float32 [n, 3, crop, crop]."""
        return self.scale(self.cut(images))

    def cut(self, images: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """Resize and centre crop: images as above -> uint8 [n, 3, crop, crop].

        Resized by PIL, as everywhere in the field: on tensors torchvision differs by a grey level, in places by more.
        """
        import torch
        from PIL import Image
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        mode = InterpolationMode(self.interpolation)
        out = torch.empty(len(images), 3, self.crop, self.crop, dtype=torch.uint8)
        for i, image in enumerate(images):
            check_uint8_rgb(image)
            picture: Any = Image.fromarray(image)
            resized = F.resize(picture, [self.resize], interpolation=mode)
            out[i] = F.pil_to_tensor(F.center_crop(resized, [self.crop, self.crop]))
        return out

    def scale(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, h, w] -> float32: (x / 255 - mean) / std."""
        import torch

        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (pixels.float() / 255.0 - mean) / std


def check_uint8_rgb(image: np.ndarray) -> None:
    """TypeError unless image is uint8 [H, W, 3]."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"scorers take uint8 images [H, W, 3], got {found}")


def to_uint8(image: Image.Image | np.ndarray) -> np.ndarray:
    """One decoded picture as uint8 [H, W, 3]: turned upright by its EXIF tag, transparency laid on white."""
    if isinstance(image, np.ndarray):
        check_uint8_rgb(image)
        return image
    return np.array(flat(image))
