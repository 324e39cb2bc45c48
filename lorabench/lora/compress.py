"""The best LoRA of a lower rank, and how far it is from the one it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabench.base import UserError
from lorabench.lora.adapter import Adapter
from lorabench.lora.factors import Factors


@dataclass(frozen=True)
class CompressionError:
    """Relative errors ||update - compressed||_F / ||update||_F.

    layers: of each layer, UNet layers by module path and text layers with their encoder in front.
    overall: of all updates as one vector.
    """

    layers: dict[str, float]
    overall: float

    def __str__(self) -> str:
        worst = max(self.layers, key=lambda layer: self.layers[layer])
        return f"relative error {self.overall:.2%}, at most {self.layers[worst]:.2%} ({worst})"


def compress(lora: Adapter, rank: int) -> tuple[Adapter, CompressionError]:
    """At every layer the update of rank <= `rank` that is nearest in the Frobenius norm (Eckart and Young 1936).

    Layers of no higher rank stay as they are. With up = P S and down^T = Q T (QR), the SVD of the small S T^T is
    that of
    the update; the dense update is never formed. Factors come out balanced, U sqrt(s) and sqrt(s) V^T, which suits half
    precision. In fp64 throughout, as the smallest singular values of a merge are far below the largest.
    """
    if rank < 1:
        raise UserError(f"a LoRA cannot have rank {rank}; type a rank of 1 or more")
    lost: dict[str, tuple[Tensor, Tensor]] = {}

    def nearest(layers: Mapping[str, Factors]) -> dict[str, Factors]:
        found = {}
        for layer, factors in layers.items():
            found[layer], lost[layer] = _truncate(factors, rank)
        return found

    compressed = lora.replaced(nearest(lora), nearest(lora.text))
    errors = {layer: (tail / whole).sqrt().item() if whole > 0 else 0.0 for layer, (tail, whole) in lost.items()}
    tail, whole = (torch.stack([each[i] for each in lost.values()]).sum() for i in (0, 1))
    return compressed, CompressionError(errors, (tail / whole).sqrt().item() if whole > 0 else 0.0)


def _truncate(factors: Factors, rank: int) -> tuple[Factors, tuple[Tensor, Tensor]]:
    """The nearest factors, and the sums of squared singular values that are cut off and of all."""
    up, down = (factor.detach().to("cpu", torch.float64) for factor in (factors.up, factors.down.mT))
    if factors.rank <= rank:
        return factors, (up.new_zeros(()), ((up.mT @ up) * (down.mT @ down)).sum())  # ||update||^2 without an SVD
    left, right = torch.linalg.qr(up), torch.linalg.qr(down)
    u, s, vt = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    squares = s.square()
    root = s[:rank].sqrt()
    kept = Factors(
        (root[:, None] * (vt[:rank] @ right.Q.mT)).to(factors.down), (left.Q @ u[:, :rank] * root).to(factors.up)
    )
    return kept, (squares[rank:].sum(), squares.sum())
