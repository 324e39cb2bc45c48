"""Encoded prompts, as the denoiser uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """The encoding of n prompts for the denoiser.

    Args:
        tensors: Tensors with n rows each; their meaning depends on the family.
    """

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])

    def take(self, rows: Tensor | Sequence[int]) -> Conditioning:
        """Return the conditioning of these rows."""
        index = rows if isinstance(rows, Tensor) else list(rows)
        return Conditioning(tuple(tensor[index] for tensor in self.tensors))

    @staticmethod
    def join(parts: Sequence[Conditioning]) -> Conditioning:
        """Join the rows of all parts, in order."""
        columns = zip(*(part.tensors for part in parts), strict=True)
        return Conditioning(tuple(torch.cat(column) for column in columns))
