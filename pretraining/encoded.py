"""The bank as latents and token ids: encoded once per shard and read as memory maps.

The latent code (pca.safetensors, fitted on images 0 to 3,999) is shipped, because the VAE was distilled onto it, and
the sign of an eigenvector depends on the machine that computes it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorabench.base import UserError
from pretraining import bank
from pretraining.latents import PatchPCA, encode_bank
from pretraining.tokens import tokenize

CODE = Path(__file__).with_name("pca.safetensors")


class EncodedBank:
    """The encoded images of all complete shards of a folder, in order."""

    def __init__(self, folder: Path) -> None:
        shards = [path for path in sorted(folder.glob("*.json")) if path.with_suffix(".npy").exists()]
        if not shards:
            raise UserError(f"--work={folder.parent} has no images; run `python -m pretraining bank` first")
        pca = PatchPCA.load(CODE)
        encoded = [encode_shard(path, pca) for path in shards]
        self.latents, self.ids = (
            [np.load(path, mmap_mode="r") for path in paths] for paths in zip(*encoded, strict=True)
        )
        self.ends = np.cumsum([len(shard) for shard in self.latents])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents, float32 [n, 12, 16, 16], and token ids, int64 [n, 32]."""
        shards = np.searchsorted(self.ends, indices.numpy(), side="right")
        places = [(s, i - (self.ends[s - 1] if s else 0)) for s, i in zip(shards, indices.tolist(), strict=True)]
        latents, ids = (np.stack([maps[s][i] for s, i in places]) for maps in (self.latents, self.ids))
        return torch.from_numpy(latents).float(), torch.from_numpy(ids).long()

    def batch(self, position: int, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` samples from `position` of an endless sequence of epochs, each shuffled differently."""
        at = range(position, position + count)
        return self.take(torch.tensor([int(shuffled(k // len(self), len(self))[k % len(self)]) for k in at]))


@lru_cache(2)
def shuffled(epoch: int, count: int) -> Tensor:
    """Return the order of samples in an epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(epoch))


def encode_shard(captions: Path, pca: PatchPCA) -> tuple[Path, Path]:
    """Write a shard's latents and token ids if they do not exist; return both paths."""
    latents, ids = captions.with_suffix(".latents.npy"), captions.with_suffix(".ids.npy")
    if not ids.exists():
        images, texts = bank.load_shard(captions)
        bank.save(latents, encode_bank(pca, [images]).numpy())
        bank.save(ids, tokenize(texts).numpy())
    return latents, ids
