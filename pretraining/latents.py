"""The latent space: 12 of the 48 principal components of 4x4 patches, with partly equalized variance.

A linear code is known before anything is trained, so the UNet can be trained while the VAE is distilled onto the code.
Each component is divided by the square root of its standard deviation. This lifts fine detail above the noise, while
full whitening would make it dominate the mean color.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from pretraining.architecture import LATENT_CHANNELS

PATCH = 4


@dataclass(frozen=True)
class PatchPCA:
    """A linear code of patches flattened as (channel, row, column).

    Args:
        mean: [48].
        encoder: [k, 48].
        decoder: [48, k].
    """

    mean: Tensor
    encoder: Tensor
    decoder: Tensor

    @classmethod
    def fit(cls, images: np.ndarray, channels: int = LATENT_CHANNELS) -> PatchPCA:
        """Return the code for uint8 images [n, H, W, 3]. Latents have variance one on average over the channels."""
        patches = _patches(to_tensor(images)).transpose(1, 2).reshape(-1, 3 * PATCH**2).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        values, vectors = values.flip(0)[:channels], vectors.flip(1)[:, :channels]
        scale = values**-0.25
        scale = scale / (values * scale**2).mean().sqrt()
        return cls(mean.float(), (vectors * scale).T.float().contiguous(), (vectors / scale).float().contiguous())

    def encode(self, images: Tensor) -> Tensor:
        """Map images [n, 3, H, W] in [-1, 1] to latents [n, k, H/4, W/4]."""
        flat = torch.einsum("kp,npl->nkl", self.encoder, _patches(images) - self.mean[:, None])
        return flat.reshape(len(images), -1, images.shape[2] // PATCH, images.shape[3] // PATCH)

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents [n, k, h, w] to images [n, 3, 4h, 4w] in [-1, 1]."""
        n, k, h, w = latents.shape
        flat = torch.einsum("pk,nkl->npl", self.decoder, latents.reshape(n, k, h * w)) + self.mean[:, None]
        return F.fold(flat, (h * PATCH, w * PATCH), PATCH, stride=PATCH).clamp(-1, 1)

    def save(self, path: Path) -> None:
        """Write the code to a .safetensors file."""
        save_file({"mean": self.mean, "encoder": self.encoder, "decoder": self.decoder}, path)

    @classmethod
    def load(cls, path: Path) -> PatchPCA:
        """Read a code."""
        return cls(**load_file(path))


def to_tensor(images: np.ndarray) -> Tensor:
    """Convert images uint8 [n, H, W, 3] to float [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _patches(images: Tensor) -> Tensor:
    return F.unfold(images, PATCH, stride=PATCH)


def encode_bank(pca: PatchPCA, shards: list[np.ndarray], rows: int = 500) -> Tensor:
    """Return the latents of all images of a bank, float16 [n, k, 16, 16], computed `rows` images at a time."""
    parts = (shard[start : start + rows] for shard in shards for start in range(0, len(shard), rows))
    return torch.cat([pca.encode(to_tensor(part)).half() for part in parts])
